"""Decides which model to keep or to load next, by what it is expected to save. Pure.

For a model it weighs, in seconds of a user's waiting: the chance that a request comes while the model
is in memory only because of us, times the seconds of its load; against the seconds until then, times
what a second of its memory costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ollamalab.protocol.loaded import LoadedModel
from ollamalab.settings.warmup import WarmupSettings
from ollamalab.warmup.room import Room
from ollamalab.warmup.warmth import Step, Warmth

#: So long before a model's time is up it is renewed, or after this share of its time if that is later.
MARGIN_S = 10.0
_MARGIN_RATIO = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to do now.

    Attributes:
        step: Load or renew.
        key: Of the model.
    """

    step: Step
    key: str


def renewal_due_s(warmth: Warmth) -> float | None:
    """Return when to decide whether a model is renewed; None if there is nothing to renew."""
    is_resting = warmth.is_resident and warmth.in_flight == 0 and warmth.doing is None
    if not is_resting or warmth.expires_s is None or math.isinf(warmth.expires_s):
        return None
    return warmth.expires_s - min(MARGIN_S, warmth.keep_s * _MARGIN_RATIO)


class Controller:
    """The rule, with its settings."""

    def __init__(self, settings: WarmupSettings) -> None:
        self._hold_cost = settings.hold_cost
        self._is_auto = settings.keep == "auto"

    def decide(
        self, now_s: float, models: Mapping[str, Warmth], listed: Sequence[LoadedModel], room: Room
    ) -> Decision | None:
        """Return what is best done on one upstream; None for nothing.

        Args:
            now_s: The moment, on the clock of ``models``.
            models: What is known of each, by its key.
            listed: What is in memory.
            room: Whether more fits.
        """
        if self._is_auto:
            due = (
                (warmth.expires_s or 0.0, key)
                for key, warmth in models.items()
                if (due_s := renewal_due_s(warmth)) is not None
                and now_s >= due_s
                and self.renewal_gain_s(warmth, now_s) > 0
            )
            first = min(due, default=None)
            if first is not None:
                return Decision(step=Step.RENEW, key=first[1])
        if any(warmth.is_loading for warmth in models.values()):
            return None  # two loads at once would only slow each other down
        is_idle = not any(warmth.in_flight for warmth in models.values())
        gains = (
            (self._loading_gain_s(warmth, now_s), key)
            for key, warmth in models.items()
            if not (warmth.is_resident or warmth.in_flight)
            and (room.fits(key, listed) or (warmth.is_due and is_idle))
        )
        gain_s, key = max(gains, default=(0.0, ""))
        return Decision(step=Step.LOAD, key=key) if gain_s > 0 else None

    def renewal_gain_s(self, warmth: Warmth, now_s: float) -> float:
        """Return what a model's renewal is expected to save, less its cost, in seconds of waiting."""
        if warmth.expires_s is None:
            return 0.0
        return self._gain_s(warmth, now_s, warmth.expires_s, now_s + warmth.keep_s)

    def _loading_gain_s(self, warmth: Warmth, now_s: float) -> float:
        """Return what loading a model is expected to save; 0 if it is not to be loaded now."""
        if warmth.is_due:
            return math.inf
        if not (self._is_auto and warmth.may_load and warmth.keep_s > 0):
            return 0.0
        start_s = now_s + (warmth.load_s or 0.0)
        return self._gain_s(warmth, now_s, start_s, start_s + warmth.keep_s)

    def _gain_s(self, warmth: Warmth, now_s: float, start_s: float, end_s: float) -> float:
        """Return what a model in memory from one moment to another is expected to save, less its cost."""
        since_s = warmth.idle_since_s
        if since_s is None or warmth.load_s is None or end_s <= start_s:
            return 0.0
        forecast = warmth.gaps.forecast(
            idle_s=now_s - since_s, start_s=start_s - since_s, end_s=end_s - since_s, now_s=now_s
        )
        return forecast.use_ratio * warmth.load_s - forecast.held_s * self._hold_cost
