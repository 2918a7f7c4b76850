"""The ways of asking NVML for each kind of value, and how often each is worth asking.

*Utilisation* is the share of the last 1/6 to 1 s in which at least one kernel ran, not how loaded the
chip is. *Power* comes in two kinds that differ during a burst: the instant and the average over 1 s.
*Energy* is the driver's own counter, which is to be preferred to adding up power. A *buffer* is the
driver's own ring of recent samples, taken more often than we ask.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from ollamalab.gpu.values import event_values

_Values = dict[str, float | None]

Way = Callable[[Any, Any], _Values]
"""Takes the module and a device's handle; raises ``NVMLError``."""


class Reading(NamedTuple):
    """One kind of values.

    Attributes:
        ways: The first that a device supports is kept.
        every_s: Not asked more often; 0 for as often as the sampler is read.
    """

    ways: tuple[Way, ...]
    every_s: float


#: How NVML's value union holds a value, by ``NVML_VALUE_TYPE_...``: its format and the rest of eight bytes.
_UNION = ("d", "I4x", "L", "Q", "q", "i4x", "H6x")
_VALUES = tuple(struct.Struct(f"@{held}") for held in _UNION)
_SAMPLES = tuple(struct.Struct(f"@Q{held}") for held in _UNION)  # c_nvmlSample_t: when, value
_FIELD = struct.Struct("@IIqqII8s")  # c_nvmlFieldValue_t: id, scope, when, latency, type, status, value

_NVML_KB = 1e3


def _fields(nvml: Any, handle: Any, *wanted: int) -> list[float | None]:
    """Return fields in the given order; None those that are not told.

    Raises:
        NVMLError: None of them is.
    """
    # With the scope given, pynvml need not find out by an exception that there is none.
    fields = nvml.nvmlDeviceGetFieldValues(handle, [(field, 0) for field in wanted])
    told: list[float | None] = []
    refused = 0
    # Read as bytes: each attribute of pynvml's structures takes half a microsecond.
    for *_, kind, code, value in map(_FIELD.unpack_from, fields):
        refused = code or refused
        told.append(None if code else _VALUES[kind].unpack(value)[0])
    if refused and told.count(None) == len(told):
        raise nvml.NVMLError(refused)
    return told


def _watts(nvml: Any, handle: Any, field: int) -> float:
    """Return one field of power; raises as ``_fields``."""
    *_, kind, code, value = _FIELD.unpack_from(nvml.nvmlDeviceGetFieldValues(handle, ((field, 0),))[0])
    if code:
        raise nvml.NVMLError(code)
    return float(_VALUES[kind].unpack(value)[0] / 1e3)


def _power_instant(nvml: Any, handle: Any) -> _Values:
    return {"power_instant_w": _watts(nvml, handle, nvml.NVML_FI_DEV_POWER_INSTANT)}


def _power_average(nvml: Any, handle: Any) -> _Values:
    return {"power_average_w": _watts(nvml, handle, nvml.NVML_FI_DEV_POWER_AVERAGE)}


def _power_of_old_chips(nvml: Any, handle: Any) -> _Values:
    # Whether this is an instant or an average depends on the chip, hence a name of its own.
    return {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3}


def _energy(nvml: Any, handle: Any) -> _Values:
    return {"energy_j": nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}


def _utilisation(nvml: Any, handle: Any) -> _Values:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"sm_utilisation_ratio": rates.gpu / 100, "memory_utilisation_ratio": rates.memory / 100}


def _memory(nvml: Any, handle: Any) -> _Values:
    return _memory_values(nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2))


def _memory_of_old_drivers(nvml: Any, handle: Any) -> _Values:
    # Counts what the driver reserves for itself as used.
    return _memory_values(nvml.nvmlDeviceGetMemoryInfo(handle))


def _memory_values(memory: Any) -> _Values:
    return {
        "memory_used_bytes": memory.used,
        "memory_free_bytes": memory.free,
        "memory_total_bytes": memory.total,
    }


def _sm_clock(nvml: Any, handle: Any) -> _Values:
    return {"sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)}


def _memory_clock(nvml: Any, handle: Any) -> _Values:
    return {"memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)}


def _temperature(nvml: Any, handle: Any) -> _Values:
    return {"temperature_c": nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU)}


def _temperature_of_old_drivers(nvml: Any, handle: Any) -> _Values:
    return {"temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)}


def _performance_state(nvml: Any, handle: Any) -> _Values:
    state = nvml.nvmlDeviceGetPerformanceState(handle)
    return {"performance_state": None if state == nvml.NVML_PSTATE_UNKNOWN else state}


def _clock_events(nvml: Any, handle: Any) -> _Values:
    return event_values(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))


def _clock_events_of_old_drivers(nvml: Any, handle: Any) -> _Values:
    return event_values(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _link(nvml: Any, handle: Any) -> _Values:
    return {
        "pcie_generation": nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        "pcie_generation_max": nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        "pcie_width": nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
    }


def _pcie_counters(nvml: Any, handle: Any) -> _Values:
    directions = (nvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, nvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES)
    sent, received = _fields(nvml, handle, *directions)
    return {"pcie_sent_bytes": sent, "pcie_received_bytes": received}


def _pcie_throughput(nvml: Any, handle: Any) -> _Values:
    # Takes 20 ms a direction, in which the driver counts: only where it does not count all the time.
    sent, received = (
        nvml.nvmlDeviceGetPcieThroughput(handle, direction)
        for direction in (nvml.NVML_PCIE_UTIL_TX_BYTES, nvml.NVML_PCIE_UTIL_RX_BYTES)
    )
    return {"pcie_sent_bytes_per_s": sent * _NVML_KB, "pcie_received_bytes_per_s": received * _NVML_KB}


class _Buffer:
    """Mean and greatest of what the driver sampled by itself since it was last asked; first asked, it begins.

    Source: ``nvmlDeviceGetSamples``, which counts time in microseconds.
    """

    def __init__(self, kind: str, name: str, unit: str, scale: float) -> None:
        self._kind = kind
        self._names = (f"{name}_buffer_mean_{unit}", f"{name}_buffer_max_{unit}")
        self._scale = scale
        self._seen_us: dict[int, int] = {}

    def __call__(self, nvml: Any, handle: Any) -> _Values:
        # ctypes handles are neither equal nor hashable by value; a device keeps its one object.
        seen_us = self._seen_us.get(id(handle), 0)
        try:
            kind, samples = nvml.nvmlDeviceGetSamples(handle, getattr(nvml, self._kind), seen_us)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NOT_FOUND:
                raise
            return {}  # nothing new
        # Some drivers hand out places of the ring that are older, or were never used.
        new = [sample for sample in _SAMPLES[kind].iter_unpack(b"".join(samples)) if sample[0] > seen_us]
        if not new:
            return {}
        self._seen_us[id(handle)] = max(new)[0]
        if not seen_us:
            return {}  # of the time before anybody watched
        told = [value for _, value in new]
        mean, most = sum(told) / len(told), float(max(told))
        return dict(zip(self._names, (mean * self._scale, most * self._scale), strict=True))


def readings() -> dict[str, Reading]:
    """Return every kind of reading of a GPU; of a sampler's own, since buffers remember what was seen.

    Left out: lists of processes, which take NVML 5 ms under a lock of the whole driver; see ``processes``.
    """
    return {
        "power": Reading((_power_instant, _power_of_old_chips), 0.0),
        "energy": Reading((_energy,), 0.0),
        # the fastest that any chip renews it
        "utilisation": Reading((_utilisation,), 1 / 6),
        # a governor's steps, which throttling makes last
        "SM clock": Reading((_sm_clock,), 0.2),
        "clock events": Reading((_clock_events, _clock_events_of_old_drivers), 0.5),
        # over a second
        "average power": Reading((_power_average,), 0.5),
        "memory": Reading((_memory, _memory_of_old_drivers), 0.5),
        "memory clock": Reading((_memory_clock,), 1.0),
        "temperature": Reading((_temperature, _temperature_of_old_drivers), 1.0),
        "performance state": Reading((_performance_state,), 1.0),
        # before a ring of 120 samples at 50 Hz has gone round
        "power buffer": Reading((_Buffer("NVML_TOTAL_POWER_SAMPLES", "power", "w", 1e-3),), 2.0),
        "utilisation buffer": Reading(
            (_Buffer("NVML_GPU_UTILIZATION_SAMPLES", "sm_utilisation", "ratio", 1e-2),), 2.0
        ),
        "PCIe link": Reading((_link,), 10.0),
        "PCIe traffic": Reading((_pcie_counters, _pcie_throughput), 10.0),
    }


#: What a MIG instance tells; power, energy, clocks and utilisation belong to its GPU.
INSTANCE_VALUES = ("memory_used_bytes", "memory_free_bytes", "memory_total_bytes")


def instance_readings() -> dict[str, Reading]:
    """Return every kind of reading of a MIG instance."""
    return {"memory": Reading((_memory, _memory_of_old_drivers), 0.5)}
