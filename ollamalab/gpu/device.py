"""One GPU or MIG instance that NVML reads: what it has turned out to support, and what is due."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu.nvml import is_gone, is_unsupported
from ollamalab.gpu.readings import Reading, Way
from ollamalab.gpu.values import VALUES, Values
from ollamalab.sampling import next_beat

#: A reading that falls due within this time is taken now: beats jitter, and one missed costs a whole beat.
_EARLY_S = 0.005


@dataclass(slots=True)
class Spent:
    """What one kind of reading took so far."""

    readings: int = 0
    elapsed_s: float = 0.0


@dataclass(slots=True)
class _Kind:
    """One kind of reading on one device; its cost is measured where there is somewhere to put it."""

    ways: list[Way]
    spent: Spent | None


@dataclass(slots=True)
class _Pace:
    """Kinds that are read equally often, in one go: each asked by itself, they would take longer to plan."""

    every_s: float
    kinds: list[_Kind]
    due_s: float = float("-inf")


class Device:
    """Reads one device; slow kinds of values at their own pace, the same ones never all at once.

    Attributes:
        source: Its name in samples.
    """

    def __init__(
        self,
        nvml: Any,
        handle: Any,
        source: str,
        kinds: Mapping[str, Reading],
        spent: Mapping[str, Spent] | None,
        *,
        names: tuple[str, ...] = VALUES,
        stagger: float = 0.0,
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            nvml: The module to call.
            handle: Of the device.
            source: Its name in samples.
            kinds: What to read.
            spent: Where each kind's cost is added up; None leaves it unmeasured.
            names: The values that the first reading has; None those that the device does not tell.
            stagger: Share of a period by which slow kinds come later than on the first device.
        """
        self.source = source
        self._nvml = nvml
        self._handle = handle
        self._missing: dict[str, float | None] = dict.fromkeys(names)
        self._stagger = stagger
        paces: defaultdict[float, list[_Kind]] = defaultdict(list)
        for name, kind in kinds.items():
            paces[kind.every_s].append(_Kind(list(kind.ways), None if spent is None else spent[name]))
        self._fast = paces.pop(0.0, [])
        self._slow = [_Pace(every_s, its_kinds) for every_s, its_kinds in paces.items()]
        self._due_s = float("-inf")  # of the first slow kind

    def read(self, now_s: float) -> Values:
        """Return the values that are due, now; the first time all of them.

        Raises:
            SamplerUnavailable: The device is gone.
        """
        values, self._missing = self._missing, {}
        self._read_into(values, self._fast)
        soon_s = now_s + _EARLY_S
        if soon_s >= self._due_s:
            self._due_s = float("inf")
            for pace in self._slow:
                if soon_s >= pace.due_s:
                    self._set_next(pace, now_s)
                    self._read_into(values, pace.kinds)
                if pace.due_s < self._due_s:
                    self._due_s = pace.due_s
        return values

    def _read_into(self, values: dict[str, float | None], kinds: Sequence[_Kind]) -> None:
        for kind in kinds:
            spent = kind.spent
            if spent is None:
                values.update(self._first_supported(kind.ways))
            elif kind.ways:
                begun_s = time.perf_counter()
                values.update(self._first_supported(kind.ways))
                spent.elapsed_s += time.perf_counter() - begun_s
                spent.readings += 1

    def _set_next(self, pace: _Pace, now_s: float) -> None:
        if pace.due_s == float("-inf"):
            pace.due_s = now_s + pace.every_s * (1 + self._stagger)
        else:
            pace.due_s, _ = next_beat(pace.due_s, max(now_s, pace.due_s), pace.every_s)

    def _first_supported(self, ways: list[Way]) -> Values:
        """Read in the first way that works, and forget for good those that are not supported."""
        while ways:
            try:
                return ways[0](self._nvml, self._handle)
            except self._nvml.NVMLError as error:
                if is_gone(self._nvml, error.value):
                    raise SamplerUnavailable(f"{self.source} went away: {error}") from error
                if not is_unsupported(self._nvml, error.value):
                    return {}  # busy or timed out: this once
                del ways[0]
        return {}
