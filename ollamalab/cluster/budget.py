"""A budget for retries, so that a failing cluster is not asked many times as often. Pure."""

from __future__ import annotations

#: Retries per request, over all; and how many may come at once after a quiet time.
RETRY_RATIO = 0.2
BURST = 10.0


class RetryBudget:
    """Each request pays in a share of a retry, up to a small reserve; each retry takes a whole one.

    So of any n requests in a row at most 20 % of n, plus 10, are retried. A request whose server went away
    before it answered is no retry: it only moves.

    Attributes:
        denied: Retries that it did not have.
    """

    __slots__ = ("_left", "denied")

    def __init__(self) -> None:
        self._left = BURST
        self.denied = 0

    def note_request(self) -> None:
        """Pay in for a new request."""
        if self._left < BURST:
            self._left = min(self._left + RETRY_RATIO, BURST)

    def take(self) -> bool:
        """Take a retry out; return whether there was one."""
        if self._left < 1:
            self.denied += 1
            return False
        self._left -= 1
        return True
