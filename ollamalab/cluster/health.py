"""Whether an upstream can be reached and takes requests. Pure; moments are passed in.

An upstream is *down* when it does not listen, or has not answered several probes; it is *busy* when it
says so (503, 429), however quickly: what refuses fast is not idle, and for a while gets nothing more.
"""

from __future__ import annotations

import math

#: Probes without an answer, one after the other, until an upstream is down.
FAILED_PROBES = 3

#: How long a busy one is left alone: longer each time, or as long as it asks for.
_FIRST_BUSY_S = 1.0
_LONGEST_BUSY_S = 5.0
_LONGEST_ASKED_S = 60.0


class Health:
    """What is known of one upstream.

    Attributes:
        is_up: Whether it is taken to listen and answer; until something else is known, yes.
        failed_probes: Without an answer, lately in a row.
        busy_until_s: When it may be asked again; -inf if it is not busy.
    """

    __slots__ = ("_refusals", "busy_until_s", "failed_probes", "is_up")

    def __init__(self) -> None:
        self.is_up = True
        self.failed_probes = 0
        self.busy_until_s = -math.inf
        self._refusals = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it is up, but did not answer lately."""
        return self.is_up and self.failed_probes > 0

    @property
    def has_refused(self) -> bool:
        """Whether it said that it is busy, and has taken no request since it may be asked again."""
        return self._refusals > 0

    def is_busy(self, now_s: float) -> bool:
        """Return whether it said that it has too much to do."""
        return now_s < self.busy_until_s

    def answered(self) -> bool:
        """Note an answered probe; return whether it brought the upstream back."""
        is_back = not self.is_up
        self.is_up, self.failed_probes = True, 0
        if is_back:
            self._refusals, self.busy_until_s = 0, -math.inf
        return is_back

    def unanswered(self) -> bool:
        """Note a probe without an answer; return whether the upstream is down from now on."""
        self.failed_probes += 1
        return self.failed_probes >= FAILED_PROBES and self._go_down()

    def unreachable(self) -> bool:
        """Note that nobody listens there; return whether the upstream is down from now on."""
        return self._go_down()

    def refused(self, now_s: float, retry_after_s: float | None) -> None:
        """Note that the upstream says it is busy.

        Args:
            now_s: When.
            retry_after_s: How long it wants to be left alone; None if it did not say.
        """
        if retry_after_s is None:
            retry_after_s = min(_FIRST_BUSY_S * 2**self._refusals, _LONGEST_BUSY_S)
        if now_s >= self.busy_until_s:  # what was sent before counts for the same refusal
            self._refusals = min(self._refusals + 1, 8)
        self.busy_until_s = max(self.busy_until_s, now_s + min(retry_after_s, _LONGEST_ASKED_S))

    def accepted(self, now_s: float) -> None:
        """Note that it took a request: the next time that it is busy is the first."""
        if self._refusals and now_s >= self.busy_until_s:
            self._refusals = 0

    def _go_down(self) -> bool:
        was_up, self.is_up = self.is_up, False
        return was_up
