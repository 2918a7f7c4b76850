"""What can be told of a GPU: names with their units, and the reasons behind its clocks. Pure."""

from __future__ import annotations

from collections.abc import Mapping

Values = Mapping[str, float | None]
"""Name to value; None where this GPU cannot tell, absent where it was not read this time."""

Readings = Mapping[str, Values]
"""Source ("gpu0", a MIG instance "gpu0/mig3") to its values."""

#: All values of a GPU, whatever tells them.
VALUES = (
    "power_instant_w",
    "power_average_w",
    "power_w",
    "energy_j",
    "sm_utilisation_ratio",
    "memory_utilisation_ratio",
    "memory_used_bytes",
    "memory_free_bytes",
    "memory_total_bytes",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "performance_state",
    "clock_event_mask",
    "is_throttled",
    "pcie_generation",
    "pcie_generation_max",
    "pcie_width",
    "pcie_sent_bytes",
    "pcie_received_bytes",
    "pcie_sent_bytes_per_s",
    "pcie_received_bytes_per_s",
    "power_buffer_mean_w",
    "power_buffer_max_w",
    "sm_utilisation_buffer_mean_ratio",
    "sm_utilisation_buffer_max_ratio",
)

#: Values that count up for as long as the driver is loaded.
COUNTERS = frozenset({"energy_j", "pcie_sent_bytes", "pcie_received_bytes"})

#: Clock event reasons ("throttle reasons" before driver 535), bit to name.
CLOCK_EVENTS: Mapping[int, str] = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "software power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "software thermal slowdown",
    0x040: "hardware thermal slowdown",
    0x080: "hardware power brake",
    0x100: "display clocks",
}
_THROTTLING = 0x004 | 0x008 | 0x020 | 0x040 | 0x080


def clock_events(mask: float) -> tuple[str, ...]:
    """Return the names of the bits in ``clock_event_mask``; unknown bits are left out.

    Same figure: ``nvidia-smi -q -d PERFORMANCE``.
    """
    return tuple(name for bit, name in CLOCK_EVENTS.items() if int(mask) & bit)


def throttling(mask: float) -> tuple[str, ...]:
    """Return the names of those bits that hold the clocks down for heat or power."""
    return clock_events(int(mask) & _THROTTLING)


def settled(values: dict[str, float | None]) -> dict[str, float | None]:
    """Return values without ``power_w`` where the instant is told, as every source has it."""
    return values if values.get("power_instant_w") is None else {**values, "power_w": None}


def event_values(mask: int) -> dict[str, float | None]:
    """Return the values that a mask of clock events tells."""
    return {"clock_event_mask": mask, "is_throttled": float(bool(mask & _THROTTLING))}
