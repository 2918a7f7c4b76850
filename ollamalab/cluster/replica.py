"""A replica: one model at one upstream, as this gateway has come to know it. Pure."""

from __future__ import annotations

import math
import random

from ollamalab.cluster.breaker import Breaker
from ollamalab.queueing.parallelism import Flight, Parallelism
from ollamalab.queueing.work import Work
from ollamalab.routing import ModelView

#: Share that the latest value has in a running mean.
_NEWS = 0.2

#: A ``load_duration`` below this is the scheduler's own time, not a load.
_SHORTEST_LOAD_S = 0.2

#: Places of a model that nothing has been learnt of: one, and a second on trial.
UNLEARNT_PLACES = Parallelism().limit


class Replica:
    """What routing sees of a model at an upstream, whether it works, and how much it takes at once.

    Args:
        view: What routing sees; kept current here.
        rng: For the breaker.
        places: Requests that it may work on at once; None learns what it can use.

    Attributes:
        breaker: Whether it may be asked.
        measured_s: When an answer last told its speed; -inf if none has.
        places: How many requests may be there at once, one on trial included.
    """

    __slots__ = ("_parallelism", "breaker", "measured_s", "places", "view")

    def __init__(self, view: ModelView, rng: random.Random, places: int | None) -> None:
        self.view = view
        self.breaker = Breaker(rng)
        self.measured_s = -math.inf
        self.places = UNLEARNT_PLACES if places is None else places
        self._parallelism = Parallelism() if places is None else None
        view.slots = places or 1

    @property
    def learnt(self) -> int | None:
        """How many at once it can use, as far as is known; None if that is set."""
        return None if self._parallelism is None else self._parallelism.learnt

    def sent(self, now_s: float) -> Flight | None:
        """Note that a request for text is sent; return what tells it apart, None if nothing is learnt."""
        return None if self._parallelism is None else self._parallelism.sent(now_s)

    def first_token(self, flight: Flight, now_s: float) -> bool:
        """Note that a stream begins to say something; return whether the places have changed."""
        assert self._parallelism is not None
        self._parallelism.first_token(flight, now_s)
        return self._have_places_changed()

    def ended(self, flight: Flight, now_s: float, work: Work | None) -> bool:
        """Note that a request has left; return whether the places have changed.

        Args:
            flight: Which.
            now_s: When.
            work: What it tells; None if it was not answered to the end.
        """
        assert self._parallelism is not None
        self._parallelism.ended(flight, now_s, work)
        return self._have_places_changed()

    def learn(self, work: Work, tokens: float, now_s: float, stream_s: float | None) -> None:
        """Take note of what an answer took.

        Args:
            work: What it tells.
            tokens: That it counts for (``Usual.tokens_of``).
            now_s: When it ended.
            stream_s: From its first byte to its end; stands in for what the server does not tell.
        """
        view = self.view
        seconds = stream_s if work.busy_s is None else work.busy_s
        if work.output_tokens and seconds:
            view.tokens_per_s = _mixed(view.tokens_per_s, tokens / seconds)
            self.measured_s = now_s
        if work.load_s is not None and work.load_s >= _SHORTEST_LOAD_S:
            view.load_s = _mixed(view.load_s, work.load_s)

    def _have_places_changed(self) -> bool:
        assert self._parallelism is not None
        before, self.places = self.places, self._parallelism.limit
        self.view.slots = self._parallelism.learnt
        return self.places != before


def _mixed(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _NEWS * (value - mean)
