"""What is loaded, who may use it, and who waits for it.

A *lease* is the right to use a loaded model; as long as one is held, the model is *busy* and stays.
A *slot* is a place in its engine's batch; a lease waits for one only when it is about to compute. A
request is *pending* until it has its lease.

Rules are Ollama's (``server/sched.go``, v0.33), with these improvements: a load is given up only
when nobody waits for it any longer, not when the first who asked leaves; a model that has to make
way takes no new requests, so that a busy one cannot keep others out for ever; a hung engine is
killed rather than waited for; a request that leaves while pending leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ollamalab.embedded.clock import Clock, LoopClock
from ollamalab.embedded.engine import Engine
from ollamalab.embedded.load import LoadOptions
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.residents import Resident, RunningModel, Slots, next_to_unload
from ollamalab.errors import EngineError, QueueFull
from ollamalab.protocol.bodies import SERVER_BUSY
from ollamalab.settings import ServerSettings

__all__ = ["Lease", "RunningModel", "Scheduler", "SchedulerStatistics", "StartEngine"]

logger = logging.getLogger(__name__)

MODELS_PER_GPU = 3  #: models in memory at once if the settings leave it open

_ATTEMPTS = 2  # a lease on an engine that does not answer is tried once more, on a new one


class StartEngine(Protocol):
    """How an engine is started: ``Engine.start``, or a test's stand-in."""

    async def __call__(  # noqa: D102 - the class says it
        self,
        model: ModelFile,
        load: LoadOptions,
        *,
        llama_server: Path | None,
        load_timeout_s: float,
        on_exit: Callable[[Engine], None],
    ) -> Engine: ...


@dataclass(frozen=True)
class Lease:
    """The right to use a loaded model.

    Attributes:
        engine: Its engine; ``engine.load`` says what it was really loaded with.
        load_duration_s: From asking for the lease to having it: waiting, unloading, loading, ping.
            Waiting for a slot is not in it.
    """

    engine: Engine
    load_duration_s: float
    _slots: Slots

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for a place in the batch and hold it; requests are served in the order they came."""
        return self._slots.hold()


@dataclass(frozen=True, kw_only=True)
class SchedulerStatistics:
    """How many there are of everything, now."""

    pending: int
    loading: int
    loaded: int
    unloading: int
    leases: int
    slots_held: int
    slots_waiting: int


@dataclass(eq=False)
class _Pending:
    """A request that waits for its lease.

    ``answer`` is what came of it; an event rather than a future, because a future that a leaving
    client has just cancelled can take no answer any more.
    """

    model: ModelFile
    load: LoadOptions
    keep_alive_s: float | None
    answer: Resident | EngineError | None = None
    is_answered: asyncio.Event = field(default_factory=asyncio.Event)

    def reply(self, answer: Resident | EngineError) -> None:
        self.answer = answer
        self.is_answered.set()


@dataclass(eq=False)
class _Loading:
    """A load under way."""

    model: ModelFile
    load: LoadOptions
    task: asyncio.Task[Engine]
    is_given_up: bool = False

    def helps(self, request: _Pending) -> bool:
        return request.model.path == self.model.path and self.load.serves(request.load)

    def give_up(self) -> None:
        if not self.is_given_up:  # cancelled once more, it could not clear up in peace
            self.is_given_up = True
            self.task.cancel()
            logger.info("event=load_given_up model=%s", self.model.name.short)


class Scheduler:
    """Loads and unloads models so that each request gets its lease.

    All decisions are taken in ``_step``, which runs after every change and never waits.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        start_engine: StartEngine = Engine.start,
        clock: Clock | None = None,
        llama_server: Path | None = None,
        gpus: int = 0,
    ) -> None:
        """Take the rules.

        Args:
            settings: Limits and defaults.
            start_engine: How engines are started.
            clock: Time and timers; None for the event loop's.
            llama_server: The binary to use; None for the built-in llama.cpp.
            gpus: GPUs of this machine: more models fit if the settings leave their number open.
        """
        self._settings = settings
        self._start_engine = start_engine
        self._clock = clock or LoopClock()
        self._llama_server = llama_server
        self._max_loaded = settings.max_loaded_models or MODELS_PER_GPU * max(1, gpus)
        self._pending: list[_Pending] = []
        self._loading: _Loading | None = None
        self._residents: dict[Path, Resident] = {}
        self._unloading: dict[Path, asyncio.Task[None]] = {}
        self._making_way: Resident | None = None
        self._leases = 0
        self._is_closed = False
        self._is_over = asyncio.Event()

    @asynccontextmanager
    async def lease(
        self,
        model: ModelFile,
        load: LoadOptions,
        keep_alive_s: float | None,
        *,
        embedding_only: bool = False,
    ) -> AsyncIterator[Lease]:
        """Wait until the model is loaded as wanted, and keep it meanwhile.

        Args:
            model: Which one.
            load: Load-time options; others than those it is loaded with mean a reload.
            keep_alive_s: How long it stays afterwards, from now on; None leaves that as it is.
            embedding_only: The model can do nothing else; such models have one slot.

        Raises:
            QueueFull: Too many are pending; the message is Ollama's, for a 503.
            EngineError: The model cannot be loaded, or its engine does not answer twice in a row.
        """
        started_s = self._clock.now_s()
        wanted = replace(load, num_parallel=1) if embedding_only else load
        resident = await self._acquire(model, wanted, keep_alive_s)
        try:
            yield Lease(resident.engine, self._clock.now_s() - started_s, resident.slots)
        finally:
            self._release(resident)

    async def unload(self, model: ModelFile) -> None:
        """Unload a model as soon as it is idle; return at once. Nothing happens if it is not loaded."""
        resident = self._residents.get(model.path)
        if resident is not None:
            resident.keep_alive_s = 0.0
            if not resident.leases:
                self._drop(resident)

    def running(self) -> list[RunningModel]:
        """Return what is loaded, longest to live first; a model that is still loading is not."""
        models = [resident.running() for resident in self._residents.values()]
        return sorted(models, key=lambda model: -model.expires_ns)

    def engines(self) -> list[Engine]:
        """Return the engines of the loaded models."""
        return [resident.engine for resident in self._residents.values()]

    def statistics(self) -> SchedulerStatistics:
        """Return how many there are of everything, now."""
        slots = [resident.slots for resident in self._residents.values()]
        return SchedulerStatistics(
            pending=len(self._pending),
            loading=1 if self._loading else 0,
            loaded=len(self._residents),
            unloading=len(self._unloading),
            leases=self._leases,
            slots_held=sum(each.held for each in slots),
            slots_waiting=sum(each.waiting for each in slots),
        )

    async def close(self) -> None:
        """End every engine, also busy ones; who is pending gets an EngineError."""
        self._is_closed = True
        for request in self._pending:
            request.reply(EngineError("the server is shutting down"))
        self._pending.clear()
        if self._loading:
            self._loading.give_up()
        for resident in list(self._residents.values()):
            self._unload(resident)
        self._step()
        await self._is_over.wait()

    async def _acquire(self, model: ModelFile, load: LoadOptions, keep_alive_s: float | None) -> Resident:
        """Return a resident that answers, with a lease on it taken."""
        for _ in range(_ATTEMPTS):
            resident = await self._wait_for_lease(_Pending(model, load, keep_alive_s))
            is_well = False
            try:
                is_well = await resident.engine.health()
            finally:
                if not is_well:
                    self._release(resident)
            if is_well:
                return resident
            logger.warning("event=engine_silent model=%s pid=%d", model.name.short, resident.engine.pid)
            self._drop(resident)
        raise EngineError(
            f"the engine of {model.name.short} does not answer, nor did the one before it; "
            f"its file is {model.path}, the server's log may say more"
        )

    async def _wait_for_lease(self, request: _Pending) -> Resident:
        if self._is_closed:
            raise EngineError("the server is shutting down")
        if (resident := self._usable(request)) is not None:
            self._take(resident, request)
            return resident
        # The first one is being served, as in Ollama; the limit is on those behind it.
        if len(self._pending) > self._settings.max_queue:
            raise QueueFull(SERVER_BUSY)
        self._pending.append(request)
        self._step()
        try:
            await request.is_answered.wait()
        except asyncio.CancelledError:
            if request in self._pending:
                self._pending.remove(request)
                self._step()
            elif isinstance(request.answer, Resident):  # given and called off in the same moment
                self._release(request.answer)
            raise
        if not isinstance(request.answer, Resident):
            raise request.answer or EngineError("no answer")
        return request.answer

    def _usable(self, request: _Pending) -> Resident | None:
        """Return what the request can have at once."""
        resident = self._residents.get(request.model.path)
        if resident is None or resident is self._making_way:
            return None
        return resident if resident.engine.load.serves(request.load) else None

    def _take(self, resident: Resident, request: _Pending) -> None:
        self._leases += 1
        resident.take(request.keep_alive_s)

    def _release(self, resident: Resident) -> None:
        self._leases -= 1
        resident.leases -= 1
        self._rest(resident)
        self._step()

    def _rest(self, resident: Resident) -> None:
        if not resident.leases and self._residents.get(resident.path) is resident:
            resident.rest()

    def _step(self) -> None:
        """Do whatever can be done now: give leases, give up a load, unload, load."""
        if self._is_closed:
            if not self._loading and not self._unloading:
                self._is_over.set()
            return
        self._give_leases()
        if self._loading:
            if not any(self._loading.helps(request) for request in self._pending):
                self._loading.give_up()
        elif self._making_way:
            if not self._making_way.leases:
                self._unload(self._making_way)
        elif self._pending:
            first = self._pending[0]
            is_room = len(self._residents) + len(self._unloading) < self._max_loaded
            if is_room and first.model.path not in self._unloading:
                self._start_load(first)

    def _give_leases(self) -> None:
        """Give every lease that can be given; then say who makes way for the first request that waits."""
        while True:
            self._making_way = self._in_the_way(self._pending[0]) if self._pending else None
            ready = [(request, resident) for request in self._pending if (resident := self._usable(request))]
            if not ready:
                return
            for request, resident in ready:
                self._pending.remove(request)
                self._take(resident, request)
                request.reply(resident)

    def _in_the_way(self, first: _Pending) -> Resident | None:
        """Return what has to be unloaded before this request's model can be loaded."""
        if self._loading:
            return None  # one load at a time, as in Ollama; then we shall see
        own = self._residents.get(first.model.path)
        if own is not None:
            return None if own.engine.load.serves(first.load) else own
        if len(self._residents) < self._max_loaded:
            return None
        candidate = next_to_unload(self._residents.values())
        chosen = self._making_way
        if chosen and candidate and candidate.leases and self._residents.get(chosen.path) is chosen:
            return chosen  # none is idle: stay with the one that takes no more requests already
        return candidate

    def _start_load(self, request: _Pending) -> None:
        model, load = request.model, request.load
        start = self._start_engine(
            model,
            load,
            llama_server=self._llama_server,
            load_timeout_s=self._settings.load_timeout_s,
            on_exit=self._engine_ended,
        )
        task = asyncio.ensure_future(start)
        self._loading = _Loading(model, load, task)
        task.add_done_callback(self._load_ended)
        logger.info("event=load model=%s num_ctx=%d", model.name.short, load.num_ctx)

    def _load_ended(self, task: asyncio.Task[Engine]) -> None:
        loading, self._loading = self._loading, None
        assert loading
        if not task.cancelled():
            error = task.exception()
            if error is None:
                self._admit(task.result())
            else:
                self._refuse(loading, error)
        self._step()

    def _admit(self, engine: Engine) -> None:
        resident = Resident(engine, self._settings.keep_alive_s, clock=self._clock, on_expiry=self._unload)
        self._residents[resident.path] = resident
        if self._is_closed:
            self._unload(resident)
        self._give_leases()
        self._rest(resident)  # in case that whoever wanted it has just left

    def _refuse(self, loading: _Loading, error: BaseException) -> None:
        expected = isinstance(error, EngineError)
        logger.warning(
            "event=load_failed model=%s reason=%s",
            loading.model.name.short,
            error,
            exc_info=None if expected else error,
        )
        for request in [request for request in self._pending if loading.helps(request)]:
            self._pending.remove(request)
            request.reply(EngineError(str(error) if expected else f"{type(error).__name__}: {error}"))

    def _engine_ended(self, engine: Engine) -> None:
        for resident in list(self._residents.values()):
            if resident.engine is engine:
                self._drop(resident)

    def _drop(self, resident: Resident) -> None:
        self._unload(resident)
        self._step()

    def _unload(self, resident: Resident) -> None:
        """Let go of a model and end its process; leases that are still held on it fail from now on."""
        if self._residents.get(resident.path) is not resident:
            return
        del self._residents[resident.path]
        resident.stop_timer()
        task = asyncio.ensure_future(resident.engine.stop())
        self._unloading[resident.path] = task
        task.add_done_callback(lambda _: self._unload_ended(resident))

    def _unload_ended(self, resident: Resident) -> None:
        del self._unloading[resident.path]
        logger.info("event=unloaded model=%s", resident.engine.model.name.short)
        self._step()
