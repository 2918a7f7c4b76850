"""Ends what a task waits for, from outside, and tells that end from a cancellation by others."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec


class Interruption(msgspec.Struct, eq=False):
    """May end one wait of one task.

    ``asyncio.timeout`` does the same for whoever knows the moment, at the price of a context manager.
    """

    _task: asyncio.Task[Any] | None = None
    _is_given_up: bool = False

    def guard(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """The current task waits from now on; to name its loop saves looking for it."""
        self._task = asyncio.current_task(loop)

    def give_up(self) -> None:
        """Cancel what the task waits for."""
        if self._task is not None and not self._task.cancelling():  # else it ends anyway
            self._is_given_up = True
            self._task.cancel()

    def is_given_up_by(self, error: BaseException) -> bool:
        """Return whether an error is the cancellation by ``give_up``, and by nobody else."""
        if not self._is_given_up or not isinstance(error, asyncio.CancelledError):
            return False
        return self._task is not None and self._task.uncancel() == 0
