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
    for name in ("system", "instructions", "prompt"):
        yield from _texts_of(fields.get(name))
    messages = fields.get("messages", fields.get("input"))  # as /v1/responses calls it, maybe one text
    if isinstance(messages, str):
        yield messages
    for message in messages if isinstance(messages, list) else ():
        if isinstance(message, dict):
            yield str(message.get("role"))
            yield from _texts_of(message.get("content"))


def _texts_of(content: Any) -> Iterator[str]:
    """Give a text that ``/v1`` may cut into parts."""
    if isinstance(content, str):
        yield content
        return
    for part in content if isinstance(content, list) else ():
        text = part.get("text") if isinstance(part, dict) else None
        if isinstance(text, str):
            yield text
