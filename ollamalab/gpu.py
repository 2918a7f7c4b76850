"""NVIDIA GPUs through NVML: what they are, and a sampler of them.

NVML is the library behind ``nvidia-smi``. *Utilisation* is the share of the last 1/6 to 1 s in which at
least one kernel ran, not how loaded the chip is. *Power* comes in two kinds that differ during a
burst: the instant and the average over 1 s. *Energy* is the driver's own counter, which is to be
preferred to adding up power. Without a GPU there is a reason, never a zero.

Every function takes ``nvml``, the module to call; the default is ``pynvml`` of nvidia-ml-py.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from ollamalab.errors import SamplerUnavailable

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

#: Names of ``NVML_ERROR_...`` that mean "never, on this device".
_UNSUPPORTED = (
    "NOT_SUPPORTED",
    "INVALID_ARGUMENT",
    "NO_PERMISSION",
    "FUNCTION_NOT_FOUND",
    "ARGUMENT_VERSION_MISMATCH",
    "DEPRECATED",
)
#: Names of those that mean "the device or its driver is gone".
_GONE = ("UNINITIALIZED", "DRIVER_NOT_LOADED", "GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND")

_WHY_NOT = {
    "LIBRARY_NOT_FOUND": "the NVIDIA driver's library (libnvidia-ml) is not on this machine",
    "DRIVER_NOT_LOADED": "the NVIDIA driver is not loaded; what does `nvidia-smi` say?",
    "NO_PERMISSION": "no permission to ask the NVIDIA driver; may this user read /dev/nvidia*?",
    "LIB_RM_VERSION_MISMATCH": "NVIDIA's driver and library differ in version; reboot after the update",
}

#: Attribute of NVML's value union, by ``NVML_VALUE_TYPE_...``.
_UNION = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")

_Values = dict[str, float | None]
_Reading = Callable[[Any, Any], _Values]


def clock_events(mask: float) -> tuple[str, ...]:
    """Return the names of the bits in ``clock_event_mask``; unknown bits are left out.

    Same figure: ``nvidia-smi -q -d PERFORMANCE``.
    """
    return tuple(name for bit, name in CLOCK_EVENTS.items() if int(mask) & bit)


def _is(nvml: Any, error: Any, names: tuple[str, ...]) -> bool:
    return error in {getattr(nvml, f"NVML_ERROR_{name}") for name in names}


def _power(nvml: Any, handle: Any) -> _Values:
    wanted = {
        "power_instant_w": nvml.NVML_FI_DEV_POWER_INSTANT,
        "power_average_w": nvml.NVML_FI_DEV_POWER_AVERAGE,
    }
    fields = nvml.nvmlDeviceGetFieldValues(handle, list(wanted.values()))
    if all(_is(nvml, field.nvmlReturn, _UNSUPPORTED) for field in fields):
        raise nvml.NVMLError(nvml.NVML_ERROR_NOT_SUPPORTED)
    return {
        name: getattr(field.value, _UNION[field.valueType]) / 1e3
        if field.nvmlReturn == nvml.NVML_SUCCESS
        else None
        for name, field in zip(wanted, fields, strict=True)
    }


def _power_of_old_chips(nvml: Any, handle: Any) -> _Values:
    # Whether this is an instant or an average depends on the chip, hence a name of its own.
    return {"power_w": nvml.nvmlDeviceGetPowerUsage(handle) / 1e3}


def _energy(nvml: Any, handle: Any) -> _Values:
    return {"energy_j": nvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3}


def _utilisation(nvml: Any, handle: Any) -> _Values:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"sm_utilisation_ratio": rates.gpu / 100, "memory_utilisation_ratio": rates.memory / 100}


def _memory(nvml: Any, handle: Any) -> _Values:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    return {"memory_used_bytes": memory.used, "memory_total_bytes": memory.total}


def _memory_of_old_drivers(nvml: Any, handle: Any) -> _Values:
    # Counts what the driver reserves for itself as used.
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_used_bytes": memory.used, "memory_total_bytes": memory.total}


def _clocks(nvml: Any, handle: Any) -> _Values:
    return {
        "sm_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
        "memory_clock_mhz": nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
    }


def _temperature(nvml: Any, handle: Any) -> _Values:
    return {"temperature_c": nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU)}


def _temperature_of_old_drivers(nvml: Any, handle: Any) -> _Values:
    return {"temperature_c": nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)}


def _events(mask: int) -> _Values:
    return {"clock_event_mask": mask, "is_throttled": float(bool(mask & _THROTTLING))}


def _clock_events(nvml: Any, handle: Any) -> _Values:
    return _events(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))


def _clock_events_of_old_drivers(nvml: Any, handle: Any) -> _Values:
    return _events(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


#: Kind of reading to the ways of getting it; the first that a device supports is kept. Left out: PCIe
#: throughput, which takes NVML 20 ms a direction, and process lists, which take 5 ms under a global lock.
_READINGS: Mapping[str, tuple[_Reading, ...]] = {
    "power": (_power, _power_of_old_chips),
    "energy": (_energy,),
    "utilisation": (_utilisation,),
    "memory": (_memory, _memory_of_old_drivers),
    "clocks": (_clocks,),
    "temperature": (_temperature, _temperature_of_old_drivers),
    "clock events": (_clock_events, _clock_events_of_old_drivers),
}

#: All values of a GPU's sample; those of a reading that it does not support are None.
VALUES = (
    "power_instant_w",
    "power_average_w",
    "power_w",
    "energy_j",
    "sm_utilisation_ratio",
    "memory_utilisation_ratio",
    "memory_used_bytes",
    "memory_total_bytes",
    "sm_clock_mhz",
    "memory_clock_mhz",
    "temperature_c",
    "clock_event_mask",
    "is_throttled",
)


class _Device:
    """One GPU and what it has turned out to support."""

    def __init__(self, nvml: Any, index: int) -> None:
        self.source = f"gpu{index}"
        self._nvml = nvml
        self._handle = nvml.nvmlDeviceGetHandleByIndex(index)
        self._ways = {kind: list(ways) for kind, ways in _READINGS.items()}

    def read(self, spent_s: dict[str, float]) -> _Values:
        """Return all values, now, and add to the seconds that each kind of reading took.

        Raises:
            SamplerUnavailable: The device is gone.
        """
        values: _Values = dict.fromkeys(VALUES)
        for kind, ways in self._ways.items():
            begun_s = time.perf_counter()
            values |= self._first_supported(ways)
            spent_s[kind] += time.perf_counter() - begun_s
        return values

    def _first_supported(self, ways: list[_Reading]) -> _Values:
        """Read in the first way that works, and forget for good those that are not supported."""
        while ways:
            try:
                return ways[0](self._nvml, self._handle)
            except self._nvml.NVMLError as error:
                if _is(self._nvml, error.value, _GONE):
                    raise SamplerUnavailable(f"{self.source} went away: {error}") from error
                if not _is(self._nvml, error.value, _UNSUPPORTED):
                    return {}  # busy or timed out: this once
                del ways[0]
        return {}


class GpuSampler:
    """Reads every GPU that the driver shows; sources "gpu0", "gpu1", ... in NVML's order.

    ``CUDA_VISIBLE_DEVICES`` does not hide a GPU from NVML. Values: see ``VALUES``. ``power_w`` is told only
    where neither the instant nor the average is; ``energy_j`` counts since the driver was loaded;
    ``clock_event_mask`` is read by ``clock_events`` and ``is_throttled`` is 1 while heat or power holds the
    clocks down. Same figures: ``nvidia-smi -q``.
    """

    def __init__(self, nvml: Any = None) -> None:
        """Open the driver and find its GPUs.

        Args:
            nvml: The module to call; default ``pynvml``.

        Raises:
            SamplerUnavailable: No GPU, with the reason.
        """
        self.notes: list[str] = []
        self._nvml, count = _open(nvml)
        self._devices = []
        for index in range(count):
            try:
                self._devices.append(_Device(self._nvml, index))
            except self._nvml.NVMLError as error:
                self.notes.append(f"gpu{index} cannot be read: {error}")
        self._readings = 0
        self._spent_s = dict.fromkeys(_READINGS, 0.0)

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        """Return the values of each GPU, now; one that went away is left out and noted.

        Raises:
            SamplerUnavailable: No GPU is left.
        """
        readings = {}
        for device in tuple(self._devices):
            try:
                readings[device.source] = device.read(self._spent_s)
                self._readings += 1
            except SamplerUnavailable as error:
                self._devices.remove(device)
                self.notes.append(str(error))
        if not self._devices:
            raise SamplerUnavailable("no GPU is left to read")
        return readings

    def costs_s(self) -> dict[str, float | None]:
        """Return the mean seconds that each kind of reading takes per GPU; None before the first."""
        return {
            kind: spent_s / self._readings if self._readings else None
            for kind, spent_s in self._spent_s.items()
        }

    def close(self) -> None:
        """Let go of the driver; nothing can be read afterwards."""
        self._devices.clear()
        self._nvml.nvmlShutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class NoGpu:
    """Stands where there is no GPU: reads nothing and notes why, so that a notebook runs the same."""

    def __init__(self, reason: str) -> None:
        self.notes = [reason]

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        """Return nothing."""
        return {}

    def close(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def gpu_sampler(nvml: Any = None) -> GpuSampler | NoGpu:
    """Return a sampler of this machine's GPUs, or one that only notes why there is none."""
    try:
        return GpuSampler(nvml)
    except SamplerUnavailable as error:
        return NoGpu(str(error))


def describe_gpus(nvml: Any = None) -> dict[str, Any]:
    """Return the facts of the GPUs that can change a number; goes into the manifest.

    Returns:
        ``gpus``, one per GPU in NVML's order, ``driver``, ``cuda_version``, and ``reason``: why ``gpus`` is
        empty, else None. Of each GPU: ``name``, ``memory_bytes``, ``compute_capability``, ``power_limit_w``
        (in force), ``power_default_w``, ``is_persistent`` (driver stays loaded), ``is_mig``, ``pcie``
        (generation and width now; idle links train down) and ``compute_processes`` (already running).
        None where not told.
    """
    try:
        module, count = _open(nvml)
    except SamplerUnavailable as error:
        return {"gpus": [], "driver": None, "cuda_version": None, "reason": str(error)}
    try:
        cuda = module.nvmlSystemGetCudaDriverVersion_v2()
        return {
            "gpus": [_describe(module, index) for index in range(count)],
            "driver": module.nvmlSystemGetDriverVersion(),
            "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}",
            "reason": None,
        }
    finally:
        module.nvmlShutdown()


def _open(nvml: Any) -> tuple[Any, int]:
    """Initialise NVML; return the module and the number of GPUs.

    Raises:
        SamplerUnavailable: There is none, with the reason.
    """
    module = importlib.import_module("pynvml") if nvml is None else nvml
    try:
        module.nvmlInit()
        count = module.nvmlDeviceGetCount()
    except module.NVMLError as error:
        reasons = {getattr(module, f"NVML_ERROR_{name}"): reason for name, reason in _WHY_NOT.items()}
        raise SamplerUnavailable(f"no GPU: {reasons.get(error.value, error)}") from error
    if not count:
        module.nvmlShutdown()
        raise SamplerUnavailable("no GPU: the NVIDIA driver is loaded but shows none")
    return module, count


def _describe(nvml: Any, index: int) -> dict[str, Any]:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
    except nvml.NVMLError as error:
        return {"name": f"cannot be asked: {error}"}

    def ask(name: str, convert: Callable[[Any], Any]) -> Any:
        try:
            return convert(getattr(nvml, name)(handle))
        except nvml.NVMLError:
            return None

    generation = ask("nvmlDeviceGetCurrPcieLinkGeneration", int)
    width = ask("nvmlDeviceGetCurrPcieLinkWidth", int)
    return {
        "name": ask("nvmlDeviceGetName", str),
        "memory_bytes": ask("nvmlDeviceGetMemoryInfo", lambda memory: int(memory.total)),
        "compute_capability": ask("nvmlDeviceGetCudaComputeCapability", lambda pair: f"{pair[0]}.{pair[1]}"),
        "power_limit_w": ask("nvmlDeviceGetEnforcedPowerLimit", lambda mw: mw / 1e3),
        "power_default_w": ask("nvmlDeviceGetPowerManagementDefaultLimit", lambda mw: mw / 1e3),
        "is_persistent": ask("nvmlDeviceGetPersistenceMode", bool),
        "is_mig": ask("nvmlDeviceGetMigMode", lambda modes: bool(modes[0])),
        "pcie": None if generation is None or width is None else f"{generation}.0 x{width}",
        "compute_processes": ask("nvmlDeviceGetComputeRunningProcesses", len),
    }
