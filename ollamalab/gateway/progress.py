"""Gives an upstream up when it makes no progress: a limit for answers, a longer one for loads.

Progress is a byte. An upstream that sends none is stuck, or it is loading a model, which says nothing
until the first byte and may take minutes. Which of the two it is, it is asked only when it matters:
when the shorter limit has passed without a first byte. It loads

- if ``/api/ps`` does not list the model: Ollama since v0.30 lists it only once it is loaded (seen with
  v0.33: an empty list during the load); or
- if the model has not answered since with the same load-time options: other options are another load,
  and older versions list a model while it is still loading.

All else is wrong on the patient side: a model that loads under another of its names, one that answered
before this gateway was started. After the first byte only the limit for answers counts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import msgspec

from ollamalab.cluster.interruption import Interruption
from ollamalab.errors import (
    OllamaLabError,
    SettingsError,
    UpstreamError,
    UpstreamTimeout,
)
from ollamalab.protocol.calls import Call, call_of
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.options import load_options
from ollamalab.protocol.upstream import Reply, Request, Sink, Upstream, pour, whole_of

logger = logging.getLogger(__name__)

#: ``/api/ps`` may wait for the unload of another model, up to 5 s.
LISTING_TIMEOUT_S = 10.0

_SWEEP_INTERVAL_S = 1.0
_OK = 200
_DEFAULT_OPTIONS: tuple[Any, ...] = ({}, None)


class Residents:
    """Which models an upstream is known to hold, and how they were loaded. Pure."""

    def __init__(self) -> None:
        self._loaded: dict[str, tuple[Any, ...]] = {}

    def note_answer(self, call: Call) -> None:
        """Take note that a model has begun to answer: it is loaded, as the call wants it."""
        self._loaded[call.model_key] = _load_options(call)

    def is_loading(self, call: Call, listed: frozenset[str]) -> bool:
        """Return whether a call that has no first byte yet waits for a load.

        Args:
            call: It names a model.
            listed: Models that the upstream says are loaded (``ModelName.key``).
        """
        if call.model_key not in listed:
            self._loaded.pop(call.model_key, None)
            return True
        return self._loaded.get(call.model_key) != _load_options(call)


def _load_options(call: Call) -> tuple[Any, ...]:
    fields = call.fields
    if "options" not in fields and "shift" not in fields:
        return _DEFAULT_OPTIONS
    return load_options(call.options), fields.get("shift")


class Progress:
    """An Upstream in front of another, which it gives up when no byte comes for too long.

    One timer looks at all waits about once a second, so that a chunk costs no timer of its own, and a
    timeout may come so much later.

    Args:
        upstream: The one to watch.
        name: What messages call it.
        request_timeout_s: Longest wait for the first byte, and between two.
        load_timeout_s: Longest wait for the first byte while a model loads.
        clock: Seconds, monotonic.

    Raises:
        SettingsError: A timeout that is not > 0.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        name: str = "the server",
        request_timeout_s: float = 120.0,
        load_timeout_s: float = 300.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not (request_timeout_s > 0 and load_timeout_s > 0):
            raise SettingsError(f"timeouts must be > 0, got {request_timeout_s!r} and {load_timeout_s!r}")
        self._upstream = upstream
        self._name = name
        self._request_timeout_s = request_timeout_s
        self._load_timeout_s = load_timeout_s
        self._least_limit_s = min(request_timeout_s, load_timeout_s)
        self._clock = clock
        self._residents = Residents()
        self._waits: set[_Wait] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def send(self, request: Request) -> Reply:
        """Send one request; return when status and headers are there.

        Raises:
            UpstreamTimeout: They did not come in time.
            UpstreamError: As the upstream does.
        """
        call = request.call or call_of(request)
        names_model = call.endpoint.names_model
        wait = _Wait(
            call=call,
            limit_s=self._least_limit_s if names_model else self._request_timeout_s,
            may_load=names_model,
        )
        self._waits.add(wait)
        if self._timer is None or self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._set_timer(self._loop)
        wait.guard(self._loop)
        wait.since_s = self._clock()
        try:
            reply = await self._upstream.send(request)
        except BaseException as error:
            self._waits.discard(wait)
            is_given_up, wait.since_s = wait.is_given_up_by(error), None
            if wait.asking is not None:
                await wait.stop_asking()
            if is_given_up:
                raise self._timeout(wait) from error
            raise
        wait.since_s = None
        if wait.asking is not None:
            try:
                await wait.stop_asking()
            except BaseException as error:  # the client has gone: nobody else would leave the reply
                self._waits.discard(wait)
                await reply.__aexit__(type(error), error, None)
                raise
        if names_model and reply.status == _OK:
            self._residents.note_answer(call)
        if whole_of(reply) is not None:  # nothing is left to wait for
            self._waits.discard(wait)
            return reply
        wait.may_load = wait.is_loading = False
        wait.limit_s = self._request_timeout_s
        return _WatchedReply(reply, self, wait)

    async def chunks(self, reply: Reply, wait: _Wait) -> AsyncIterator[bytes]:
        """Give the body of a reply, as long as it goes on."""
        clock = self._clock
        with self._watching(wait):
            async for chunk in reply.chunks():
                wait.since_s = None  # from here on the reader is to be waited for
                yield chunk
                wait.since_s = clock()

    async def pour(self, reply: Reply, wait: _Wait, sink: Sink) -> None:
        """Give the body of a reply to a sink, as long as it goes on."""
        clock = self._clock

        def watched(chunk: bytes) -> asyncio.Future[None] | None:
            lag = sink(chunk)
            if lag is None:
                wait.since_s = clock()
            else:  # the reader is to be waited for
                wait.since_s = None
                lag.add_done_callback(caught_up)
            return lag

        def caught_up(_lag: asyncio.Future[None]) -> None:
            wait.since_s = clock()

        with self._watching(wait):
            await pour(reply, watched)

    @contextmanager
    def _watching(self, wait: _Wait) -> Iterator[None]:
        """Watch what the block waits for."""
        wait.begin(self._clock(), self._loop)
        try:
            yield
        except (asyncio.CancelledError, UpstreamError) as error:
            if wait.is_given_up_by(error):
                raise self._timeout(wait) from error
            raise
        finally:
            wait.since_s = None

    def leave(self, wait: _Wait) -> None:
        """Watch a reply no longer."""
        self._waits.discard(wait)

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        interval_s = min(_SWEEP_INTERVAL_S, self._request_timeout_s / 4, self._load_timeout_s / 4)
        self._timer = loop.call_later(interval_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look at every wait; look again later if there are any."""
        self._timer = None
        now_s = self._clock()
        for wait in list(self._waits):
            self._check(wait, now_s)
        if self._waits:
            self._set_timer(loop)

    def _check(self, wait: _Wait, now_s: float) -> None:
        if wait.since_s is None or now_s - wait.since_s < wait.limit_s:
            return
        if not wait.may_load:
            wait.give_up()
        elif wait.asking is None:
            wait.asking = asyncio.get_running_loop().create_task(self._ask(wait))

    async def _ask(self, wait: _Wait) -> None:
        """Find out whether a request waits for a load, and set its limit accordingly."""
        listed = await self._listed()
        wait.is_loading = listed is not None and self._residents.is_loading(wait.call, listed)
        wait.limit_s = self._load_timeout_s if wait.is_loading else self._request_timeout_s
        wait.may_load = False
        self._check(wait, self._clock())

    async def _listed(self) -> frozenset[str] | None:
        """Return the models that ``/api/ps`` lists; None if it does not say, which no loading server does."""
        try:
            async with (
                asyncio.timeout(LISTING_TIMEOUT_S),
                await self._upstream.send(Request(method="GET", path="/api/ps")) as reply,
            ):
                body = b"".join([chunk async for chunk in reply.chunks()])
            models = msgspec.json.decode(body, type=_Listing).models
            return frozenset(parse_name(model.name).key for model in models)
        except (TimeoutError, msgspec.MsgspecError, OllamaLabError) as error:
            logger.warning("event=listing_failed upstream=%s error=%s", self._name, type(error).__name__)
            return None

    def _timeout(self, wait: _Wait) -> UpstreamTimeout:
        if wait.is_loading:
            text = f"{self._name} sent nothing in {wait.limit_s:g} s and still loads {wait.call.model}"
        else:
            text = f"{self._name} sent nothing in {wait.limit_s:g} s; is it overloaded or stuck?"
        return UpstreamTimeout(text, after_s=wait.limit_s)


class _Model(msgspec.Struct):
    name: str


class _Listing(msgspec.Struct):
    models: list[_Model]


class _Wait(Interruption, eq=False, kw_only=True):
    """One request's waiting for bytes.

    Attributes:
        call: The request.
        limit_s: Longest wait.
        may_load: Whether the limit is one after which to ask what the upstream is doing.
        since_s: Since when its task waits; None while it does not.
        is_loading: Whether the limit is that of a load.
        asking: Asks.
    """

    call: Call
    limit_s: float
    may_load: bool
    since_s: float | None = None
    is_loading: bool = False
    asking: asyncio.Task[None] | None = None

    def begin(self, now_s: float, loop: asyncio.AbstractEventLoop | None) -> None:
        """The current task waits from now on."""
        self.guard(loop)
        self.since_s = now_s

    async def stop_asking(self) -> None:
        """End the question, if one is being asked: its answer is of no more use."""
        if self.asking is not None:
            self.asking.cancel()
            await asyncio.gather(self.asking, return_exceptions=True)
            self.asking = None


class _WatchedReply:
    """A reply whose chunks have to come in time."""

    __slots__ = ("_progress", "_reply", "_wait", "headers", "status")

    def __init__(self, reply: Reply, progress: Progress, wait: _Wait) -> None:
        self.status = reply.status
        self.headers = reply.headers
        self._reply = reply
        self._progress = progress
        self._wait = wait

    def chunks(self) -> AsyncIterator[bytes]:
        """Give the body as it arrives.

        Raises:
            UpstreamTimeout: Nothing came for too long.
            UpstreamError: As the upstream does.
        """
        return self._progress.chunks(self._reply, self._wait)

    async def pour(self, sink: Sink) -> None:
        """Give the body to a sink; raises what ``chunks`` raises."""
        await self._progress.pour(self._reply, self._wait, sink)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.leave(self._wait)
        await self._reply.__aexit__(kind, error, trace)
