"""Prompts, with the engine's help: rendered by the model's template, counted, and made to fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ollamalab.embedded.bodies import chat_body, shortened_prompt
from ollamalab.embedded.engine import Engine
from ollamalab.errors import RequestRefused
from ollamalab.protocol.options import Options
from ollamalab.protocol.requests import Message

_OK, _BAD_REQUEST, _INTERNAL_ERROR = 200, 400, 500

PROMPT_TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, "
    "adjust the context length in settings, or use a model with a longer context length"
)

MessagesBody = Callable[[Sequence[Message]], Mapping[str, Any]]
"""Returns llama.cpp's chat body for messages."""


async def tokenize(engine: Engine, text: str, *, add_special: bool = False) -> list[int]:
    """Return the tokens of a text; special tokens in it count as such.

    Args:
        engine: Whose tokens.
        text: The text.
        add_special: Whether the tokenizer adds what it puts round a prompt.

    Raises:
        RequestRefused: The engine cannot; its words.
        EngineError: The engine is gone.
    """
    reply = await _ask(engine, "/tokenize", {"content": text, "add_special": add_special}, "tokenize")
    tokens: list[int] = reply["tokens"]
    return tokens


async def detokenize(engine: Engine, tokens: Sequence[int]) -> str:
    """Return the text of tokens.

    Raises:
        RequestRefused: There is no such token; the engine's words.
        EngineError: The engine is gone.
    """
    reply = await _ask(engine, "/detokenize", {"tokens": list(tokens)}, "detokenize")
    text: str = reply["content"]
    return text


async def render(engine: Engine, body: Mapping[str, Any]) -> str:
    """Return the prompt that the model's template makes of a chat body.

    Raises:
        RequestRefused: The template refuses these messages; its status and words.
        EngineError: The engine is gone.
    """
    status, reply = await engine.post("/apply-template", body)
    if status != _OK:
        raise RequestRefused(status, reply.decode(errors="replace").strip())
    prompt: str = msgspec.json.decode(reply)["prompt"]
    return prompt


async def check_schema(engine: Engine, schema: Mapping[str, Any]) -> None:
    """Refuse a JSON schema that the engine cannot use.

    The engine's completion endpoint passes over such a schema in silence and generates any text; its
    chat template endpoint says what is wrong.

    Raises:
        RequestRefused: It cannot be used; the engine's words.
        EngineError: The engine is gone.
    """
    asked = [Message(role="user", content="?")]
    await render(engine, chat_body(asked, Options(), num_ctx=engine.load.num_ctx, schema=schema))


async def fitted_messages(
    engine: Engine, messages: Sequence[Message], body_of: MessagesBody, *, num_ctx: int
) -> list[Message]:
    """Return a history that fits into the context, its oldest messages dropped.

    System messages stay, and so does the last message, even if it alone is too long.

    Args:
        engine: Renders and counts.
        messages: Oldest first.
        body_of: See ``MessagesBody``.
        num_ctx: Tokens of context per slot.

    Raises:
        RequestRefused: The template refuses these messages.
        EngineError: The engine is gone.
    """
    last = len(messages) - 1
    for first in range(last + 1):
        kept = [message for message in messages[:first] if message.role == "system"]
        kept += messages[first:]
        if first == last or await _fits(engine, await render(engine, body_of(kept)), num_ctx):
            return kept
    return list(messages)


async def fitted_prompt(engine: Engine, prompt: str, *, num_keep: int, adds_bos: bool) -> str | list[int]:
    """Return a prompt that leaves room to generate; its middle is cut out if the context may shift.

    Args:
        engine: Counts; its load-time options say how long a prompt may be and whether contexts shift.
        prompt: The rendered prompt.
        num_keep: Tokens at its start that stay.
        adds_bos: Whether the tokenizer puts a token of its own in front, which stays too.

    Raises:
        RequestRefused: It is too long and must not be cut.
        EngineError: The engine is gone.
    """
    num_ctx = engine.load.num_ctx
    if _is_surely_below(prompt, num_ctx):
        return prompt
    tokens = await tokenize(engine, prompt, add_special=True)
    if len(tokens) < num_ctx:
        return prompt
    if not engine.load.shift:
        raise RequestRefused(_BAD_REQUEST, PROMPT_TOO_LONG)
    keep = num_keep + 1 if adds_bos and num_keep >= 0 else num_keep
    return shortened_prompt(tokens, num_ctx=num_ctx, num_keep=keep)


async def _fits(engine: Engine, prompt: str, num_ctx: int) -> bool:
    return _is_surely_below(prompt, num_ctx) or len(await tokenize(engine, prompt)) <= num_ctx


def _is_surely_below(prompt: str, num_ctx: int) -> bool:
    """Whether a prompt has fewer tokens than this, told without the engine: a token has a byte or more."""
    return len(prompt.encode()) < num_ctx


async def _ask(engine: Engine, path: str, body: Mapping[str, Any], name: str) -> dict[str, Any]:
    status, reply = await engine.post(path, body)
    if status != _OK:
        text = reply.decode(errors="replace").strip()
        raise RequestRefused(_INTERNAL_ERROR, f"{name} error: {text}")
    answer: dict[str, Any] = msgspec.json.decode(reply)
    return answer
