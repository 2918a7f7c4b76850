"""A source read in a thread of its own, so that one that hangs holds nobody up."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from typing import Self

from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu.source import GpuSource
from ollamalab.gpu.values import Readings

#: Without persistence mode a driver may take seconds for each GPU that it wakes.
_OPENING_S = 30.0

_PATIENCE_S = 1.0


class Detached:
    """Passes on what another source reads, or nothing while that takes too long.

    A sick driver or a silent endpoint stops a call for good, and no thread can be made to leave such a
    call. So it is made in a daemon thread; until it comes back, readings are empty and nobody waits.

    Attributes:
        notes: The source's, and when it hung.
        cpu_s: CPU time of its thread, up to its last reading.
    """

    def __init__(
        self,
        opening: Callable[[], GpuSource],
        *,
        name: str,
        patience_s: float = _PATIENCE_S,
        opening_s: float = _OPENING_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Open the source.

        Args:
            opening: Opens it.
            name: How notes call it.
            patience_s: Longest wait for a reading.
            opening_s: Longest wait for it to open.
            clock: Monotonic seconds.

        Raises:
            SamplerUnavailable: As ``opening``, or it took too long.
            SettingsError: As ``opening``.
        """
        self.notes: list[str] = []
        self.cpu_s = 0.0
        self._source: GpuSource | None = None
        self._opening = opening
        self._name = name
        self._patience_s = patience_s
        self._clock = clock
        self._hangs_since_s: float | None = None
        self._asks: queue.SimpleQueue[bool] = queue.SimpleQueue()  # False: close
        self._answers: queue.SimpleQueue[Readings | Exception] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"ollamalab-{name}", daemon=True)
        self._thread.start()
        try:
            self._result(self._answers.get(timeout=opening_s))
        except queue.Empty:
            self._asks.put(False)
            raise SamplerUnavailable(f"{name} did not answer within {opening_s:g} s") from None

    @property
    def names(self) -> Mapping[str, str]:
        """Source to the product's name, as far as the source knows."""
        return {} if self._source is None else self._source.names

    def read(self) -> Readings:
        """Return what the source reads now; nothing while it hangs, which is noted.

        Raises:
            SamplerUnavailable: As the source.
        """
        if self._hangs_since_s is not None and not self._came_back(self._hangs_since_s):
            return {}
        asked_s = self._clock()
        self._asks.put(True)
        try:
            return self._result(self._answers.get(timeout=self._patience_s))
        except queue.Empty:
            self._hangs_since_s = asked_s
            self.notes.append(f"{self._name} did not answer within {self._patience_s:g} s; it is waited for")
            return {}

    def close(self) -> None:
        """Close the source; one that hangs is left to itself."""
        self._asks.put(False)
        self._thread.join(self._patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _came_back(self, since_s: float) -> bool:
        """Whether the late reading is there; it is too old to pass on."""
        try:
            self._result(self._answers.get_nowait())
        except queue.Empty:
            return False
        self._hangs_since_s = None
        self.notes.append(f"{self._name} answered again after {self._clock() - since_s:.1f} s")
        return True

    def _result(self, answer: Readings | Exception) -> Readings:
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _run(self) -> None:
        """Open the source, read it whenever asked, close it; all of it in this thread."""
        try:
            source = self._opening()
        except Exception as error:
            self._answers.put(error)
            return
        self._source, self.notes = source, source.notes
        self.cpu_s = time.thread_time()
        self._answers.put({})
        try:
            while self._asks.get():
                answer: Readings | Exception
                try:
                    answer = source.read()
                except Exception as error:
                    answer = error
                self.cpu_s = time.thread_time()
                self._answers.put(answer)
        finally:
            source.close()
