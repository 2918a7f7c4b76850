"""One request as it was seen on the wire, and the record made of it afterwards.

While a reply arrives, only raw reads and their moments are kept: a line is stamped by the read that
completes it, and nothing is parsed that could delay the stamp of another stream. The record is made
when the request has ended.
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
        index: Position in the plan, from 0.
        request: As sent.
        intended_s: When the plan wanted it sent; in a closed loop, when a client was free.
        is_warmup: Whether it is left out of every figure.
        sent_s: When it was handed to the Upstream.
        connected_s: When a new connection stood, where the Upstream tells.
        sent_end_s: When its last byte was out, where the Upstream tells.
        status: HTTP status; None if no reply began.
        headers_s: When status and headers were there.
        reads: Every read of the body with its moment, in order.
        end_s: When the body ended or the failure came.
        failure: What ended it early; None for a body that ended by itself.
        is_cancelled: Whether we gave up on purpose.
    """

    index: int
    request: Request
    intended_s: float
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

    def record(self, target: str) -> RequestRecord:
        """Return what happened, read from the raw bytes.

        Args:
            target: URL of the server, for the record.
        """
        asked = _json_object(self.request.body) or {}
        reply = _Reply()
        if self.status is not None and self.status < _FIRST_BAD_STATUS:
            for position, at_s, line in self._lines():
                reply.read(position, at_s, line)
        outcome, error = self._judge(reply)
        final = reply.final or {}
        ended_s = reply.final_s if outcome in (Outcome.OK, Outcome.EMPTY) else self.end_s
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
            first_token_s=reply.token_times_s[0] if reply.token_times_s else None,
            last_token_s=reply.token_times_s[-1] if reply.token_times_s else None,
            end_s=ended_s,
            token_times_s=tuple(reply.token_times_s),
            shared_reads=reply.shared_reads,
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
        if splitter.rest().strip():  # a single object has no newline at its end
            yield len(self.reads) - 1, self.reads[-1][0], splitter.rest()

    def _judge(self, reply: _Reply) -> tuple[Outcome, str | None]:
        """Return the outcome and the error in one line."""
        if self.status is not None and self.status >= _FIRST_BAD_STATUS:
            text = error_text(b"".join(chunk for _, chunk in self.reads))
            return Outcome.HTTP_ERROR, f"HTTP {self.status}: {text}"
        if reply.error is not None:
            return Outcome.ERROR_LINE, reply.error
        if reply.final is not None:
            return (Outcome.OK if reply.token_times_s else Outcome.EMPTY), None
        if self.is_cancelled:
            return Outcome.CANCELLED, "given up: the run was stopped"
        if isinstance(self.failure, UpstreamUnavailable):
            return Outcome.REFUSED, _one_line(str(self.failure))
        if isinstance(self.failure, UpstreamTimeout):
            return Outcome.TIMEOUT, _one_line(str(self.failure))
        return Outcome.TRUNCATED, _one_line(str(self.failure or "the stream ended without done: true"))


@dataclass(slots=True)
class _Reply:
    """What the lines of one reply said so far."""

    token_times_s: list[float] = field(default_factory=list)
    shared_reads: int = 0
    final: dict[str, Any] | None = None
    final_s: float | None = None
    error: str | None = None
    _last_position: int = -1

    def read(self, position: int, at_s: float, line: bytes) -> None:
        """Take in one line, completed by read number ``position``."""
        said = _json_object(line)
        if said is None:
            shown = line[:_MAX_ERROR_CHARACTERS].decode(errors="replace")
            self.error = self.error or f"a line is not a JSON object: {shown!r}"
            return
        if "error" in said:
            self.error = self.error or _one_line(str(said["error"]))
            return
        if content_of(said):
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
    return _one_line(str(error) if error else body.decode(errors="replace") or "no text")


def _one_line(text: str) -> str:
    joined = " ".join(text.split())
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
