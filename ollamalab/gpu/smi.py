"""GPUs through ``nvidia-smi``: for machines where only that command may be run.

One process loops and writes CSV; it ends with us, even after ``kill -9``. It tells no energy counter.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Self

from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu.values import VALUES, Readings, event_values, settled
from ollamalab.lifeline import tethered

_MIB = 2.0**20

#: Field to the value that it tells and how many of the value's units one of its own is.
_NUMBERS: Mapping[str, tuple[str, float]] = {
    "pcie.link.gen.max": ("pcie_generation_max", 1),
    "pcie.link.gen.current": ("pcie_generation", 1),
    "pcie.link.width.current": ("pcie_width", 1),
    "temperature.gpu": ("temperature_c", 1),
    "utilization.gpu": ("sm_utilisation_ratio", 1e-2),
    "utilization.memory": ("memory_utilisation_ratio", 1e-2),
    "memory.total": ("memory_total_bytes", _MIB),
    "memory.free": ("memory_free_bytes", _MIB),
    "memory.used": ("memory_used_bytes", _MIB),
    "power.draw": ("power_w", 1),
    "power.draw.average": ("power_average_w", 1),
    "power.draw.instant": ("power_instant_w", 1),
    "clocks.sm": ("sm_clock_mhz", 1),
    "clocks.mem": ("memory_clock_mhz", 1),
}

#: Why clocks are held down; before driver 535 it has the second name only.
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")

#: The fields that the first source document lists and that vary or name the GPU, and power and clocks.
FIELDS = ("index", "name", "pstate", *_NUMBERS, *_REASONS)

_INTERVAL_S = 0.5

#: Without persistence mode it wakes every GPU first.
_OPENING_S = 30.0

#: A silence of so many intervals is a stall.
_STALLED_INTERVALS = 10

_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')

Row = tuple[str, str, dict[str, float | None]]
"""Source, product name, values."""


def read_row(line: str, fields: Sequence[str]) -> Row | None:
    """Return what one line of its CSV says; None if it is none. Pure.

    Args:
        line: "0, NVIDIA H200, P0, ...", without units; "[N/A]" and its like are None.
        fields: The columns.
    """
    cells = [cell.strip() for cell in line.split(",")]
    row = dict(zip(fields, cells, strict=False))
    if len(cells) != len(fields) or not row["index"].isdecimal():
        return None
    values: dict[str, float | None] = dict.fromkeys(VALUES)
    for field, (name, unit) in _NUMBERS.items():
        number = _number(row.get(field, ""))
        values[name] = None if number is None else number * unit
    values["performance_state"] = _number(row.get("pstate", "").removeprefix("P"))
    masks = [row[field] for field in _REASONS if row.get(field, "").startswith("0x")]
    if masks:
        values |= event_values(int(masks[0], 16))
    return f"gpu{row['index']}", row["name"], settled(values)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


class NvidiaSmiSampler:
    """Reads what a looping ``nvidia-smi`` last wrote, without ever waiting for it.

    Sources and values as ``GpuSampler``; what it does not tell is None.

    Attributes:
        notes: Fields that this version does not know; when it fell silent.
        names: Source to the product's name.
    """

    def __init__(
        self,
        command: str = "nvidia-smi",
        *,
        interval_s: float = _INTERVAL_S,
        opening_s: float = _OPENING_S,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Start it, and wait for its first line.

        Args:
            command: The program, searched on PATH.
            interval_s: Between its lines of one GPU.
            opening_s: Longest wait for the first line.
            clock: Monotonic seconds.

        Raises:
            SamplerUnavailable: It does not start, fails, or says nothing; with what it last said.
        """
        self.notes: list[str] = []
        self.names: dict[str, str] = {}
        self._clock = clock
        self._interval_s = interval_s
        self._news = threading.Condition()
        self._new: dict[str, dict[str, float | None]] = {}
        self._said: list[str] = []  # what it wrote that is no row
        self._heard_s = clock()
        self._is_silent = False
        self._has_ended = False
        if shutil.which(command) is None:
            raise SamplerUnavailable(f"no GPU: there is no {command} on PATH")
        fields = list(FIELDS)
        while True:
            self._start(command, tuple(fields))
            with self._news:
                self._news.wait_for(lambda: self._new or self._has_ended, timeout=opening_s)
                if self._new:
                    return
                said = " ".join(self._said)
            status = self._end()
            unknown = _UNKNOWN_FIELD.search(said)
            if status is None or unknown is None or unknown[1] not in fields:
                raise SamplerUnavailable(_why(command, said, status, opening_s))
            fields.remove(unknown[1])
            self.notes.append(f"{command} does not know {unknown[1]}; its version is too old or too new")

    def _start(self, command: str, fields: tuple[str, ...]) -> None:
        loop = ["--format=csv,noheader,nounits", f"--loop-ms={round(self._interval_s * 1e3)}"]
        self._has_ended, self._said = False, []
        self._process = subprocess.Popen(
            tethered([command, f"--query-gpu={','.join(fields)}", *loop]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        assert self._process.stdout is not None
        self._thread = threading.Thread(
            target=self._listen,
            args=(self._process.stdout, fields),
            name="ollamalab-nvidia-smi",
            daemon=True,
        )
        self._thread.start()

    def _listen(self, lines: Iterable[str], fields: tuple[str, ...]) -> None:
        for line in lines:
            row = read_row(line, fields)
            with self._news:
                self._heard_s = self._clock()
                if row is None:
                    self._said = [*self._said, line.strip()][-3:]
                else:
                    source, self.names[source], self._new[source] = row
                self._news.notify_all()
        with self._news:
            self._has_ended = True
            self._news.notify_all()

    def read(self) -> Readings:
        """Return what is new of each GPU; nothing between its lines and while it is silent, which is noted.

        Raises:
            SamplerUnavailable: It has ended.
        """
        with self._news:
            new, self._new = self._new, {}
            silent_s = self._clock() - self._heard_s
            if not new and self._has_ended:
                raise SamplerUnavailable(
                    f"nvidia-smi has ended: {' '.join(self._said) or 'it did not say why'}"
                )
        was_silent, self._is_silent = self._is_silent, silent_s > _STALLED_INTERVALS * self._interval_s
        if self._is_silent and not was_silent:
            self.notes.append(f"nvidia-smi has been silent for {silent_s:.1f} s; it is waited for")
        elif was_silent and not self._is_silent:
            self.notes.append("nvidia-smi speaks again")
        return new

    def close(self) -> None:
        """End it."""
        self._end()

    def _end(self) -> int | None:
        """End the process and the thread that listens; return its exit status, None if it had to be ended."""
        had_ended = self._has_ended
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()  # the lifeline
        status = self._process.wait()
        self._thread.join()
        self._process.stdout.close()
        return status if had_ended else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _why(command: str, said: str, status: int | None, opening_s: float) -> str:
    if status is None:
        return f"no GPU: {command} said nothing within {opening_s:g} s; does it answer in a terminal?"
    reason = said or "it did not say why"
    return f"no GPU: {command} ended with status {status}: {reason}"
