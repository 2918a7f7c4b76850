"""What llama.cpp is asked for: Ollama's requests turned into bodies of its server. Pure.

Two paths, as in Ollama: a chat goes to ``/v1/chat/completions`` and llama.cpp applies the model's
own Jinja template; a finished prompt goes to ``/completion``. Source: Ollama's
``llm/llama_server.go`` (v0.33).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ollamalab.errors import SettingsError
from ollamalab.protocol.options import Options, bounded_num_predict
from ollamalab.protocol.requests import Message, ToolCall

CHAT_PATH = "/v1/chat/completions"
COMPLETION_PATH = "/completion"

_SCHEMA_NAME = "schema"

#: Keywords of JSON Schema that hold schemas: by name, and by themselves or in a list.
_NAMED_SCHEMAS = frozenset({"properties", "$defs", "definitions"})
_SCHEMAS = frozenset({"items", "prefixItems", "anyOf", "oneOf", "if", "then", "else", "not"})

#: Keywords with which a schema says what else an object may have.
_OPEN = frozenset({"additionalProperties", "patternProperties", "unevaluatedProperties", "allOf"})


def chat_body(
    messages: Sequence[Message],
    options: Options,
    *,
    num_ctx: int,
    tools: Sequence[dict[str, Any]] = (),
    schema: Mapping[str, Any] | None = None,
    think: bool | str | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
) -> dict[str, Any]:
    """Return the body for ``CHAT_PATH`` and for ``/apply-template``.

    Args:
        messages: System, user, assistant and tool messages, oldest first.
        options: Of the request.
        num_ctx: Tokens of context of each slot; bounds an open-ended answer.
        tools: Function descriptions, passed on as they came.
        schema: What the answer has to be, see ``schema_of``; None = any text.
        think: None leaves the template's default.
        logprobs: Whether log probabilities are wanted.
        top_logprobs: Alternatives per token.
    """
    body: dict[str, Any] = {
        "messages": [_message(message) for message in messages],
        **_sampling(options, num_ctx),
    }
    if tools:
        body["tools"] = list(tools)
    if logprobs:
        # At least one alternative must be asked for; events drops it again.
        body |= {"logprobs": True, "top_logprobs": max(top_logprobs, 1)}
    if think is not None:
        body["chat_template_kwargs"] = {"enable_thinking": bool(think)}
        if isinstance(think, str):
            body["chat_template_kwargs"]["reasoning_effort"] = think
    if schema == {}:
        body["response_format"] = {"type": "json_object"}
    elif schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": _SCHEMA_NAME, "schema": schema},
        }
    return body


def completion_body(
    prompt: str | Sequence[int] | Mapping[str, Any],
    options: Options,
    *,
    num_ctx: int,
    schema: Mapping[str, Any] | None = None,
    logprobs: bool = False,
    top_logprobs: int = 0,
) -> dict[str, Any]:
    """Return the body for ``COMPLETION_PATH``.

    Args:
        prompt: The finished prompt, its tokens, or a text with images (``multimodal_data``).
        options: Of the request. ``num_predict`` 0 is left to the engine, which then goes on to the
            end, as in Ollama.
        num_ctx: As for ``chat_body``.
        schema: As for ``chat_body``.
        logprobs: As for ``chat_body``.
        top_logprobs: As for ``chat_body``.
    """
    body: dict[str, Any] = {"prompt": prompt, **_sampling(options, num_ctx)}
    if options.num_predict == 0:
        del body["n_predict"]
    if logprobs:
        body["n_probs"] = max(top_logprobs, 1)
    if schema is not None:
        body["json_schema"] = schema or {"type": "object"}
    return body


def schema_of(format: object) -> dict[str, Any] | None:
    """Return the JSON schema that a ``format`` field means; ``{}`` is any JSON object.

    Raises:
        SettingsError: It is neither null, "", "json" nor an object; Ollama's words.
    """
    if format is None or format == "":
        return None
    if format == "json":
        return {}
    if isinstance(format, dict):
        return closed_schema(format)
    # Go quotes the raw JSON once more.
    raw = json.dumps(json.dumps(format, separators=(",", ":"), ensure_ascii=False), ensure_ascii=False)
    raise SettingsError(f'invalid format: {raw}; expected "json" or a valid JSON Schema object')


def closed_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a JSON schema whose objects have the properties it names and no others.

    What a schema leaves open, JSON Schema allows; Ollama's engine does not, and its users rely on that.
    llama.cpp built with llguidance, as the embedded one is, keeps to JSON Schema. A schema that says
    something about further properties itself is left alone, and so are the parts of an ``allOf``, which
    have to be open to each other.
    """
    closed = dict(schema)
    for key, value in schema.items():
        if key in _NAMED_SCHEMAS and isinstance(value, dict):
            closed[key] = {
                name: closed_schema(part) if isinstance(part, dict) else part for name, part in value.items()
            }
        elif key in _SCHEMAS and isinstance(value, dict):
            closed[key] = closed_schema(value)
        elif key in _SCHEMAS and isinstance(value, list):
            closed[key] = [closed_schema(part) if isinstance(part, dict) else part for part in value]
    if "properties" in schema and not _OPEN & schema.keys():
        closed["additionalProperties"] = False
    return closed


def shortened_prompt(tokens: Sequence[int], *, num_ctx: int, num_keep: int) -> list[int]:
    """Return a prompt that leaves room to generate, its middle cut out if it was too long.

    ``num_keep`` tokens stay at the start; of the rest, so many go that about half of the remaining
    context is free, as a context shift during generation would do.

    Args:
        tokens: The whole prompt.
        num_ctx: Tokens of context of the slot; 2 or more.
        num_keep: Tokens to keep at the start; negative = all.
    """
    longest = num_ctx - 1
    if len(tokens) <= longest:
        return list(tokens)
    keep = longest if num_keep < 0 else min(num_keep, longest)
    limit = num_ctx - max((num_ctx - keep) // 2, 1)
    return [*tokens[:keep], *tokens[keep + len(tokens) - limit :]]


def _sampling(options: Options, num_ctx: int) -> dict[str, Any]:
    return {
        "stream": True,
        "cache_prompt": True,
        "n_predict": bounded_num_predict(options.num_predict, num_ctx),
        "n_keep": options.num_keep,
        "temperature": options.temperature,
        "top_k": options.top_k,
        "top_p": options.top_p,
        "min_p": options.min_p,
        "typical_p": options.typical_p,
        "repeat_last_n": options.repeat_last_n,
        "repeat_penalty": options.repeat_penalty,
        "presence_penalty": options.presence_penalty,
        "frequency_penalty": options.frequency_penalty,
        "seed": options.seed,
        "stop": options.stop,
    }


def _message(message: Message) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_call_id:
        body["tool_call_id"] = message.tool_call_id
    if message.tool_name:
        body["name"] = message.tool_name
    if message.tool_calls:
        body["tool_calls"] = [_tool_call(call) for call in message.tool_calls]
    if message.images:
        text = [{"type": "text", "text": message.content}] if message.content else []
        body["content"] = text + [
            {"type": "image_url", "image_url": {"url": f"data:{_media_type(image)};base64,{image}"}}
            for image in message.images
        ]
    return body


def _tool_call(call: ToolCall) -> dict[str, Any]:
    arguments = json.dumps(call.function.arguments, separators=(",", ":"), ensure_ascii=False)
    return {
        "id": call.id,
        "index": call.function.index,
        "type": "function",
        "function": {"name": call.function.name, "arguments": arguments},
    }


def _media_type(image: str) -> str:
    """Return the media type of a base64 image by its first bytes; JPEG if they say nothing."""
    starts = {"iVBORw0KGgo": "image/png", "R0lGOD": "image/gif", "UklGR": "image/webp"}
    return next((kind for start, kind in starts.items() if image.startswith(start)), "image/jpeg")
