"""Reads ``--option KEY=VALUE``, as several commands take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ollamalab.errors import SettingsError


def ollama_options(texts: Sequence[str], *, example: str) -> dict[str, Any]:
    """Return Ollama options from KEY=VALUE; a value that is JSON has its type, else it is text.

    Args:
        texts: As given, in order; of the same key the last one counts.
        example: What the message shows as right.

    Raises:
        SettingsError: A text without key or "=".
    """
    import msgspec

    options: dict[str, Any] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise SettingsError(f"--option {text!r} is not KEY=VALUE; write for example --option {example}")
        try:
            options[name] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[name] = value
    return options
