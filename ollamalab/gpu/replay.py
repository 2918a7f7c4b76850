"""GPU samples of a saved run, given out again at the pace at which they were taken."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ollamalab.errors import RunError, SamplerUnavailable
from ollamalab.gpu.values import Readings

_COLUMNS = ("at_s", "source", "name", "value")

Moment = tuple[float, str, dict[str, float | None]]
"""When, source, values."""


def read_recording(path: Path) -> list[Moment]:
    """Return the GPU samples of a file in order of time.

    Args:
        path: ``<experiment>.samples.parquet`` of a run, or JSON: a list of objects with its columns
            ``at_s``, ``source``, ``name`` and ``value`` (null for None), or one such object on each line.

    Raises:
        RunError: It is not such a file, or has no sample of a GPU.
    """
    try:
        rows = _parquet(path) if path.suffix == ".parquet" else _json(path.read_text())
        moments = _moments(rows)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise RunError(
            f"{path} is no recording of GPU samples ({reason}); give a .samples.parquet of a run, or JSON "
            f"with {', '.join(_COLUMNS)}"
        ) from error
    if not moments:
        raise RunError(f"{path} has no sample of a GPU: that run had none to read")
    return moments


def _parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(io.BytesIO(path.read_bytes()), columns=list(_COLUMNS))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _json(text: str) -> Sequence[Mapping[str, Any]]:
    if text.lstrip().startswith("["):
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _moments(rows: Sequence[Mapping[str, Any]]) -> list[Moment]:
    found: dict[tuple[float, str], dict[str, float | None]] = {}
    for row in rows:
        at_s, source, name, value = (row[column] for column in _COLUMNS)
        if not math.isfinite(at_s):
            raise ValueError(f"at_s is {at_s}")
        if source.startswith("gpu"):
            found.setdefault((float(at_s), source), {})[name] = None if value is None else float(value)
    return [
        (at_s, source, values) for (at_s, source), values in sorted(found.items(), key=lambda one: one[0])
    ]


class ReplaySampler:
    """Reads a recording as if it happened now; its first sample belongs to the first reading.

    Attributes:
        notes: Empty.
        names: Empty: a recording does not tell them.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Read the file.

        Args:
            path: See ``read_recording``.
            clock: Monotonic seconds.

        Raises:
            RunError: As ``read_recording``.
        """
        self.notes: list[str] = []
        self.names: dict[str, str] = {}
        self._path = path
        self._clock = clock
        self._moments = read_recording(path)
        self._next = 0
        self._begun_s: float | None = None

    def read(self) -> Readings:
        """Return what was recorded since the previous reading, the latest where there is more than one.

        Raises:
            SamplerUnavailable: The recording is over.
        """
        now_s = self._clock()
        if self._begun_s is None:
            self._begun_s = now_s
        if self._next == len(self._moments):
            lasted_s = self._moments[-1][0] - self._moments[0][0]
            raise SamplerUnavailable(f"the recording {self._path.name} is over after {lasted_s:.1f} s")
        until_s = self._moments[0][0] + now_s - self._begun_s
        found: dict[str, dict[str, float | None]] = {}
        while self._next < len(self._moments) and self._moments[self._next][0] <= until_s:
            _, source, values = self._moments[self._next]
            found.setdefault(source, {}).update(values)
            self._next += 1
        return found

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass
