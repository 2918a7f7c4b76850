"""How an answer is written out, apart from what it says. Pure.

A *dialect* is one of the four forms in which clients want answers: Ollama's chat and generate,
OpenAI's chat and completions. Each has a stream and a whole form. This file has Ollama's two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from ollamalab.embedded.events import Call, Ending, Piece
from ollamalab.protocol.bodies import error_body
from ollamalab.protocol.durations import utc_stamp

JSON_TYPE = "application/json; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"

_json = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer with what only the front knows of it.

    Attributes:
        ending: What the engine said at the end.
        total_ns: From the request's arrival to the engine's last event.
        load_ns: From the request's arrival until its model was scheduled.
        context: Tokens of prompt and answer, for generate's ``context``; empty if not wanted.
    """

    ending: Ending
    total_ns: int = 0
    load_ns: int = 0
    context: tuple[int, ...] = ()


class Dialect(Protocol):
    """Writes one answer; times are nanoseconds since 1970.

    Attributes:
        stream_type: Content type of a stream.
        whole_type: Content type of an answer in one piece.
        is_bare_streamed: Whether an answer without text (a load) is a stream if one was asked for.
    """

    stream_type: str
    whole_type: str
    is_bare_streamed: bool

    def piece(self, piece: Piece, now_ns: int) -> bytes:
        """Return the stream's next bytes."""
        ...

    def ending(self, finished: Finished, now_ns: int) -> bytes:
        """Return the stream's last bytes."""
        ...

    def failure(self, message: str) -> bytes:
        """Return the last bytes of a stream that breaks off."""
        ...

    def whole(self, finished: Finished, now_ns: int) -> bytes:
        """Return the answer in one piece; the ending's piece holds all of it."""
        ...


class _OllamaLines:
    """What Ollama's two dialects share: NDJSON with the model's name and a time in each line."""

    stream_type = NDJSON_TYPE
    whole_type = JSON_TYPE
    is_bare_streamed = False

    #: What stands round the text in the common line, one piece of plain text.
    _around = (b"", b"")

    def __init__(self, model: str) -> None:
        """Take the model's name as the client wrote it."""
        self._head = b'{"model":' + _json(model) + b',"created_at":"'

    def piece(self, piece: Piece, now_ns: int) -> bytes:
        """Return the stream's next line."""
        if piece.thinking or piece.logprobs:
            return self._line({**self._answer(piece), "done": False, **_logprobs(piece)}, now_ns)
        # The common case, once per token, without building objects.
        before, after = self._around
        return b"%b%b%b%b%b" % (
            self._head,
            utc_stamp(now_ns).encode(),
            before,
            _json(piece.content),
            after,
        )

    def ending(self, finished: Finished, now_ns: int) -> bytes:
        """Return the stream's last line."""
        raise NotImplementedError

    def failure(self, message: str) -> bytes:
        """Return the line that ends a broken stream."""
        return _json(error_body(message)) + b"\n"

    def whole(self, finished: Finished, now_ns: int) -> bytes:
        """Return the answer as one object, without a newline."""
        return self.ending(finished, now_ns)[:-1]

    def _answer(self, piece: Piece, calls: tuple[Call, ...] = ()) -> dict[str, Any]:
        raise NotImplementedError

    def _line(self, fields: dict[str, Any], now_ns: int) -> bytes:
        return self._head + utc_stamp(now_ns).encode() + b'",' + _json(fields)[1:] + b"\n"


class OllamaChat(_OllamaLines):
    """Lines of ``/api/chat``."""

    _around = (b'","message":{"role":"assistant","content":', b'},"done":false}\n')

    def ending(self, finished: Finished, now_ns: int) -> bytes:
        """Return the stream's last line."""
        ending = finished.ending
        fields = {
            **self._answer(ending.piece, ending.calls),
            "done": True,
            "done_reason": ending.done_reason,
            **_logprobs(ending.piece),
            **_metrics(finished),
        }
        return self._line(fields, now_ns)

    def _answer(self, piece: Piece, calls: tuple[Call, ...] = ()) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.content}
        if piece.thinking:
            message["thinking"] = piece.thinking
        if calls:
            message["tool_calls"] = [_call(call) for call in calls]
        return {"message": message}


class OllamaGenerate(_OllamaLines):
    """Lines of ``/api/generate``."""

    _around = (b'","response":', b',"done":false}\n')

    def ending(self, finished: Finished, now_ns: int) -> bytes:
        """Return the stream's last line."""
        ending = finished.ending
        fields = {
            **self._answer(ending.piece),
            "done": True,
            "done_reason": ending.done_reason,
            **({"context": finished.context} if finished.context else {}),
            **_metrics(finished),
            **_logprobs(ending.piece),
        }
        return self._line(fields, now_ns)

    def _answer(self, piece: Piece, calls: tuple[Call, ...] = ()) -> dict[str, Any]:  # noqa: ARG002
        thinking = {"thinking": piece.thinking} if piece.thinking else {}
        return {"response": piece.content, **thinking}


def _call(call: Call) -> dict[str, Any]:
    named = {"id": call.id} if call.id else {}
    return {**named, "function": {"index": call.index, "name": call.name, "arguments": call.arguments}}


def _logprobs(piece: Piece) -> dict[str, Any]:
    return {"logprobs": piece.logprobs} if piece.logprobs else {}


def _metrics(finished: Finished) -> dict[str, int]:
    """Return the six metrics in nanoseconds; zero ones are left out, as Go does."""
    ending = finished.ending
    metrics = {
        "total_duration": finished.total_ns,
        "load_duration": finished.load_ns,
        "prompt_eval_count": ending.prompt_tokens,
        "prompt_eval_duration": ending.prompt_ns,
        "eval_count": ending.eval_tokens,
        "eval_duration": ending.eval_ns,
    }
    return {name: value for name, value in metrics.items() if value}
