"""A breaker: keeps requests from a model that fails them at one upstream, and lets one try again. Pure.

*Closed*, it lets everything through. It *opens* after some failures in a row, or when half of the last
requests failed, and then lets nothing through for a while. After that it is *half open*: one request
goes through on trial. If that is answered, the breaker closes; if not, it opens for twice as long.
"""

from __future__ import annotations

import math
import random
from collections import deque
from enum import StrEnum

_IN_A_ROW = 3
_WINDOW = 20
_LEAST_SEEN = 10  # before a share means anything
_FAILED_RATIO = 0.5

_FIRST_OPEN_S = 2.0
_LONGEST_OPEN_S = 60.0
_JITTER = 0.2  # so that upstreams that failed together are not tried together


class BreakerState(StrEnum):
    """What a breaker does with a request."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Decides whether a model at an upstream may be asked.

    Args:
        rng: Draws the jitter of open times.

    Attributes:
        retry_s: When an open one lets a trial through; -inf while it is closed.
    """

    __slots__ = ("_failures", "_is_trying", "_openings", "_recent", "_rng", "opened_s", "retry_s")

    def __init__(self, rng: random.Random) -> None:
        self.retry_s = -math.inf
        self.opened_s = -math.inf
        self._rng = rng
        self._openings = 0  # since it was closed
        self._is_trying = False
        self._failures = 0  # in a row
        self._recent: deque[bool] = deque(maxlen=_WINDOW)

    def state(self, now_s: float) -> BreakerState:
        """Return what it does now."""
        if not self._openings:
            return BreakerState.CLOSED
        return BreakerState.HALF_OPEN if self._is_trying or now_s >= self.retry_s else BreakerState.OPEN

    def admits(self, now_s: float) -> bool:
        """Return whether a request may be sent."""
        return not self._openings or (now_s >= self.retry_s and not self._is_trying)

    def sent(self, now_s: float) -> bool:
        """Note that a request is sent; return whether it is a trial, to be ended as one."""
        if not self._openings or not self.admits(now_s):
            return False
        self._is_trying = True
        return True

    def succeeded(self, sent_s: float) -> bool:
        """Note an answer; return whether it closed the breaker.

        Args:
            sent_s: When its request was sent: an answer to an older one tells nothing of a trial.
        """
        if not self._openings:
            self._failures = 0
            self._recent.append(False)
            return False
        if sent_s < self.opened_s:
            return False
        self._openings = self._failures = 0
        self._is_trying = False
        self._recent.clear()
        self.retry_s = self.opened_s = -math.inf
        return True

    def failed(self, now_s: float, *, is_trial: bool) -> bool:
        """Note a failure; return whether it opened the breaker."""
        if self._openings:
            if is_trial:
                self._open(now_s)
            return is_trial
        self._failures += 1
        self._recent.append(True)
        is_much = len(self._recent) >= _LEAST_SEEN and sum(self._recent) >= _FAILED_RATIO * len(self._recent)
        if self._failures >= _IN_A_ROW or is_much:
            self._open(now_s)
            return True
        return False

    def undecided(self) -> None:
        """Note that a trial ended without telling anything; the next request is one."""
        self._is_trying = False

    def knock(self) -> bool:
        """Let a trial through at once: the upstream was restarted. Return whether that is sooner."""
        is_sooner = self.retry_s > -math.inf
        self.retry_s = -math.inf
        return is_sooner

    def _open(self, now_s: float) -> None:
        self._is_trying = False
        open_s = min(_FIRST_OPEN_S * 2**self._openings, _LONGEST_OPEN_S)
        self._openings += 1
        self.opened_s = now_s
        self.retry_s = now_s + open_s * self._rng.uniform(1 - _JITTER, 1 + _JITTER)
