"""One request as it was seen on the wire, and what is read from it afterwards.

While a reply arrives, only raw reads and their moments are kept: a line is stamped by the read that
completes it, and nothing is parsed that could delay the stamp of another stream. The load generator
and the staged client both read a reply this way, when it has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ollamalab.errors import BadReply, UpstreamError, UpstreamTimeout, UpstreamUnavailable
from ollamalab.protocol.lines import LineSplitter, content_of, timings_of
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome, RequestRecord

_MAX_ERROR_CHARACTERS = 200
_FIRST_BAD_STATUS = 300  # redirects are not followed, so they are no answer either


@dataclass(kw_only=True, slots=True)
class Capture:
    """What was seen of one request; moments are ``time.perf_counter``.

    Attributes:
        request: As sent.
        intended_s: When the plan wanted it sent; in a closed loop, when a client was free.
        index: Position in the plan, from 0.
        is_warmup: Whether it is left out of every figure.
        sent_s: When it was handed to the connection.
        connected_s: When a new connection stood; None on a reused one, or where nobody tells.
        sent_end_s: When its last byte was out; None where nobody tells.
        status: HTTP status; None if no reply began.
        headers_s: When status and headers were there.
        reads: Every read of the body with its moment, in order.
        end_s: When the body ended or the failure came.
        failure: What ended it early; None for a body that ended by itself.
        is_cancelled: Whether we gave up on purpose.
    """

    request: Request
    intended_s: float
    index: int = 0
    is_warmup: bool = False
    sent_s: float | None = None
    connected_s: float | None = None
    sent_end_s: float | None = None
    status: int | None = None
    headers_s: float | None = None
    reads: list[tuple[float, bytes]] = field(default_factory=list)
    end_s: float | None = None
    failure: UpstreamError | None = None
    is_cancelled: bool = False

    @property
    def body(self) -> bytes:
        """The reply's body as far as it came."""
        return b"".join(chunk for _, chunk in self.reads)

    def read(self) -> Reading:
        """Return what the reply's lines say; nothing is read from an error's body."""
        reading = Reading()
        if self.status is not None and self.status < _FIRST_BAD_STATUS:
            for position, at_s, line in self._lines():
                reading.take(position, at_s, line)
        return reading

    def record(self, target: str, reading: Reading | None = None) -> RequestRecord:
        """Return what happened.

        Args:
            target: URL of the server, for the record.
            reading: What ``read`` gave, if that was called already.
        """
        said = reading or self.read()
        asked = _json_object(self.request.body) or {}
        final = said.final or {}
        outcome, error = self._judge(said)
        return RequestRecord(
            index=self.index,
            target=target,
            model=str(asked.get("model", "")),
            outcome=outcome,
            status=self.status,
            error=error,
            intended_s=self.intended_s,
            sent_s=self.sent_s,
            connected_s=self.connected_s,
            sent_end_s=self.sent_end_s,
            headers_s=self.headers_s,
            first_token_s=said.token_times_s[0] if said.token_times_s else None,
            last_token_s=said.token_times_s[-1] if said.token_times_s else None,
            end_s=said.final_s if outcome in (Outcome.OK, Outcome.EMPTY) else self.end_s,
            token_times_s=tuple(said.token_times_s),
            shared_reads=said.shared_reads,
            output_tokens=final.get("eval_count"),
            prompt_tokens=final.get("prompt_eval_count"),
            requested_tokens=_requested_tokens(asked),
            done_reason=final.get("done_reason"),
            server=timings_of(final) if final else None,
            warmup=self.is_warmup,
        )

    def _lines(self) -> Iterator[tuple[int, float, bytes]]:
        """Give each line with number and moment of the read that completed it."""
        splitter = LineSplitter()
        try:
            for position, (at_s, chunk) in enumerate(self.reads):
                for line in splitter.feed(chunk):
                    yield position, at_s, line
        except BadReply as error:
            self.failure = self.failure or error
            return
        is_to_the_end = self.failure is None and not self.is_cancelled
        if is_to_the_end and splitter.rest().strip():  # a single object has no newline at its end
            yield len(self.reads) - 1, self.reads[-1][0], splitter.rest()

    def _judge(self, said: Reading) -> tuple[Outcome, str | None]:
        """Return the outcome and the error in one line."""
        if self.status is not None and self.status >= _FIRST_BAD_STATUS:
            return Outcome.HTTP_ERROR, f"HTTP {self.status}: {error_text(self.body)}"
        if said.error is not None:
            return Outcome.ERROR_LINE, said.error
        if said.final is not None:
            return (Outcome.OK if said.token_times_s else Outcome.EMPTY), None
        if self.is_cancelled:
            return Outcome.CANCELLED, "given up: the run was stopped"
        if isinstance(self.failure, UpstreamUnavailable):
            return Outcome.REFUSED, _one_line(str(self.failure))
        if isinstance(self.failure, UpstreamTimeout):
            return Outcome.TIMEOUT, _one_line(str(self.failure))
        return Outcome.TRUNCATED, _one_line(str(self.failure or "the stream ended without done: true"))


@dataclass(slots=True)
class Reading:
    """What the lines of one reply say.

    Attributes:
        texts: Content and thinking of each line that had any, in order.
        token_times_s: Arrival of each of those.
        shared_reads: How many of those came in the same read as an earlier one.
        line_times_s: Arrival of every line, the final one included.
        final: The line with ``done: true``; None if none came.
        final_s: Its arrival.
        error: Text of an error line, or of a line that is no JSON object; None without one.
    """

    texts: list[str] = field(default_factory=list)
    token_times_s: list[float] = field(default_factory=list)
    shared_reads: int = 0
    line_times_s: list[float] = field(default_factory=list)
    final: dict[str, Any] | None = None
    final_s: float | None = None
    error: str | None = None
    _last_position: int = -1

    def take(self, position: int, at_s: float, line: bytes) -> None:
        """Take in one line, completed by read number ``position``."""
        self.line_times_s.append(at_s)
        said = _json_object(line)
        if said is None:
            shown = _one_line(line.decode(errors="replace"))
            self.error = self.error or f"a line is not a JSON object: {shown!r}"
            return
        if "error" in said:
            self.error = self.error or _one_line(str(said["error"]))
            return
        if text := content_of(said):
            self.texts.append(text)
            self.token_times_s.append(at_s)
            self.shared_reads += position == self._last_position
            self._last_position = position
        if said.get("done") is True:
            self.final, self.final_s = said, at_s


def error_text(body: bytes) -> str:
    """Return what an error body says, in one line: Ollama's text, OpenAI's message, or its beginning."""
    error = (_json_object(body) or {}).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    return _one_line(str(error) if error else body.decode(errors="replace")) or "no text"


def _one_line(text: str) -> str:
    joined = " ".join(text[: 10 * _MAX_ERROR_CHARACTERS].split())
    return joined if len(joined) <= _MAX_ERROR_CHARACTERS else f"{joined[:_MAX_ERROR_CHARACTERS]}…"


def _json_object(text: bytes) -> dict[str, Any] | None:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


def _requested_tokens(asked: Mapping[str, Any]) -> int | None:
    options = asked.get("options")
    wanted = options.get("num_predict") if isinstance(options, dict) else None
    return wanted if isinstance(wanted, int) and wanted > 0 else None
