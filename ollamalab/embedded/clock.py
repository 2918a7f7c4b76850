"""Time and timers, as an argument, so that a test need not wait for minutes to pass."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """Something that is going to happen."""

    def cancel(self) -> None:
        """See to it that it does not."""


class Clock(Protocol):
    """Time and timers."""

    def now_s(self) -> float:
        """Return seconds on a monotonic clock."""
        ...

    def unix_ns(self) -> int:
        """Return nanoseconds since 1970."""
        ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call once, later; not from within this call."""
        ...


class LoopClock:
    """The clock of the running event loop."""

    def now_s(self) -> float:
        """Return seconds on a monotonic clock."""
        return time.monotonic()

    def unix_ns(self) -> int:
        """Return nanoseconds since 1970."""
        return time.time_ns()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call once, later."""
        return asyncio.get_running_loop().call_later(delay_s, callback)
