"""Sends a request through the parts and its answer back to the client, line by line."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from ollamalab.batching import BatchTally, StreamBatcher
from ollamalab.cache.policy import refuse_if_only_cached
from ollamalab.errors import BadReply, OllamaLabError, WaitTimeout
from ollamalab.gateway.exchange import Exchange
from ollamalab.gateway.failures import error_line, failure_of
from ollamalab.gateway.framing import write_frames
from ollamalab.protocol.calls import CACHE_HEADER, QUEUE_HEADER, QUEUED, TIMING_HEADER, Call, call_of
from ollamalab.protocol.endpoints import Kind
from ollamalab.protocol.lines import StreamTail
from ollamalab.protocol.upstream import Reply, Request, Upstream, pour, whole_of
from ollamalab.settings import BatchSettings

_OK = 200
_SHOWN_S = 0.000_005  # less is 0.00 ms
_PAST_ITS_DEADLINE = "the deadline of this request passed; see X-Ollamalab-Deadline-Ms"


class Relay:
    """Carries requests to the parts and answers to clients.

    Args:
        upstream: The parts, wrapped.
        has_cache: Whether one of them is a cache, for what the cache header says without its help.
        batch: How the lines of streams are grouped.

    Attributes:
        batched: What went through the batchers of all streams.
    """

    def __init__(self, upstream: Upstream, *, has_cache: bool, batch: BatchSettings | None = None) -> None:
        self._upstream = upstream
        self._has_cache = has_cache
        self._no_cache_word = "bypass" if has_cache else "off"
        self._batch = batch or BatchSettings()
        self.batched = BatchTally()

    async def answer(self, request: Request, exchange: Exchange) -> None:
        """Answer one request; what the parts raise becomes an answer too."""
        call = request.call or call_of(request)
        try:
            if call.cache_control and not self._has_cache:
                refuse_if_only_cached(call)
            if call.deadline_s is None:
                rest = self._begin(await self._upstream.send(request), request, call, exchange)
                if rest is not None:
                    await rest
            else:
                await self._answer_in_time(request, call, exchange, call.deadline_s)
        except OllamaLabError as error:
            headers: dict[str, str] = {}
            self._explain(headers, call, exchange)
            fail(error, exchange, is_openai=call.endpoint.is_openai, headers=headers)

    async def _answer_in_time(
        self, request: Request, call: Call, exchange: Exchange, deadline_s: float
    ) -> None:
        try:
            async with asyncio.timeout(max(0.0, deadline_s - time.perf_counter())):
                rest = self._begin(await self._upstream.send(request), request, call, exchange)
                if rest is not None:
                    await rest
        except TimeoutError as error:
            raise WaitTimeout(_PAST_ITS_DEADLINE) from error

    def _begin(
        self, reply: Reply, request: Request, call: Call, exchange: Exchange
    ) -> Coroutine[Any, Any, None] | None:
        """Pass a reply on that has come whole; return what passes on another."""
        is_stream = call.is_stream and call.endpoint.kind is Kind.GENERATION and reply.status == _OK
        body = None if is_stream or request.method == "HEAD" else whole_of(reply)
        if body is None:
            return self._pass(reply, call, exchange, is_stream=is_stream)
        self._explain(reply.headers, call, exchange)
        exchange.whole(reply.status, reply.headers, body)
        return None

    async def _pass(self, reply: Reply, call: Call, exchange: Exchange, *, is_stream: bool) -> None:
        async with reply:
            self._explain(reply.headers, call, exchange)
            # Of a stream no length is announced, so that an error can always be its last line.
            exchange.start(reply.status, reply.headers, length=None if is_stream else _length(reply))
            if is_stream:
                await self._pass_stream(reply, call, exchange)
            else:
                await pour(reply, exchange.take)
            is_broken = exchange.tail is not None and exchange.tail.is_error
            exchange.end(BadReply("the server ended the stream with an error") if is_broken else None)

    async def _pass_stream(self, reply: Reply, call: Call, exchange: Exchange) -> None:
        is_openai = call.endpoint.is_openai
        tail = exchange.tail = StreamTail(is_openai=is_openai)
        if self._batch.is_off:
            await pour(reply, exchange.take)
        else:
            batcher = StreamBatcher(self._batch, is_openai=is_openai, tally=self.batched)
            await write_frames(reply, batcher, exchange, call)
        if not (tail.is_whole or tail.is_error):
            raise BadReply("the server ended the stream without its final line; the answer is not complete")

    def _explain(self, headers: dict[str, str], call: Call, exchange: Exchange) -> None:
        """Add what the gateway says on inference replies, its own errors included."""
        if not call.endpoint.names_model:
            return
        if CACHE_HEADER not in headers:
            headers[CACHE_HEADER] = call.cache_outcome or self._no_cache_word
        if QUEUE_HEADER not in headers:
            headers[QUEUE_HEADER] = f"{call.ledger.get(QUEUED, 0.0) * 1000:.1f}"
        timing = ""
        for part, seconds in call.ledger.items():
            timing += f"{part};dur={seconds * 1000:.2f}, " if seconds >= _SHOWN_S else f"{part};dur=0.00, "
        total_s = time.perf_counter() - exchange.incoming.received_s
        headers[TIMING_HEADER] = f"{timing}total;dur={total_s * 1000:.2f}"


def fail(
    error: OllamaLabError, exchange: Exchange, *, is_openai: bool, headers: Mapping[str, str] | None = None
) -> None:
    """Tell the client what went wrong: by a status, by a last line, or else by breaking off.

    Args:
        error: What went wrong.
        exchange: The answer, begun or not.
        is_openai: Whether the client speaks ``/v1``.
        headers: What else to say with a status.
    """
    if not exchange.is_started:
        failure = failure_of(error, is_openai=is_openai)
        exchange.whole(failure.status, {**failure.headers, **(headers or {})}, failure.body, error)
    elif exchange.tail is not None and exchange.length is None:
        line = error_line(
            error,
            is_openai=is_openai,
            is_mid_line=exchange.tail.is_mid_line,
            names_events=exchange.call is not None and exchange.call.endpoint.names_events,
        )
        exchange.write(line)
        exchange.end(error)
    else:
        exchange.cut(error)


def _length(reply: Reply) -> int | None:
    text = reply.headers.get("content-length", "")
    return int(text) if text.isdigit() else None
