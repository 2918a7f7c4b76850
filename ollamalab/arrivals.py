"""When each request is due, in seconds after the start of the run.

*Open loop*: the plan says when, however slow the server is (constant, Poisson, all at once).
*Closed loop*: a request is due when one of a fixed number of clients is free, so it has no plan.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate, count, islice, repeat, takewhile
from operator import truediv

from ollamalab.errors import SettingsError


class ArrivalPattern(StrEnum):
    """How requests are spread over time."""

    CLOSED = "closed"  #: the next when a client is free
    CONSTANT = "constant"  #: evenly spaced
    POISSON = "poisson"  #: independent of each other, as from many users
    AT_ONCE = "at_once"  #: every one at the start


_NEEDS_RATE = (ArrivalPattern.CONSTANT, ArrivalPattern.POISSON)


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """An arrival pattern with its rate; kept unchanged in the run's manifest."""

    pattern: ArrivalPattern = ArrivalPattern.CLOSED
    rate_rps: float | None = None  #: mean arrivals per second; only and always with a rate pattern

    def __post_init__(self) -> None:
        if self.pattern not in tuple(ArrivalPattern):
            raise SettingsError(f"arrivals must be one of {', '.join(ArrivalPattern)}, got {self.pattern!r}")
        if self.pattern not in _NEEDS_RATE:
            if self.rate_rps is not None:
                raise SettingsError(
                    f"{self.pattern} arrivals have no rate, got rate_rps {self.rate_rps!r}; "
                    f"choose {' or '.join(_NEEDS_RATE)}"
                )
        elif self.rate_rps is None or not 0 < self.rate_rps < math.inf:
            raise SettingsError(
                f"rate_rps must be a number > 0 for {self.pattern} arrivals, got {self.rate_rps!r}"
            )

    @property
    def is_open(self) -> bool:
        """Whether requests are due by plan rather than when a client is free."""
        return self.pattern != ArrivalPattern.CLOSED


def plan_s(
    arrivals: Arrivals,
    rng: random.Random,
    *,
    requests: int | None = None,
    duration_s: float | None = None,
) -> list[float]:
    """Return the planned moments of an open loop, in seconds after the start, ascending.

    The first is 0, so that n requests span n - 1 gaps, as the achieved rate counts them.

    Args:
        arrivals: An open pattern.
        rng: Draws the gaps of Poisson arrivals; equal seeds give equal plans.
        requests: How many; None = as many as are due within the duration.
        duration_s: Arrivals before this moment; None = until there are enough.

    Raises:
        SettingsError: The loop is closed; neither bound is given; a bound is not above 0; or all at
            once for a duration, which would never end.
    """
    if not arrivals.is_open:
        raise SettingsError("closed-loop arrivals have no plan: a request is due when a client is free")
    if requests is None and duration_s is None:
        raise SettingsError("a plan needs a number of requests or a duration")
    if requests is not None and requests < 1:
        raise SettingsError(f"requests must be 1 or more, got {requests!r}")
    if duration_s is not None and not 0 < duration_s < math.inf:
        raise SettingsError(f"duration_s must be a number > 0, got {duration_s!r}")
    # == and not "is": parameter files give patterns as plain strings.
    if requests is None and arrivals.pattern == ArrivalPattern.AT_ONCE:
        raise SettingsError("all requests at once need a number of requests, not a duration")
    due = _offsets_s(arrivals, rng)
    if duration_s is not None:
        end_s = duration_s
        due = takewhile(lambda at_s: at_s < end_s, due)
    return list(islice(due, requests))


def _offsets_s(arrivals: Arrivals, rng: random.Random) -> Iterator[float]:
    """Return planned moments without end."""
    if arrivals.rate_rps is None:
        return repeat(0.0)
    if arrivals.pattern == ArrivalPattern.CONSTANT:
        # A quotient per request: a running sum would drift by its rounding errors.
        return map(truediv, count(), repeat(arrivals.rate_rps))
    return accumulate(map(rng.expovariate, repeat(arrivals.rate_rps)), initial=0.0)
