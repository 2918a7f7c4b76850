"""What of an answer must be equal on every server: status, headers, fields in their order, texts of errors.

Pure. Values that depend on the model, the machine or the moment become the name of their kind: "integer",
"UTC moment", "string".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

#: Fields whose text is a part of the protocol.
_LITERAL = {
    *("error", "message", "type", "param", "code", "status", "done_reason", "finish_reason", "role"),
    *("object", "owned_by", "system_fingerprint", "format", "source"),
}

_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{64}")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")

#: Headers that say nothing of the protocol.
_UNTOLD = {"date", "content-length", "keep-alive"}

_STREAMS = {"application/x-ndjson", "text/event-stream"}


@dataclass(frozen=True)
class Answer:
    """What came back: status, headers with names in lower case, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def shape_of(answer: Answer, *, model: str, depth: int = 9) -> dict[str, Any]:
    """Return the part of an answer that every server must give alike, as plain JSON values.

    Equal lines of a stream in a row count as one: how many tokens come is the model's affair.

    Args:
        answer: The answer.
        model: Name that was asked for; it becomes "{model}".
        depth: How deep to look into objects; deeper ones are "object".
    """

    def kind(value: Any) -> Any:
        return _kind(value, model=model, depth=depth)

    media_type = answer.headers.get("content-type", "").partition(";")[0]
    # Go also cuts long answers in one piece into chunks, those of more than about 2 KB.
    untold = _UNTOLD if media_type in _STREAMS else _UNTOLD | {"transfer-encoding"}
    headers = {name: value for name, value in answer.headers.items() if name not in untold}
    shape = {"status": answer.status, "headers": dict(sorted(headers.items()))}
    text = answer.body.decode(errors="replace")
    if not text:
        return shape
    if media_type == "application/x-ndjson":
        return shape | {"lines": _distinct(kind(json.loads(line)) for line in text.splitlines())}
    if media_type == "text/event-stream":
        return shape | {"events": _distinct(_event(part, kind) for part in text.split("\n\n") if part)}
    if media_type == "application/json":
        return shape | {"json": kind(json.loads(text)), "ends_with_newline": text.endswith("\n")}
    return shape | {"text": text.replace(model, "{model}")}


def _event(text: str, kind: Any) -> Any:
    name, _, data = text.partition("data: ")
    return [name.strip(), data if data == "[DONE]" else kind(json.loads(data))]


def _distinct(shapes: Iterable[Any]) -> list[Any]:
    """Return the shapes without those that equal the one before."""
    kept: list[Any] = []
    for shape in shapes:
        if kept[-1:] != [shape]:
            kept.append(shape)
    return kept


def _kind(value: Any, *, model: str, depth: int, field: str = "") -> Any:
    if isinstance(value, dict):
        if not depth:
            return "object"
        # A list, for the order of the fields is a part of it.
        return [
            [name, _kind(entry, model=model, depth=depth - 1, field=name)] for name, entry in value.items()
        ]
    if isinstance(value, list):
        kinds = (_kind(entry, model=model, depth=depth, field=field) for entry in value)
        # How many there are, and in which order, is another machine's affair.
        return {"list of": _distinct(sorted(kinds, key=str))}
    if isinstance(value, str):
        return _text_kind(value, model=model, field=field)
    if value is None or isinstance(value, bool):
        return value
    return "integer" if isinstance(value, int) else "number"


def _text_kind(text: str, *, model: str, field: str) -> str:
    if field in _LITERAL:
        return "text: " + text.replace(model, "{model}")
    if text.lower() == model.lower():
        return "{model}" if text == model else "{model}, in other letters"
    if moment := _MOMENT.fullmatch(text):
        # A server whose zone is UTC writes its local moments so, too.
        return "UTC moment" if moment[2] == "Z" else "moment with offset"
    if _DIGEST.fullmatch(text):
        return "sha256:digest" if text.startswith("sha256:") else "digest"
    return "string" if text else "empty string"
