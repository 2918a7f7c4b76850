"""OpenAI's request bodies, and the Ollama requests that they mean. Pure.

The fields that Ollama reads, and its defaults: temperature and top_p are 1.0 here. Fields it does not
read (``n``, ``max_completion_tokens``, ``tool_choice``, ``keep_alive`` ...) are ignored, as there.

Source: Ollama's ``openai/openai.go`` (v0.33).
"""

from __future__ import annotations

from typing import Any

import msgspec

from ollamalab.errors import SettingsError
from ollamalab.protocol.requests import (
    ChatRequest,
    EmbedRequest,
    GenerateRequest,
    Message,
    ToolCall,
    ToolFunction,
)

_THINK: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
    "xhigh": "max",
    "ultra": "max",
}
_EFFORTS = '"minimal", "low", "medium", "high", "xhigh", "ultra", "max", or "none"'
_IMAGE_PREFIXES = (
    "data:;base64,",
    *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")),
)


class StreamOptions(msgspec.Struct):
    """``include_usage`` asks for token counts at the end of a stream."""

    include_usage: bool = False


class CalledFunction(msgspec.Struct):
    """Here ``arguments`` is a text with JSON in it."""

    name: str = ""
    arguments: str = ""


class CalledTool(msgspec.Struct):
    """A tool call repeated to the model."""

    id: str = ""
    function: CalledFunction = msgspec.field(default_factory=CalledFunction)


class ChatMessage(msgspec.Struct):
    """One message; ``content`` is a text, a list of parts, or null beside tool calls."""

    role: str = ""
    content: Any = None
    reasoning: str = ""
    tool_calls: list[CalledTool] | None = None
    name: str = ""
    tool_call_id: str = ""


class JsonSchema(msgspec.Struct):
    """The schema of ``response_format``."""

    schema: Any = None


class ResponseFormat(msgspec.Struct):
    """``text``, ``json_object`` or ``json_schema``."""

    type: str = ""
    json_schema: JsonSchema | None = None


class Reasoning(msgspec.Struct):
    """Newer spelling of ``reasoning_effort``."""

    effort: str = ""


class ChatCompletionRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/chat/completions``."""

    model: str = ""
    messages: list[ChatMessage] = []
    stream: bool = False
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    max_tokens: int | None = None
    seed: int | None = None
    stop: Any = None
    temperature: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    top_p: float | None = None
    response_format: ResponseFormat = msgspec.field(default_factory=ResponseFormat)
    tools: list[dict[str, Any]] = []
    reasoning: Reasoning | None = None
    reasoning_effort: str = ""
    logprobs: bool = False
    top_logprobs: int = 0


class CompletionRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/completions``; ``logprobs`` is read and, as in Ollama, not answered."""

    model: str = ""
    prompt: str = ""
    suffix: str = ""
    stream: bool = False
    stream_options: StreamOptions = msgspec.field(default_factory=StreamOptions)
    max_tokens: int | None = None
    seed: int | None = None
    stop: Any = None
    temperature: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_p: float = 0.0


class EmbeddingsRequest(msgspec.Struct, kw_only=True):
    """``POST /v1/embeddings``."""

    model: str = ""
    input: Any = None
    dimensions: int = 0
    encoding_format: str = ""


def to_chat(request: ChatCompletionRequest) -> ChatRequest:
    """Return the ``/api/chat`` request that a chat completion means.

    Raises:
        SettingsError: It cannot be answered; Ollama's words, for a 400.
    """
    if not request.messages:
        raise SettingsError("[] is too short - 'messages'")
    options: dict[str, Any] = {
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": 1.0 if request.top_p is None else request.top_p,
        **_stop(request.stop),
    }
    for name, value in (
        ("num_predict", request.max_tokens),
        ("seed", request.seed),
        ("frequency_penalty", request.frequency_penalty),
        ("presence_penalty", request.presence_penalty),
    ):
        if value is not None:
            options[name] = value
    return ChatRequest(
        model=request.model,
        messages=[part for message in request.messages for part in _messages(message, request.messages)],
        stream=request.stream,
        format=_format(request.response_format),
        options=options,
        tools=request.tools,
        think=_think(request.reasoning.effort if request.reasoning else request.reasoning_effort),
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
    )


def to_generate(request: CompletionRequest) -> GenerateRequest:
    """Return the ``/api/generate`` request that a completion means."""
    options: dict[str, Any] = {
        "temperature": 1.0 if request.temperature is None else request.temperature,
        "top_p": request.top_p or 1.0,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        **_stop(request.stop),
    }
    if request.max_tokens is not None:
        options["num_predict"] = request.max_tokens
    if request.seed is not None:
        options["seed"] = request.seed
    return GenerateRequest(
        model=request.model,
        prompt=request.prompt,
        suffix=request.suffix,
        stream=request.stream,
        options=options,
    )


def to_embed(request: EmbeddingsRequest) -> EmbedRequest:
    """Return the ``/api/embed`` request that an embeddings request means.

    Raises:
        SettingsError: It cannot be answered; Ollama's words, for a 400.
    """
    encoding = request.encoding_format
    if encoding and encoding.lower() not in ("float", "base64"):
        raise SettingsError(
            f"Invalid value for 'encoding_format' = {encoding}. Supported values: ['float', 'base64']."
        )
    if request.input is None or request.input == []:
        raise SettingsError("invalid input")
    # An empty text is embedded here; under /api it would only load the model.
    texts = [""] if request.input == "" else request.input
    return EmbedRequest(model=request.model, input=texts, dimensions=request.dimensions)


def _stop(stop: object) -> dict[str, list[str]]:
    if isinstance(stop, str):
        return {"stop": [stop]}
    if isinstance(stop, list):
        return {"stop": [text for text in stop if isinstance(text, str)]}
    return {}


def _think(effort: str) -> bool | str | None:
    if not effort:
        return None
    if effort not in _THINK:
        raise SettingsError(f'invalid reasoning value: "{effort}" (must be {_EFFORTS})')
    return _THINK[effort]


def _format(wanted: ResponseFormat) -> object:
    kind = wanted.type.strip().lower()
    if kind == "json_object":
        return "json"
    return wanted.json_schema.schema if kind == "json_schema" and wanted.json_schema else None


def _messages(message: ChatMessage, history: list[ChatMessage]) -> list[Message]:
    """Return Ollama's messages for one of OpenAI's: each part of a list becomes one of its own."""
    calls = [_tool_call(call) for call in message.tool_calls or ()]
    extra: dict[str, Any] = {"thinking": message.reasoning, "tool_calls": calls}
    role = message.role.lower()
    if role == "tool":
        extra["tool_name"] = message.name or _called_name(message.tool_call_id, history)
    extra["tool_call_id"] = message.tool_call_id
    content = message.content
    if isinstance(content, str):
        return [Message(role=role, content=content, **extra)]
    if isinstance(content, list):
        parts = [_part(role, part) for part in content]
        if parts and calls:
            parts[-1] = msgspec.structs.replace(parts[-1], **extra)
        return parts
    if message.tool_calls is None:
        raise SettingsError(f"invalid message content type: {_go_type(content)}")
    return [Message(role=role, **extra)]


def _part(role: str, part: object) -> Message:
    if isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str):
        return Message(role=role, content=part["text"])
    if isinstance(part, dict) and part.get("type") == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if isinstance(url, str):
            return Message(role=role, images=[_image(url)])
    raise SettingsError("invalid message format")


def _image(url: str) -> str:
    if url.startswith(("http://", "https://")):
        raise SettingsError("image URLs are not currently supported, please use base64 encoded data instead")
    for prefix in _IMAGE_PREFIXES:
        if url.startswith(prefix):
            return url.removeprefix(prefix)
    raise SettingsError("invalid image input")


def _tool_call(call: CalledTool) -> ToolCall:
    try:
        arguments = msgspec.json.decode(call.function.arguments, type=dict[str, Any])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise SettingsError("invalid tool call arguments") from error
    return ToolCall(function=ToolFunction(name=call.function.name, arguments=arguments), id=call.id)


def _called_name(call_id: str, history: list[ChatMessage]) -> str:
    """Return the tool that a call's id belongs to; the last one if the id was used twice."""
    for message in reversed(history):
        for call in message.tool_calls or ():
            if call_id and call.id == call_id:
                return call.function.name
    return ""


def _go_type(value: object) -> str:
    if value is None:
        return "<nil>"
    return {bool: "bool", int: "float64", float: "float64"}.get(type(value), "map[string]interface {}")
