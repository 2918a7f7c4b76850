"""How answers are written for OpenAI's clients: server-sent events, or one object. Pure.

Errors in mid-stream: Ollama (v0.33) sends an empty delta and leaves out ``[DONE]``, which clients take for
an answer that ended. Ours send an ``error`` event, which the official client raises.

Source: Ollama's ``openai/openai.go`` and ``middleware/openai.go`` (v0.33).
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from ollamalab.embedded.dialect import Finished
from ollamalab.embedded.events import Call, Ending, Piece
from ollamalab.protocol.bodies import openai_error_body
from ollamalab.protocol.durations import NS_PER_S

JSON_TYPE = "application/json"
EVENTS_TYPE = "text/event-stream"

_INTERNAL_ERROR = 500
_DONE = b"data: [DONE]\n\n"

_json = msgspec.json.Encoder().encode


class _Events:
    """What the two dialects share."""

    stream_type = EVENTS_TYPE
    whole_type = JSON_TYPE
    is_bare_streamed = True

    def __init__(self, model: str, *, prefix: str, include_usage: bool) -> None:
        self._model = model
        self._id = f"{prefix}-{random.randrange(999)}"  # as Ollama: not unique
        self._include_usage = include_usage

    def failure(self, message: str) -> bytes:
        """Return the event that ends a broken stream; no ``[DONE]`` follows."""
        return _event(openai_error_body(message, _INTERNAL_ERROR))


class OpenAIChat(_Events):
    """``/v1/chat/completions``; the role is in the first delta only, all share one time."""

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        """Take the model's name as the client wrote it, and whether a stream ends with its usage."""
        super().__init__(model, prefix="chatcmpl", include_usage=include_usage)
        self._created_ns: int | None = None

    def piece(self, piece: Piece, now_ns: int) -> bytes:
        """Return the stream's next event, or two: thinking and content go apart."""
        return self._said(piece, (), now_ns)

    def ending(self, finished: Finished, now_ns: int) -> bytes:
        """Return the stream's last events."""
        ending = finished.ending
        events = b""
        if self._created_ns is None or ending.piece != Piece() or ending.calls:
            events += self._said(ending.piece, ending.calls, now_ns)
        events += self._delta({}, now_ns, finish_reason=_finish_reason(ending))
        if self._include_usage:
            events += _event({**self._head(now_ns), "choices": [], "usage": _usage(ending)})
        return events + _DONE

    def whole(self, finished: Finished, now_ns: int) -> bytes:
        """Return the answer as one object and a newline."""
        ending = finished.ending
        message: dict[str, Any] = {"role": "assistant", "content": ending.piece.content}
        if ending.piece.thinking:
            message["reasoning"] = ending.piece.thinking
        if ending.calls:
            message["tool_calls"] = _calls(ending.calls)
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": _finish_reason(ending),
            **_logprobs(ending.piece),
        }
        head = self._head(now_ns) | {"object": "chat.completion"}
        return _json({**head, "choices": [choice], "usage": _usage(ending)}) + b"\n"

    def _said(self, piece: Piece, calls: tuple[Call, ...], now_ns: int) -> bytes:
        logprobs = _logprobs(piece)
        if piece.thinking and (piece.content or calls):
            thinking = self._delta({"reasoning": piece.thinking}, now_ns, logprobs)
            return thinking + self._said(Piece(piece.content), calls, now_ns)
        delta: dict[str, Any] = {"content": piece.content}
        if piece.thinking:
            delta["reasoning"] = piece.thinking
        if calls:
            delta["tool_calls"] = _calls(calls)
        return self._delta(delta, now_ns, logprobs)

    def _delta(
        self,
        delta: dict[str, Any],
        now_ns: int,
        logprobs: Mapping[str, Any] = MappingProxyType({}),
        *,
        finish_reason: str | None = None,
    ) -> bytes:
        if self._created_ns is None:
            delta = {"role": "assistant", **delta}
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, **logprobs}
        return _event({**self._head(now_ns), "choices": [choice]})

    def _head(self, now_ns: int) -> dict[str, Any]:
        self._created_ns = self._created_ns or now_ns
        return {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created_ns // NS_PER_S,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
        }


class OpenAICompletion(_Events):
    """``/v1/completions``."""

    def __init__(self, model: str, *, include_usage: bool = False) -> None:
        """Take the model's name as the client wrote it, and whether a stream carries its usage."""
        super().__init__(model, prefix="cmpl", include_usage=include_usage)

    def piece(self, piece: Piece, now_ns: int) -> bytes:
        """Return the stream's next event."""
        return self._chunk(piece.content, None, now_ns)

    def ending(self, finished: Finished, now_ns: int) -> bytes:
        """Return the stream's last events."""
        ending = finished.ending
        events = self._chunk(ending.piece.content, ending.done_reason, now_ns)
        if self._include_usage:
            events += _event({**self._head(now_ns, choices=[]), "usage": _usage(ending)})
        return events + _DONE

    def whole(self, finished: Finished, now_ns: int) -> bytes:
        """Return the answer as one object and a newline."""
        ending = finished.ending
        choice = {"text": ending.piece.content, "index": 0, "finish_reason": ending.done_reason}
        head = self._head(now_ns, choices=[])
        del head["choices"]  # here they come last
        return _json({**head, "choices": [choice], "usage": _usage(ending)}) + b"\n"

    def _chunk(self, text: str, finish_reason: str | None, now_ns: int) -> bytes:
        choice = {"text": text, "index": 0, "finish_reason": finish_reason}
        usage = {"usage": _usage(Ending())} if self._include_usage else {}
        return _event({**self._head(now_ns, choices=[choice]), **usage})

    def _head(self, now_ns: int, *, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": now_ns // NS_PER_S,
            "choices": choices,
            "model": self._model,
            "system_fingerprint": "fp_ollama",
        }


def _event(fields: dict[str, Any]) -> bytes:
    return b"data: " + _json(fields) + b"\n\n"


def _usage(ending: Ending) -> dict[str, int]:
    return {
        "prompt_tokens": ending.prompt_tokens,
        "completion_tokens": ending.eval_tokens,
        "total_tokens": ending.prompt_tokens + ending.eval_tokens,
    }


def _finish_reason(ending: Ending) -> str:
    return "tool_calls" if ending.calls and ending.done_reason == "stop" else ending.done_reason


def _logprobs(piece: Piece) -> dict[str, Any]:
    return {"logprobs": {"content": piece.logprobs}} if piece.logprobs else {}


def _calls(calls: tuple[Call, ...]) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "index": call.index,
            "type": "function",
            "function": {"name": call.name, "arguments": _json(call.arguments).decode()},
        }
        for call in calls
    ]
