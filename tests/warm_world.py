"""A day of simulated traffic on one server, and a second, slower way to count what warming did.

Time is in whole ticks of ten seconds. The server behaves as Ollama's scheduler does: keep-alive from the
end of use, an idle model makes way when there are too many, and it is watched at every tick. What is
counted twice: by the ledger as things happen, and here, tick by tick, from the record of the whole day.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field

from ollamalab.protocol.calls import Call, call_of
from ollamalab.protocol.loaded import LoadedModel
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.upstream import Request
from ollamalab.settings.warmup import WarmupSettings
from ollamalab.warmup import Keeper, Totals, Visit
from ollamalab.warmup.controller import Decision
from ollamalab.warmup.warmth import Step

TICK_S = 10
DAY = 86400 // TICK_S
NEVER = 10**9


def call(model: str, **fields: object) -> Call:
    body = json.dumps({"model": model, "prompt": "Hello", **fields}).encode()
    return call_of(Request(method="POST", path="/api/generate", body=body))


@dataclass
class Use:
    """One request.

    Attributes:
        start, end: Ticks.
        found: What the model was when it came: "loaded", "loading" or "gone".
        load_ticks: What it waited for the load.
    """

    start: int
    end: int
    found: str
    load_ticks: int


@dataclass
class Model:
    """One model on the simulated server, and the record of its day.

    Attributes:
        keep, load: Ticks.
        loaded_at: End of a load that runs or ran; None = not in memory.
        idle_until: When it goes; NEVER while it is used or loading.
        users: Requests under way.
        memory: Per tick, the number of the stay in memory in which it ended; None = not in memory.
        lost: Ticks at which it was evicted or its server restarted.
        made_way: Of these, those at which it was evicted.
        loads: Ticks of every whole load, by the tick at which it was known.
        preloads, renewals: How many of ours are done.
    """

    name: str
    keep: int
    load: int
    loaded_at: int | None = None
    idle_until: int = NEVER
    users: int = 0
    stay: int = 0
    uses: list[Use] = field(default_factory=list)
    memory: list[int | None] = field(default_factory=list)
    lost: list[int] = field(default_factory=list)
    made_way: set[int] = field(default_factory=set)
    loads: list[tuple[int, int]] = field(default_factory=list)
    preloads: int = 0
    renewals: int = 0

    @property
    def key(self) -> str:
        return parse_name(self.name).key

    @property
    def is_idle(self) -> bool:
        return self.loaded_at is not None and self.users == 0 and self.idle_until != NEVER

    def enter(self, done: int) -> None:
        self.loaded_at, self.idle_until = done, NEVER
        self.stay += 1

    def leave(self) -> None:
        self.loaded_at, self.idle_until = None, NEVER


class World:
    """The server, its traffic, and the keeper that is tested."""

    def __init__(
        self, seed: int, settings: WarmupSettings, *, ticks: int = DAY, models: int = 3, max_loaded: int = 2
    ) -> None:
        self.rng = random.Random(seed)
        self.ticks = ticks
        self.max_loaded = max_loaded
        self.keeper = Keeper(settings)
        self.now = 0
        self.models = [
            Model(f"m{index}", keep=self.rng.choice((6, 30, 60)), load=self.rng.randint(1, 12))
            for index in range(models)
        ]
        self._ends: dict[int, list[tuple[Model, Visit, Use]]] = {}
        self._steps: dict[int, list[tuple[Model, Decision]]] = {}
        self.arrivals = self._arrivals()

    def clock_s(self) -> float:
        return float(self.now * TICK_S)

    def run(self) -> None:
        for now in range(self.ticks):
            self.now = now
            self._finish()
            self._lose()
            self._look()
            self._act()
            for model, duration in self.arrivals.get(self.now, ()):
                self._arrive(model, duration)
            self._look()
            for model in self.models:
                model.memory.append(None if model.loaded_at is None else model.stay)

    def _arrivals(self) -> dict[int, list[tuple[Model, int]]]:
        """Draw the day: each model has its rhythm, and pauses in which nobody wants it."""
        drawn: dict[int, list[tuple[Model, int]]] = {}
        for model in self.models:
            mean, tick = self.rng.choice((3, 20, 40, 90)), self.rng.randint(0, 30)
            while tick < self.ticks:
                drawn.setdefault(tick, []).append((model, self.rng.randint(1, 5)))
                is_pause = self.rng.random() < 0.01
                tick += 1 + int(self.rng.expovariate(1 / mean)) + (1000 if is_pause else 0)
        return drawn

    def _finish(self) -> None:
        """Let loads and requests end, and idle models go."""
        for model, decision in self._steps.pop(self.now, ()):
            model.loads.append((self.now, model.load))
            model.preloads += 1
            if model.users == 0:
                model.idle_until = self.now + model.keep
            self.keeper.step_ended(decision, self.clock_s(), took_s=float(model.load * TICK_S))
        for model, visit, use in self._ends.pop(self.now, ()):
            model.users -= 1
            if model.users == 0:
                model.idle_until = self.now + model.keep
            if use.found == "gone" and use.load_ticks == model.load:
                model.loads.append((self.now, use.load_ticks))
            load_s = float(use.load_ticks * TICK_S) or 0.001
            visit.answering()
            visit.ended(load_s)
        for model in self.models:
            if model.is_idle and model.idle_until <= self.now:
                model.leave()

    def _lose(self) -> None:
        """Restart the server now and then, when nobody uses it; the models are gone."""
        if self.rng.random() < 0.002 and not any(
            m.loaded_at is not None and not m.is_idle for m in self.models
        ):
            for model in self.models:
                self._evict(model)

    def _evict(self, model: Model) -> None:
        model.lost.append(self.now)
        model.leave()

    def _make_room(self) -> bool:
        held = [model for model in self.models if model.loaded_at is not None]
        if len(held) < self.max_loaded:
            return True
        idle = next((model for model in held if model.is_idle), None)
        if idle is not None:
            idle.made_way.add(self.now)
            self._evict(idle)
        return idle is not None

    def _look(self) -> None:
        """Let the keeper see what is in memory; a model that loads is not listed."""
        shown = [m for m in self.models if m.loaded_at is not None and m.loaded_at <= self.now]
        listed = [
            LoadedModel(
                name=model.name,
                key=model.key,
                expires_unix_s=float(model.idle_until),
                size_bytes=1,
                size_vram_bytes=1,
                context_tokens=None,
            )
            for model in shown
        ]
        ends = {model.key: float(model.idle_until * TICK_S) for model in shown}
        self.keeper.listed(self.clock_s(), listed, ends)

    def _act(self) -> None:
        while (decision := self.keeper.decide(self.clock_s())) is not None:
            model = next(model for model in self.models if model.key == decision.key)
            self.keeper.step_begun(decision, self.clock_s())
            if decision.step is Step.RENEW:
                assert model.is_idle
                model.renewals += 1
                model.idle_until = self.now + model.keep
                self.keeper.step_ended(decision, self.clock_s(), took_s=0.0)
                continue
            held = [each for each in self.models if each.loaded_at is not None]
            assert model not in held
            assert len(held) < self.max_loaded or not any(each.users for each in self.models)
            assert all(each.loaded_at is not None and each.loaded_at <= self.now for each in held)
            assert self._make_room()
            model.enter(self.now + model.load)
            self._steps.setdefault(self.now + model.load, []).append((model, decision))

    def _arrive(self, model: Model, duration: int) -> None:
        found = "gone" if model.loaded_at is None else "loaded" if model.loaded_at <= self.now else "loading"
        if model.loaded_at is None:
            if not self._make_room():
                return  # everything is in use: this request is not sent
            model.enter(self.now + model.load)
        assert model.loaded_at is not None
        load_ticks = max(0, model.loaded_at - self.now)
        use = Use(self.now, self.now + load_ticks + duration, found, load_ticks)
        model.uses.append(use)
        model.users += 1
        model.idle_until = NEVER
        visit = self.keeper.begun(call(model.name), self.clock_s)
        self._ends.setdefault(use.end, []).append((model, visit, use))


def counted(model: Model) -> Totals:
    """Count a model's day again, from its record alone, one tick after the other."""
    starts = {use.start: use for use in model.uses}
    ends = Counter(use.end for use in model.uses)
    loads = dict(model.loads)
    lost = set(model.lost)
    totals = Totals(preloads=model.preloads, renewals=model.renewals)
    users, measured = 0, 0
    natural_until = -1  # in the shadow it is in memory before this tick, and while it is used
    run: list[int] = []  # the ticks of the hold that runs
    stay: int | None = None
    for tick, memory in enumerate(model.memory):
        measured = loads.get(tick, measured)
        users -= ends[tick]
        if ends[tick] and not users:
            natural_until = tick + model.keep
        use = starts.get(tick)
        if run and (tick in lost or memory != stay):
            # Made way in the moment in which a request came: the keeper learns it from how that one fares.
            is_known = use is None or use.end < len(model.memory) or tick not in model.made_way
            totals.wasted += is_known
            totals.wasted_s += is_known * len(run) * TICK_S
            totals.held_s += len(run) * TICK_S
            run.clear()
        if tick in lost:
            natural_until = min(natural_until, tick)
        if use is not None and not users:
            would_be_cold = tick >= natural_until
            if use.end >= len(model.memory):
                pass  # how it fares is not known today
            elif use.found == "loaded":
                totals.avoided += would_be_cold
                totals.saved_s += would_be_cold * measured * TICK_S
            else:
                totals.suffered += 1
                totals.suffered_s += use.load_ticks * TICK_S
                totals.undecided += use.found == "loading"
            totals.held_s += len(run) * TICK_S
            run.clear()
        users += use is not None
        if memory is not None and not users and tick >= natural_until:
            run.append(tick)
            stay = memory
    totals.held_s += len(run) * TICK_S
    return totals
