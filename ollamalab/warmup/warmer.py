"""Keeps models warm on several upstreams: asks what is loaded, sends what the keepers decide, counts."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self

from ollamalab.errors import ModelNotFound, OllamaLabError
from ollamalab.protocol.calls import Call
from ollamalab.protocol.loaded import LoadedModel
from ollamalab.protocol.upstream import Upstream
from ollamalab.settings.warmup import WarmupSettings
from ollamalab.warmup.asking import list_loaded, send_preload
from ollamalab.warmup.controller import Decision
from ollamalab.warmup.keeper import Keeper, Visit
from ollamalab.warmup.ledger import Totals
from ollamalab.warmup.preload import Preload

logger = logging.getLogger(__name__)

#: Between two looks at an upstream, give or take a fifth.
POLL_S = 10.0
_JITTER_RATIO = 0.2

#: The same while it does not answer: what it had in memory is wanted again once it is back.
_RETRY_S = 2.0

#: ``/api/ps`` may wait for the unload of another model, up to 5 s.
_LISTING_TIMEOUT_S = 10.0

#: A server's clock that is off by more is corrected by its ``Date`` header, which knows whole seconds.
_CLOCK_TOLERANCE_S = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelStatistics:
    """One model on one upstream.

    Attributes:
        upstream: Name of the upstream.
        model: As requests last spelled it.
        is_resident: Whether it is in memory, as far as is known.
        expires_in_s: When it goes if nothing more comes; None if it is in use, stays for ever, or is gone.
        load_s: Seconds of its last load; None if none was seen.
        totals: What keeping it has saved and cost.
    """

    upstream: str
    model: str
    is_resident: bool
    expires_in_s: float | None
    load_s: float | None
    totals: Totals


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupStatistics:
    """The ledger: of everything, and of each model; former upstreams are in the totals only."""

    totals: Totals
    models: tuple[ModelStatistics, ...]


@dataclass(eq=False, slots=True)
class _Member:
    """One upstream and what runs for it."""

    name: str
    upstream: Upstream
    keeper: Keeper
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    is_reachable: bool = True
    look: asyncio.Event = field(default_factory=asyncio.Event)  # set to look at it now


class Warmer:
    """Keeps models warm; used with ``async with``. One event loop, no threads.

    Requests are the traffic's: whoever sends them to an upstream says so (``begun``). Preloads and
    renewals go to the same upstream, below whatever counts the traffic.

    Args:
        settings: Which models, and what holding them costs.
        clock: Monotonic seconds.
        unix_clock: Seconds since 1970, to compare with what servers write.
        rng: For jitter.
        poll_s: Between two looks at an upstream.
    """

    def __init__(
        self,
        settings: WarmupSettings,
        *,
        clock: Callable[[], float] = time.perf_counter,
        unix_clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._unix_clock = unix_clock
        self._rng = rng or random.Random()
        self._poll_s = poll_s
        self._members: dict[str, _Member] = {}
        self._former = Totals()
        self._group = asyncio.TaskGroup()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name in tuple(self._members):
            self.remove(name)
        await self._group.__aexit__(kind, error, trace)

    def take(self, settings: WarmupSettings) -> None:
        """Go by other settings from now on; what is known and counted stays."""
        if settings == self._settings:
            return
        self._settings = settings
        for member in self._members.values():
            member.keeper.take(settings)
            member.look.set()

    def set_upstreams(self, upstreams: Mapping[str, Upstream]) -> None:
        """Keep models of exactly these warm from now on; those that stay are not disturbed."""
        for name, member in tuple(self._members.items()):
            if upstreams.get(name) is not member.upstream:
                self.remove(name)
        for name, upstream in upstreams.items():
            if name not in self._members:
                self.add(name, upstream)

    def add(self, name: str, upstream: Upstream) -> None:
        """Keep models of one more upstream warm, from now on.

        Args:
            name: Of the upstream; none that is here already.
            upstream: Where preloads go. Its time limits must allow for a load.
        """
        member = self._members[name] = _Member(name, upstream, Keeper(self._settings))
        self._start(member, self._watch(member))

    def remove(self, name: str) -> None:
        """Leave an upstream alone; a load of ours that runs there is aborted."""
        member = self._members.pop(name)
        for task in member.tasks:
            task.cancel()
        for warmth in member.keeper.models.values():
            self._former.add(warmth.totals(self._clock()))

    def begun(self, name: str, call: Call) -> Visit | None:
        """Take note of a request that is sent to an upstream.

        Returns:
            What is to be told how it goes on; None if that is of no interest here.
        """
        member = self._members.get(name)
        if member is None or not call.model_key or not call.endpoint.names_model:
            return None
        return member.keeper.begun(call, self._clock)

    def statistics(self) -> WarmupStatistics:
        """Return what was saved and what it cost."""
        now_s = self._clock()
        totals = Totals()
        totals.add(self._former)
        models = []
        for member in self._members.values():
            for warmth in member.keeper.models.values():
                of_model = warmth.totals(now_s)
                totals.add(of_model)
                ends_s = math.inf if warmth.expires_s is None else warmth.expires_s
                models.append(
                    ModelStatistics(
                        upstream=member.name,
                        model=warmth.preload.model,
                        is_resident=warmth.is_resident,
                        expires_in_s=None if math.isinf(ends_s) else ends_s - now_s,
                        load_s=warmth.load_s,
                        totals=of_model,
                    )
                )
        return WarmupStatistics(totals=totals, models=tuple(models))

    async def look(self, name: str) -> None:
        """Ask an upstream what is loaded, and begin what is to be done there."""
        member = self._members[name]
        asked_s = self._clock()
        try:
            async with asyncio.timeout(_LISTING_TIMEOUT_S):
                listed, headers = await list_loaded(member.upstream)
        except (TimeoutError, OllamaLabError) as error:
            if member.is_reachable:
                logger.warning("event=warmup_blind upstream=%s error=%s", name, type(error).__name__)
            member.is_reachable = False
            return
        if not member.is_reachable:
            member.is_reachable = True
            member.keeper.restarted()
        member.keeper.listed(asked_s, listed, self._ends(listed, headers))
        while (decision := member.keeper.decide(self._clock())) is not None:
            preload = member.keeper.step_begun(decision, self._clock())
            self._start(member, self._do(member, decision, preload))

    def _ends(self, listed: tuple[LoadedModel, ...], headers: Mapping[str, str]) -> dict[str, float | None]:
        """Return until when each model stays, on our clock."""
        behind_s = self._clock() - _server_unix_s(headers, self._unix_clock())
        return {
            model.key: None if model.expires_unix_s is None else model.expires_unix_s + behind_s
            for model in listed
        }

    async def _watch(self, member: _Member) -> None:
        while True:
            member.look.clear()
            try:
                await self.look(member.name)
            except Exception:  # a gateway does without, rather than fall
                logger.exception("event=warmup_failed upstream=%s", member.name)
            spread = self._rng.uniform(1 - _JITTER_RATIO, 1 + _JITTER_RATIO)
            longest_s = self._poll_s if member.is_reachable else min(self._poll_s, _RETRY_S)
            with suppress(TimeoutError):
                async with asyncio.timeout(member.keeper.pause_s(self._clock(), longest_s * spread)):
                    await member.look.wait()

    async def _do(self, member: _Member, decision: Decision, preload: Preload) -> None:
        begun_s = self._clock()
        took_s: float | None = None
        try:
            await send_preload(member.upstream, preload)
            took_s = self._clock() - begun_s
            logger.info(
                "event=%s upstream=%s model=%s took_s=%.3f",
                decision.step,
                member.name,
                preload.model,
                took_s,
            )
        except OllamaLabError as error:
            level = logging.INFO if isinstance(error, ModelNotFound) else logging.WARNING
            logger.log(
                level,
                "event=%s_failed upstream=%s model=%s error=%s",
                decision.step,
                member.name,
                preload.model,
                error,
            )
        except Exception:
            logger.exception(
                "event=%s_failed upstream=%s model=%s", decision.step, member.name, preload.model
            )
        finally:
            member.keeper.step_ended(decision, self._clock(), took_s=took_s)

    def _start(self, member: _Member, work: Coroutine[None, None, None]) -> None:
        task = self._group.create_task(work)
        member.tasks.add(task)
        task.add_done_callback(member.tasks.discard)


def _server_unix_s(headers: Mapping[str, str], unix_s: float) -> float:
    """Return what a server's clock says now, from its answer and our own clock."""
    try:
        date_s = parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, ValueError):
        return unix_s
    return unix_s if abs(date_s - unix_s) <= _CLOCK_TOLERANCE_S else date_s + 0.5
