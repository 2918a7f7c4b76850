"""One list of models from those of several upstreams. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from ollamalab.errors import BadReply

#: Path of a list to the name of its array, what tells its entries apart, and when each is from.
LISTS = {
    "/api/tags": ("models", "name", "modified_at"),
    "/api/ps": ("models", "name", "expires_at"),
    "/v1/models": ("data", "id", "created"),
}


def merge_lists(path: str, bodies: Sequence[bytes]) -> bytes:
    """Return one list: each name once, the newest of equal names, the newest first as in Ollama.

    Of models in memory the newest is the one that stays longest.

    Args:
        path: One of ``LISTS``.
        bodies: What upstreams answered, at least one; of the first, everything beside the list is kept.

    Raises:
        BadReply: One is not such an answer.
    """
    field, name, moment = LISTS[path]
    try:
        values = [msgspec.json.decode(body, type=dict[str, Any]) for body in bodies]
        lists = [msgspec.convert(value.get(field) or [], list[dict[str, Any]]) for value in values]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise BadReply(f"{path} answered what Ollama would not ({error})") from error
    return msgspec.json.encode({**values[0], field: _merged(lists, name, moment)})


def _merged(lists: Iterable[list[dict[str, Any]]], name: str, moment: str) -> list[dict[str, Any]]:
    newest: dict[str, dict[str, Any]] = {}
    for entries in lists:
        for entry in entries:
            key = str(entry.get(name)).lower()
            known = newest.get(key)
            if known is None or _seconds(entry.get(moment)) > _seconds(known.get(moment)):
                newest[key] = entry
    return sorted(newest.values(), key=lambda entry: _seconds(entry.get(moment)), reverse=True)


def _seconds(moment: object) -> float:
    """Return a moment as Ollama writes it, text or number; what cannot be read is the oldest."""
    if isinstance(moment, int | float):
        return float(moment)
    try:
        return datetime.fromisoformat(str(moment)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
