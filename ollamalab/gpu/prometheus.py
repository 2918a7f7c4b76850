"""Names of GPU values in Prometheus text: DCGM's and our own. Pure.

Own names follow Prometheus: base units, counters end in ``_total``; ``energy_j`` of gpu0 is
``ollamalab_gpu_energy_joules_total{gpu="gpu0",name="NVIDIA H200"}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client.parser import text_string_to_metric_families

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
    # Only our lines: a page may have thousands of others, and the parser takes 20 µs for each.
    lines = [line for line in text.splitlines() if line.startswith(("DCGM_FI_DEV_", PREFIX))]
    found: dict[str, dict[str, float | None]] = {}
    reserved: dict[str, float] = {}
    names: dict[str, str] = {}
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            source = _source(sample.labels)
            if source is None:
                continue
            names[source] = sample.labels.get("modelName") or sample.labels.get("name") or ""
            values = found.setdefault(source, {})
            if sample.name in _OWN:
                name, factor = _OWN[sample.name]
                values[name] = sample.value / factor
            elif _is_blank(sample.value):
                continue
            elif sample.name in DCGM:
                name, unit = DCGM[sample.name]
                values[name] = sample.value * unit
            elif sample.name == _DCGM_RESERVED:
                reserved[source] = sample.value * _MIB
    return {source: _completed(values, reserved.get(source, 0.0)) for source, values in found.items()}, names


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
