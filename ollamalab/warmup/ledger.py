"""What keeping models warm has saved and cost, counted beside a world without it. Pure.

For each model on each upstream an ``Account`` follows two worlds: the real one, and its *shadow*, in
which nothing is ever loaded or renewed by us. Requests come and end at the same moments in both, and
what evicts a model or restarts its server does so in both. In the shadow a model is in memory while it
is used and until its *natural* expiry after that.

A *hold* is a stretch of time in which the model is in memory only because of us; its seconds are what
we cost. A hold ends in exactly one way: a request comes and finds the model loaded (a cold start
*avoided*), nobody comes until the model goes (*wasted*), or it cannot be told whether it was of use
(*undecided*: a request came before our load was done, or somebody else prolonged the model's stay).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum


class Ending(StrEnum):
    """How a hold ended."""

    AVOIDED = "avoided"
    WASTED = "wasted"
    UNDECIDED = "undecided"


@dataclass(kw_only=True, slots=True)
class Totals:
    """What was done and what came of it; may be added up.

    Attributes:
        preloads: Loads by us that succeeded.
        renewals: Prolongations by us that succeeded.
        failures: Loads and renewals that the server refused or broke off.
        avoided: Cold starts avoided: requests that found the model loaded only because of us.
        saved_s: Seconds of loading that these were spared, as last measured.
        suffered: Cold starts that nobody avoided: requests that found the model unused and had to wait
            for its load.
        suffered_s: Seconds of those loads, where they are known.
        wasted: Holds that ended unused.
        undecided: Holds that ended so that it cannot be told.
        held_s: Seconds of all holds, running ones included.
        wasted_s: Of these, seconds of the wasted.
    """

    preloads: int = 0
    renewals: int = 0
    failures: int = 0
    avoided: int = 0
    saved_s: float = 0.0
    suffered: int = 0
    suffered_s: float = 0.0
    wasted: int = 0
    undecided: int = 0
    held_s: float = 0.0
    wasted_s: float = 0.0

    def add(self, other: Totals) -> None:
        """Add another's counts to these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request found when it came to a model that nobody used.

    Attributes:
        was_warm: Whether the model was loaded, as far as was known.
        was_held: Whether that was our doing.
        held_s: Seconds of the hold that the request ended.
    """

    was_warm: bool
    was_held: bool
    held_s: float

    @property
    def has_joined(self) -> bool:
        """Whether a load of ours was under way."""
        return self.was_held and not self.was_warm


class Account:
    """Books of one model on one upstream; moments must not go back.

    Attributes:
        totals: Of what is over.
    """

    def __init__(self) -> None:
        self.totals = Totals()
        self._real_from_s: float | None = None  # since when it is in memory
        self._natural_s = -math.inf  # until when it would be without us; inf while it is used

    def loading(self, at_s: float) -> None:
        """We begin to load it: its memory is taken from now on."""
        if self._real_from_s is None:
            self._real_from_s = at_s

    def used(self, at_s: float, *, is_warm: bool) -> Claim:
        """A request comes, and nobody else uses the model; from now on it would be there without us.

        Args:
            at_s: When.
            is_warm: Whether the model is loaded, as far as is known.

        Returns:
            What ``judged`` is to be told once it is known how the request fared.
        """
        is_held = self._is_held(at_s)
        held_s = self._held_s(at_s)
        self.totals.held_s += held_s
        if self._real_from_s is None:
            self._real_from_s = at_s
        self._natural_s = math.inf
        return Claim(was_warm=is_warm, was_held=is_held, held_s=held_s)

    def judged(self, claim: Claim, *, is_cold: bool | None, load_s: float | None) -> None:
        """Enter how a request fared that ``used`` was told of.

        Args:
            claim: Of that request.
            is_cold: Whether it had to wait for a load; None if it failed, and nobody knows.
            load_s: Seconds of the load that it waited for, or was spared; None if not known.
        """
        totals = self.totals
        if is_cold:
            totals.suffered += 1
            totals.suffered_s += load_s or 0.0
        if not claim.was_held:
            return
        if is_cold is False:
            totals.avoided += 1
            totals.saved_s += load_s or 0.0
        elif is_cold and claim.was_warm:  # it had gone before, unseen
            totals.wasted += claim.held_s > 0
            totals.wasted_s += claim.held_s
        else:
            totals.undecided += 1

    def natural(self, until_s: float) -> None:
        """Without us it would be in memory until then: its last request is over, or its server says so."""
        self._natural_s = until_s

    def prolonged(self, at_s: float, until_s: float) -> None:
        """Somebody else has loaded it or prolonged its stay; a hold that runs is over."""
        if self._is_held(at_s):
            self.totals.held_s += self._held_s(at_s)
            self.totals.undecided += 1
        if self._real_from_s is None:
            self._real_from_s = at_s
        self._natural_s = until_s

    def gone(self, at_s: float, *, ending: Ending = Ending.WASTED) -> None:
        """It is in memory no longer, nor would it be without us."""
        held_s = self._held_s(at_s)
        if held_s > 0:
            self.totals.held_s += held_s
            if ending is Ending.WASTED:
                self.totals.wasted += 1
                self.totals.wasted_s += held_s
            else:
                self.totals.undecided += 1
        self._real_from_s = None
        self._natural_s = min(self._natural_s, at_s)

    def totals_at(self, now_s: float) -> Totals:
        """Return the totals, the hold that runs now included."""
        totals = Totals()
        totals.add(self.totals)
        totals.held_s += self._held_s(now_s)
        return totals

    def _is_held(self, at_s: float) -> bool:
        return self._real_from_s is not None and at_s >= self._natural_s

    def _held_s(self, at_s: float) -> float:
        if self._real_from_s is None:
            return 0.0
        return max(0.0, at_s - max(self._real_from_s, self._natural_s))
