"""How a kept answer is given again: in the form that is asked for, with the asker's spelling of the model.

Under ``/api`` every line gets a fresh ``created_at``; the durations of the final line stay those of the
real answer. What an answer looks like in a form is worked out at its first replay and stays with it, so
that a later one is a single join.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from enum import Enum
from types import TracebackType
from typing import Any, Self

import msgspec

from ollamalab.cache import ndjson, sse
from ollamalab.cache.entry import Answer
from ollamalab.protocol.calls import Call
from ollamalab.protocol.durations import NS_PER_S, utc_stamp

_json = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder(dict[str, Any]).decode

#: How every line of Ollama begins, up to the time itself.
_FRONT = re.compile(rb'(\{"model":"(?:[^"\\]|\\.)*","created_at":")[^"]*"')
_MODEL = b'"model":'


class Form(Enum):
    """What a request wants its answer to look like."""

    WHOLE = "whole"  #: one object
    STREAM = "stream"  #: lines, or events
    STREAM_WITH_USAGE = "stream with usage"  #: only under ``/v1``


def form_of(call: Call) -> Form:
    """Return the form that a call asks for."""
    if not call.is_stream:
        return Form.WHOLE
    if call.endpoint.is_openai and sse.wants_usage(call.fields):
        return Form.STREAM_WITH_USAGE
    return Form.STREAM


class Prepared:
    """An answer in one form, cut wherever the model's name and ``created_at`` go in.

    Attributes:
        is_stream: Whether that form is a stream.
        content_type: Of that form; as it came if it came in it.
        offsets_s: Seconds from the first piece to each, as recorded; all 0 if it came in another form.
    """

    __slots__ = ("_is_openai", "_parts", "_segments", "content_type", "is_stream", "offsets_s")

    def __init__(
        self, answer: Answer, pieces: Sequence[bytes], offsets_s: Sequence[float], *, is_stream: bool
    ) -> None:
        self._is_openai = is_openai = answer.is_openai
        dialect = sse if is_openai else ndjson
        usual_type = dialect.STREAM_TYPE if is_stream else dialect.WHOLE_TYPE
        is_as_it_came = is_stream is answer.is_stream
        self.content_type = answer.headers.get("content-type", usual_type) if is_as_it_came else usual_type
        self.is_stream = is_stream
        self.offsets_s = offsets_s
        self._parts = _cut_events(pieces) if is_openai else _cut_lines(pieces)
        self._segments = [b""]
        for first, *rest in self._parts:
            self._segments[-1] += first
            self._segments += rest

    def body(self, model: str, now_ns: int) -> bytes:
        """Return all of it.

        Args:
            model: As the client spelled it.
            now_ns: Unix time.
        """
        return self._between(model, now_ns).join(self._segments)

    def piece(self, index: int, model: str, now_ns: int) -> bytes:
        """Return one piece."""
        return self._between(model, now_ns).join(self._parts[index])

    def _between(self, model: str, now_ns: int) -> bytes:
        if self._is_openai:
            return _json(model)
        return b'{"model":%b,"created_at":"%b"' % (_json(model), utc_stamp(now_ns).encode())


def _cut_lines(lines: Sequence[bytes]) -> list[list[bytes]]:
    """Return lines of ``/api``, each cut at its begin, which is always the model and the time."""
    front = _FRONT.match(lines[0])
    begin = front[1] if front else b" "
    parts = []
    for line in lines:
        if line.startswith(begin):
            parts.append([b"", line[line.index(b'"', len(begin)) + 1 :]])
            continue
        # Written in another order, or with spaces: a server that is not Ollama.
        fields = _parse(line)
        if isinstance(fields.pop("model", None), str) and isinstance(fields.pop("created_at", None), str):
            end = b"\n" if line.endswith(b"\n") else b""
            parts.append([b"", (b"," + _json(fields)[1:] if fields else b"}") + end])
        else:
            parts.append([line])
    return parts


def _cut_events(events: Sequence[bytes]) -> list[list[bytes]]:
    """Return pieces of ``/v1``, each cut at the model's name."""
    data = sse.data_of(events[0]) if events[0].startswith(b"data: ") else events[0]
    name = _json(_parse(data).get("model"))
    # As bytes this stands nowhere else: inside a text its quotes would be escaped.
    parts = [event.split(_MODEL + name) for event in events]
    return [[part + _MODEL for part in head] + [last] for *head, last in parts]


class Replay:
    """A Reply that repeats a kept answer.

    Attributes:
        status: 200; nothing else is kept.
        headers: Names in lower case.
    """

    def __init__(
        self, answer: Prepared, model: str, now_s: float, *, is_recorded: bool, age_s: float
    ) -> None:
        """Take an answer in the form that is asked for.

        Args:
            answer: What to repeat.
            model: As the client spelled it.
            now_s: Seconds since 1970; what ``created_at`` will say.
            is_recorded: Whether a stream's pieces come as far apart as they did, counted from the first.
            age_s: For how long it has been kept.
        """
        self.status = 200
        self.headers = {"content-type": answer.content_type, "age": str(max(0, int(age_s)))}
        self._answer = answer
        self._model = model
        self._now_ns = int(now_s * NS_PER_S)
        self._body = None if is_recorded and answer.is_stream else answer.body(model, self._now_ns)
        if self._body is not None and not answer.is_stream:
            self.headers["content-length"] = str(len(self._body))

    async def chunks(self) -> AsyncIterator[bytes]:
        """Give the body: at once in one piece, or each piece in its time."""
        if self._body is not None:
            yield self._body
            return
        started_s, started_ns = time.perf_counter(), self._now_ns
        for index, offset_s in enumerate(self._answer.offsets_s):
            wait_s = started_s + offset_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            yield self._answer.piece(index, self._model, started_ns + int(offset_s * NS_PER_S))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing is held."""


def prepared(answer: Answer, form: Form) -> Prepared | None:
    """Return an answer in a form; None if it lacks what that form tells, which makes it a miss."""
    found: Prepared | None = answer.prepared.get(form)
    if found is None and (pieces := _pieces_in(answer, form)):
        bodies, offsets_s = zip(*pieces, strict=True)
        found = Prepared(answer, bodies, offsets_s, is_stream=form is not Form.WHOLE)
        answer.prepared[form] = found
    return found


def _pieces_in(answer: Answer, form: Form) -> list[tuple[bytes, float]]:
    """Return the pieces of an answer in a form, each with its offset; none if it cannot be had."""
    if answer.is_stream is (form is not Form.WHOLE):
        pairs = list(zip(answer.pieces, answer.offsets_s, strict=True))
        if form is Form.STREAM_WITH_USAGE:
            return pairs if _tells_usage(answer.pieces) else []
        if form is Form.STREAM and answer.is_openai:
            bare = [(sse.without_usage(event), offset_s) for event, offset_s in pairs]
            return [pair for pair in bare if pair[0]]
        return pairs
    if form is Form.WHOLE:
        whole = sse.joined(answer.pieces) if answer.is_openai else ndjson.joined(answer.pieces)
        return [] if whole is None else [(whole, 0.0)]
    if not answer.is_openai:
        return [(line, 0.0) for line in ndjson.split(answer.pieces[0])]
    events = sse.split(answer.pieces[0], include_usage=form is Form.STREAM_WITH_USAGE)
    return [(event, 0.0) for event in events or ()]


def _tells_usage(events: Sequence[bytes]) -> bool:
    return len(events) > 1 and bool(_parse(sse.data_of(events[-2])).get("usage"))
