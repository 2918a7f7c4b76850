"""The models of one upstream: what happens to them goes in, what to do comes out. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from ollamalab.protocol.calls import Call
from ollamalab.protocol.loaded import LoadedModel
from ollamalab.protocol.names import parse_name
from ollamalab.settings.warmup import WarmupSettings
from ollamalab.warmup.controller import Controller, Decision, renewal_due_s
from ollamalab.warmup.preload import Preload
from ollamalab.warmup.room import Room
from ollamalab.warmup.warmth import Step, Warmth

#: Share of a model's keep-alive after which to look again; models kept for less than seconds are not kept.
_PAUSE_RATIO = 0.25
_SHORTEST_PAUSE_S = 1.0


class Visit:
    """One request on its way; whoever sent it says how it goes on.

    Args:
        warmth: Its model.
        call: What it asks.
        clock: Monotonic seconds.
    """

    __slots__ = ("_call", "_claim", "_clock", "_has_answered", "_is_over", "_warmth")

    def __init__(self, warmth: Warmth, call: Call, clock: Callable[[], float]) -> None:
        self._warmth = warmth
        self._call = call
        self._clock = clock
        self._has_answered = self._is_over = False
        self._claim = warmth.begun(clock())

    def answering(self) -> None:
        """A good answer has begun: its status is 200."""
        self._has_answered = True
        self._warmth.answering()

    def ended(self, load_s: float | None = None) -> None:
        """It is over, in whatever way; only the first time counts.

        Args:
            load_s: What the server says that it waited for the model; None if it does not say.
        """
        if self._is_over:
            return
        self._is_over = True
        is_ok, now_s = self._has_answered, self._clock()
        self._warmth.ended(now_s, self._call, self._claim, is_ok=is_ok, load_s=load_s)


class Keeper:
    """Keeps the books of one upstream's models.

    Args:
        settings: Which models to load in any case, and what holding costs.

    Attributes:
        models: What is known of each, by its key (``ModelName.key``).
    """

    def __init__(self, settings: WarmupSettings) -> None:
        self.models: dict[str, Warmth] = {}
        self._room = Room()
        self._listed: tuple[LoadedModel, ...] = ()
        self._wanted: dict[str, str] = {}
        self.take(settings)

    def take(self, settings: WarmupSettings) -> None:
        """Go by other settings from now on; what they want that the old ones did not is to be loaded."""
        before, self._wanted = self._wanted, {parse_name(name).key: name for name in settings.models}
        self._controller = Controller(settings)
        for key in before.keys() - self._wanted.keys():
            if key in self.models:
                self.models[key].is_due = False
        self._want(self._wanted.keys() - before.keys())

    def begun(self, call: Call, clock: Callable[[], float]) -> Visit:
        """Take note of a request that is sent to this upstream; its ``ended`` is to be called.

        Args:
            call: It names a model.
            clock: Monotonic seconds.
        """
        warmth = self.models.get(call.model_key)
        if warmth is None:
            warmth = self.models[call.model_key] = Warmth(Preload(model=call.model))
        return Visit(warmth, call, clock)

    def restarted(self) -> None:
        """The upstream has come, or come back: what is wanted in any case is to be loaded."""
        self._want(self._wanted)

    def listed(
        self, asked_s: float, listed: Sequence[LoadedModel], expires_s: Mapping[str, float | None]
    ) -> None:
        """Take note of what is in memory.

        Args:
            asked_s: When the server was asked.
            listed: Its answer.
            expires_s: Each one's end on our clock, by key; None if the server does not say.
        """
        self.models = {key: warmth for key, warmth in self.models.items() if not warmth.is_forgettable}
        shown = {model.key: model for model in listed}
        begun_s = (warmth.load_begun_s for warmth in self.models.values())
        load_begun_s = max((at_s for at_s in begun_s if at_s is not None and at_s <= asked_s), default=None)
        has_lost = False
        for key, warmth in self.models.items():
            has_lost |= warmth.listed(asked_s, shown.get(key), expires_s.get(key), load_begun_s=load_begun_s)
        is_in_use = any(warmth.in_flight for warmth in self.models.values())
        if has_lost and not listed and not is_in_use:
            self.restarted()  # nothing has made way for another: all are gone
        self._listed = tuple(listed)
        self._room.note(self._listed, is_full=has_lost)

    def decide(self, now_s: float) -> Decision | None:
        """Return what is to be done now; whoever does it calls ``step_begun`` and ``step_ended``."""
        return self._controller.decide(now_s, self.models, self._listed, self._room)

    def step_begun(self, decision: Decision, now_s: float) -> Preload:
        """Return the request that does it."""
        warmth = self.models[decision.key]
        warmth.step_begun(decision.step, now_s)
        return warmth.preload if decision.step is Step.LOAD else warmth.preload.renewal()

    def step_ended(self, decision: Decision, now_s: float, *, took_s: float | None) -> None:
        """Take note that it is done, or None that it failed."""
        self.models[decision.key].step_ended(now_s, took_s)

    def _want(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.models.setdefault(key, Warmth(Preload(model=self._wanted[key]))).is_due = True

    def pause_s(self, now_s: float, poll_s: float) -> float:
        """Return how long nothing has to be looked at.

        Until the next renewal is to be decided on, and less than a model's own keep-alive: one that has
        just been used must be seen before its time is up.

        Args:
            now_s: The moment.
            poll_s: The longest pause.
        """
        pause_s = poll_s
        for warmth in self.models.values():
            if warmth.keep_s > 0:
                pause_s = min(pause_s, max(_SHORTEST_PAUSE_S, warmth.keep_s * _PAUSE_RATIO))
            due_s = renewal_due_s(warmth)
            if due_s is not None and due_s > now_s:
                pause_s = min(pause_s, due_s - now_s)
        return pause_s
