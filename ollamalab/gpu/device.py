"""One GPU or MIG instance that NVML reads: what it has turned out to support, and what is due."""

from __future__ import annotations

import time
from collections.abc import Mapping
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
    """One kind of reading on one device."""

    ways: list[Way]
    every_s: float
    spent: Spent
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
        spent: Mapping[str, Spent],
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
            spent: Where each kind's cost is added up.
            names: The values that the first reading has; None those that the device does not tell.
            stagger: Share of a period by which slow kinds come later than on the first device.
        """
        self.source = source
        self._nvml = nvml
        self._handle = handle
        self._missing: Values = dict.fromkeys(names)
        self._stagger = stagger
        every = [_Kind(list(one.ways), one.every_s, spent[kind]) for kind, one in kinds.items()]
        self._fast = [kind for kind in every if not kind.every_s]
        self._slow = [kind for kind in every if kind.every_s]
        self._due_s = float("-inf")  # of the first slow kind

    def read(self, now_s: float) -> Values:
        """Return the values that are due, now; the first time all of them.

        Raises:
            SamplerUnavailable: The device is gone.
        """
        values, self._missing = dict(self._missing), {}
        for kind in self._fast:
            if kind.ways:
                self._read_into(values, kind)
        if now_s + _EARLY_S >= self._due_s:
            self._due_s = float("inf")
            for kind in self._slow:
                if now_s + _EARLY_S >= kind.due_s:
                    self._set_next(kind, now_s)
                    if kind.ways:
                        self._read_into(values, kind)
                self._due_s = min(self._due_s, kind.due_s)
        return values

    def _read_into(self, values: dict[str, float | None], kind: _Kind) -> None:
        begun_s = time.perf_counter()
        values |= self._first_supported(kind.ways)
        kind.spent.elapsed_s += time.perf_counter() - begun_s
        kind.spent.readings += 1

    def _set_next(self, kind: _Kind, now_s: float) -> None:
        if kind.due_s == float("-inf"):
            kind.due_s = now_s + kind.every_s * (1 + self._stagger)
        else:
            kind.due_s, _ = next_beat(kind.due_s, max(now_s, kind.due_s), kind.every_s)

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
