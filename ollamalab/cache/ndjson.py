"""The two forms of an answer under ``/api``: NDJSON lines, or one object. Pure.

Source: Ollama's ``server/routes.go`` (v0.33), which makes the one from the other just so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

STREAM_TYPE = "application/x-ndjson"
WHOLE_TYPE = "application/json; charset=utf-8"

_HEAD = ("model", "created_at")
_SAID = ("content", "response", "thinking", "tool_calls")

_json = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder(dict[str, Any]).decode


def joined(lines: Sequence[bytes]) -> bytes:
    """Return a stream as the one object that the same request would have got unstreamed."""
    parts = [_parse(line) for line in lines]
    whole = parts[-1]
    is_chat = "message" in whole
    said = [part.get("message") or {} for part in parts] if is_chat else parts
    target = whole["message"] if is_chat else whole
    target["content" if is_chat else "response"] = _text(said, "content" if is_chat else "response")
    if thinking := _text(said, "thinking"):
        target["thinking"] = thinking
    if is_chat and (calls := _all(said, "tool_calls")):
        target["tool_calls"] = calls
    if logprobs := _all(parts, "logprobs"):
        whole["logprobs"] = logprobs
    return _json(whole)


def split(whole: bytes) -> tuple[bytes, ...]:
    """Return an unstreamed answer as a stream: a content line if anything was said, and the final line."""
    final = _parse(whole)
    said = final.get("message") or final
    if not any(said.get(name) for name in _SAID):
        return (_json(final) + b"\n",)
    content: dict[str, Any] = {name: final[name] for name in _HEAD if name in final}
    if "message" in final:
        content["message"] = final["message"]
        final["message"] = {"role": final["message"].get("role", "assistant"), "content": ""}
    else:
        content["response"] = final.get("response", "")
        final["response"] = ""
        if thinking := final.pop("thinking", None):
            content["thinking"] = thinking
    content["done"] = False
    if logprobs := final.pop("logprobs", None):
        content["logprobs"] = logprobs
    return _json(content) + b"\n", _json(final) + b"\n"


def _text(parts: Sequence[dict[str, Any]], name: str) -> str:
    return "".join(part.get(name) or "" for part in parts)


def _all(parts: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [item for part in parts for item in part.get(name) or ()]
