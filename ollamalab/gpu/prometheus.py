"""Names of GPU values in Prometheus text: DCGM's and our own. Pure.

Own names follow Prometheus: base units, counters end in ``_total``; ``energy_j`` of gpu0 is
``ollamalab_gpu_energy_joules_total{gpu="gpu0",name="NVIDIA H200"}``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from ollamalab.gpu.values import COUNTERS, VALUES, event_values, settled

PREFIX = "ollamalab_gpu_"

_MIB = 2.0**20

#: Our unit, at the end of a name, to Prometheus's and how many of it ours is.
_UNITS = (
    ("_bytes_per_s", "_bytes_per_second", 1.0),
    ("_mhz", "_hertz", 1e6),
    ("_w", "_watts", 1.0),
    ("_j", "_joules", 1.0),
    ("_c", "_celsius", 1.0),
)


def _exposed(name: str) -> tuple[str, float]:
    total = "_total" if name in COUNTERS else ""
    for unit, base, factor in _UNITS:
        if name.endswith(unit):
            return f"{PREFIX}{name.removesuffix(unit)}{base}{total}", factor
    return f"{PREFIX}{name}{total}", 1.0


#: Value to its metric's name and how many of the metric's units one of the value's is.
EXPOSED: Mapping[str, tuple[str, float]] = MappingProxyType({name: _exposed(name) for name in VALUES})

_OWN = {metric: (name, factor) for name, (metric, factor) in EXPOSED.items()}

#: DCGM exporter's metric to the value that it tells and how many of the value's units one of its own is.
#: Left out: the ``PROF_PCIE`` ones, which are rates or counts, depending on whom one asks.
DCGM: Mapping[str, tuple[str, float]] = {
    "DCGM_FI_DEV_POWER_USAGE": ("power_w", 1),
    "DCGM_FI_DEV_POWER_USAGE_INSTANT": ("power_instant_w", 1),
    "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION": ("energy_j", 1e-3),
    "DCGM_FI_DEV_GPU_UTIL": ("sm_utilisation_ratio", 1e-2),
    "DCGM_FI_DEV_MEM_COPY_UTIL": ("memory_utilisation_ratio", 1e-2),
    "DCGM_FI_DEV_FB_USED": ("memory_used_bytes", _MIB),
    "DCGM_FI_DEV_FB_FREE": ("memory_free_bytes", _MIB),
    "DCGM_FI_DEV_FB_TOTAL": ("memory_total_bytes", _MIB),
    "DCGM_FI_DEV_SM_CLOCK": ("sm_clock_mhz", 1),
    "DCGM_FI_DEV_MEM_CLOCK": ("memory_clock_mhz", 1),
    "DCGM_FI_DEV_GPU_TEMP": ("temperature_c", 1),
    "DCGM_FI_DEV_PSTATE": ("performance_state", 1),
    "DCGM_FI_DEV_CLOCK_THROTTLE_REASONS": ("clock_event_mask", 1),
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": ("clock_event_mask", 1),
    "DCGM_FI_DEV_PCIE_LINK_GEN": ("pcie_generation", 1),
    "DCGM_FI_DEV_PCIE_MAX_LINK_GEN": ("pcie_generation_max", 1),
    "DCGM_FI_DEV_PCIE_LINK_WIDTH": ("pcie_width", 1),
}
_DCGM_RESERVED = "DCGM_FI_DEV_FB_RESERVED"

_KNOWN = frozenset((*_OWN, *DCGM, _DCGM_RESERVED))

_QUOTED = r'"[^"\\]*(?:\\.[^"\\]*)*"'
_LABEL = re.compile(rf"(\w+)=({_QUOTED})")
_LABELS = re.compile(rf"(?:\w+={_QUOTED},?)*")
_ESCAPE = re.compile(r"\\(.)")

#: DCGM's "blank" numbers begin here; each says why there is no value.
_BLANK_INTEGER = 0x7FFFFFFFFFFFFFF0
_BLANK_FLOATS = (140737488355328.0, 140737488355343.0)


def read_page(text: str) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """Return the values of each GPU on a page of Prometheus text, and its product's name.

    Args:
        text: Of DCGM's exporter, of ``ollamalab monitor --serve``, or of both; other metrics are passed over.

    Raises:
        ValueError: It is not Prometheus text.
    """
    found: dict[str, dict[str, float | None]] = {}
    reserved: dict[str, float] = {}
    names: dict[str, str] = {}
    for line in text.split("\n"):
        metric, _, rest = line.partition("{")
        if metric not in _KNOWN:
            continue
        quoted, _, numbers = rest.rpartition("}")
        labels, number = _labels(quoted), _number(numbers)
        source = _source(labels)
        if source is None or not math.isfinite(number):
            continue
        names[source] = labels.get("modelName") or labels.get("name") or ""
        values = found.setdefault(source, {})
        if metric in _OWN:
            name, factor = _OWN[metric]
            values[name] = number / factor
        elif _is_blank(number):
            continue
        elif metric == _DCGM_RESERVED:
            reserved[source] = number * _MIB
        else:
            name, unit = DCGM[metric]
            values[name] = number * unit
    return {source: _completed(values, reserved.get(source, 0.0)) for source, values in found.items()}, names


def _number(text: str) -> float:
    """Return the number before the time, if there is one.

    Raises:
        ValueError: None.
    """
    return float((text.split() or [""])[0])


@lru_cache(maxsize=1024)  # all metrics of a GPU have the same ones
def _labels(text: str) -> Mapping[str, str]:
    """Return labels by name.

    Raises:
        ValueError: Not labels.
    """
    if _LABELS.fullmatch(text) is None:
        raise ValueError(f"not labels of Prometheus text: {text[:80]!r}")
    return {
        name: _ESCAPE.sub(lambda one: "\n" if one[1] == "n" else one[1], quoted[1:-1])
        for name, quoted in _LABEL.findall(text)
    }


def _completed(values: Mapping[str, float | None], reserved_bytes: float) -> dict[str, float | None]:
    """Add what follows from other values; None what is not told."""
    whole = {**dict.fromkeys(VALUES), **values}
    mask, used, free = (
        whole[name] for name in ("clock_event_mask", "memory_used_bytes", "memory_free_bytes")
    )
    if mask is not None:
        whole |= event_values(int(mask))
    if whole["memory_total_bytes"] is None and used is not None and free is not None:
        whole["memory_total_bytes"] = used + free + reserved_bytes
    return settled(whole)


def _source(labels: Mapping[str, str]) -> str | None:
    gpu = labels.get("gpu", "")
    if not gpu:
        return None
    source = f"gpu{gpu}" if gpu.isdecimal() else gpu
    return f"{source}/mig{labels['GPU_I_ID']}" if labels.get("GPU_I_ID") else source


def _is_blank(value: float) -> bool:
    return value >= _BLANK_INTEGER or _BLANK_FLOATS[0] <= value <= _BLANK_FLOATS[1]
