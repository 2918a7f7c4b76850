"""How many places a lane has: a fixed number, or what is learnt from the answers. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ollamalab.queueing.parallelism import Flight, Parallelism
from ollamalab.queueing.ticket import State
from ollamalab.queueing.work import Work
from ollamalab.settings.queueing import QueueSettings

_MOST_LANES = 256  # lanes are named by clients, so their number needs a bound


class Passage(Protocol):
    """What a capacity is told of one request that got a place."""

    def begun(self, now_s: float) -> None:
        """A stream has given its first bytes."""
        ...

    def ended(self, now_s: float, state: State, work: Work | None) -> None:
        """The place is free again.

        Args:
            now_s: When.
            state: How the request ended.
            work: What it took; None if that is not known.
        """
        ...


class Capacity(Protocol):
    """How many places each lane has."""

    def limit(self, lane: str) -> int:
        """Return how many requests may be served at once, at least 1; it may change at any time."""
        ...

    def begin(self, lane: str, now_s: float) -> Passage:
        """Note that a request gets a place; return what wants to hear how it goes on."""
        ...

    def limits(self) -> Mapping[str, int]:
        """Return what is known of lanes, those not in use included."""
        ...


def capacity_of(settings: QueueSettings) -> Capacity:
    """Return the capacity that settings ask for."""
    if settings.max_concurrent is None:
        return LearntCapacity()
    return FixedCapacity(settings.max_concurrent)


class FixedCapacity:
    """So many places in each lane, whatever happens."""

    def __init__(self, places: int) -> None:
        self._places = places

    def limit(self, lane: str) -> int:  # noqa: ARG002
        """Return the places of any lane."""
        return self._places

    def begin(self, lane: str, now_s: float) -> Passage:  # noqa: ARG002
        """Return something that does not listen."""
        return DEAF

    def limits(self) -> Mapping[str, int]:
        """Return nothing: there is nothing to learn."""
        return {}


class LearntCapacity:
    """As many places as the server turns out to use, lane by lane; of the lanes used last."""

    def __init__(self) -> None:
        self._lanes: OrderedDict[str, Parallelism] = OrderedDict()

    def limit(self, lane: str) -> int:
        """Return the places of a lane, one on trial included."""
        parallelism = self._lanes.get(lane)
        return parallelism.limit if parallelism else _UNKNOWN.limit

    def begin(self, lane: str, now_s: float) -> Passage:
        """Note that a request is sent to the server."""
        parallelism = self._lanes.setdefault(lane, Parallelism())
        self._lanes.move_to_end(lane)
        if len(self._lanes) > _MOST_LANES:
            self._lanes.popitem(last=False)
        return _Observed(parallelism, parallelism.sent(now_s))

    def limits(self) -> Mapping[str, int]:
        """Return what has been learnt, without places on trial."""
        return {lane: parallelism.learnt for lane, parallelism in self._lanes.items()}


class _Deaf:
    def begun(self, now_s: float) -> None:
        pass

    def ended(self, now_s: float, state: State, work: Work | None) -> None:
        pass


#: Hears nothing.
DEAF: Passage = _Deaf()
_UNKNOWN = Parallelism()


@dataclass(slots=True)
class _Observed:
    parallelism: Parallelism
    flight: Flight

    def begun(self, now_s: float) -> None:
        self.parallelism.first_token(self.flight, now_s)

    def ended(self, now_s: float, state: State, work: Work | None) -> None:
        self.parallelism.ended(self.flight, now_s, work if state is State.COMPLETED else None)
