"""The text of a request as an engine reads it, from its start: what prefix routing compares. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from ollamalab.protocol.calls import Call
from ollamalab.routing.prefixes import BLOCK_CHARACTERS, MOST_BLOCKS

_MOST_CHARACTERS = BLOCK_CHARACTERS * MOST_BLOCKS


def prompt_of(call: Call) -> str:
    """Return the beginning of what the model will read, about as its template puts it together.

    Two requests whose texts here begin alike begin alike in the engine: tools and the system text come
    first, then the messages in order, each with its role.
    """
    parts: list[str] = []
    characters = 0
    for part in _parts(call):
        parts.append(part)
        characters += len(part)
        if characters >= _MOST_CHARACTERS:
            break
    return "\n".join(parts)


def _parts(call: Call) -> Iterator[str]:
    fields = call.fields
    tools = fields.get("tools")
    if tools:
        yield msgspec.json.encode(tools).decode()
    for name in ("system", "prompt", "input"):
        text = fields.get(name)
        if isinstance(text, str):
            yield text
    messages = fields.get("messages")
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield str(message.get("role"))
            yield _text_of(message.get("content"))


def _text_of(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()  # /v1 may cut a message into parts
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
