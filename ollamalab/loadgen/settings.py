"""How load is offered."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from ollamalab.arrivals import Arrivals, plan_s
from ollamalab.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How load is offered; kept unchanged in the run's manifest.

    The warm-up comes on top of ``requests`` or ``duration_s`` and hands over without a pause: draining
    it first would let the measured part begin with a burst.
    """

    arrivals: Arrivals = field(default_factory=Arrivals)  #: closed loop, constant, Poisson, at once
    clients: int = 1  #: of a closed loop
    requests: int | None = 50  #: measured; None = as many as the duration holds
    duration_s: float | None = None  #: of the measured part's sends; what was sent is always drained
    warmup: int = 0  #: first requests, left out of every figure
    ramp_s: float = 0.0  #: over which a closed loop's clients start; else they begin as one burst
    deadline_s: float = 300.0  #: per request, from its planned send
    max_in_flight: int = 900  #: more wait in the client, which ``send_lag_s`` then shows
    seed: int = 0  #: of the arrival times

    def __post_init__(self) -> None:
        for name, least in (("clients", 1), ("warmup", 0), ("max_in_flight", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name} must be {least} or more, got {getattr(self, name)!r}")
        if (self.requests is None) == (self.duration_s is None):
            raise SettingsError(
                f"one of requests and duration_s is needed, got {self.requests!r} and {self.duration_s!r}"
            )
        if self.requests is not None and self.requests < 1:
            raise SettingsError(f"requests must be 1 or more, got {self.requests!r}")
        for name in ("duration_s", "deadline_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise SettingsError(f"{name} must be a number > 0, got {value!r}")
        if not 0 <= self.ramp_s < math.inf:
            raise SettingsError(f"ramp_s must be 0 or more, got {self.ramp_s!r}")
        if not self.arrivals.is_open and self.clients > self.max_in_flight:
            raise SettingsError(f"clients must be at most max_in_flight, got {self.clients!r}")

    @property
    def total(self) -> int | None:
        """Requests offered in all, warm-up included; None when the duration decides."""
        return None if self.requests is None else self.warmup + self.requests

    def plan_s(self) -> list[float]:
        """Return when each request of an open loop is due after the start, warm-up first.

        Raises:
            SettingsError: The loop is closed, or all at once for a duration.
        """
        warmup_s = self.warmup / self.arrivals.rate_rps if self.arrivals.rate_rps else 0.0
        return plan_s(
            self.arrivals,
            random.Random(self.seed),
            requests=self.total,
            duration_s=None if self.duration_s is None else self.duration_s + warmup_s,
        )
