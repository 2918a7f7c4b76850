"""A stand-in for the NVIDIA driver, with NVML's own constants, structures and errors.

It describes the machine of ``gpu_machine``: what every source is to tell of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pynvml

#: What each function answers by default, on every device.
ANSWERS: dict[str, Any] = {
    "nvmlDeviceGetPowerUsage": 90_500,
    "nvmlDeviceGetTotalEnergyConsumption": 1_234_567,
    "nvmlDeviceGetUtilizationRates": pynvml.c_nvmlUtilization_t(gpu=85, memory=40),
    "nvmlDeviceGetMemoryInfo": pynvml.c_nvmlMemory_v2_t(
        total=80 << 30, used=20 << 30, reserved=1 << 30, free=59 << 30
    ),
    "nvmlDeviceGetTemperatureV": 61,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetPerformanceState": 0,
    "nvmlDeviceGetCurrentClocksEventReasons": pynvml.nvmlClocksEventReasonSwPowerCap,
    "nvmlDeviceGetCurrentClocksThrottleReasons": pynvml.nvmlClocksThrottleReasonGpuIdle,
    "nvmlDeviceGetName": "NVIDIA Stand-in",
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetEnforcedPowerLimit": 650_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetMaxMigDeviceCount": 7,
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetPcieThroughput": 250_000,
    "nvmlDeviceGetComputeRunningProcesses": [],
}

#: Fields of ``nvmlDeviceGetFieldValues``: milliwatts and bytes.
FIELDS: Mapping[int, int] = {
    pynvml.NVML_FI_DEV_POWER_INSTANT: 412_000,
    pynvml.NVML_FI_DEV_POWER_AVERAGE: 388_250,
    pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES: 5_000_000,
    pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES: 7_000_000,
}


class Nvml:
    """An NVML with some GPUs, whose functions can be made to fail with one of NVML's errors.

    Attributes:
        calls: How often each function was called.
        failing: Function ("*": all) and device to the error.
        field_errors: Field to the error.
        instances: GPU to the ids of its MIG instances; their handles are 100 × GPU + id.
        ring: What ``nvmlDeviceGetSamples`` holds: kind to (microseconds, value).
        open: Initialisations that were not taken back.
        blocked: Called by every function on a device, so that a test can hold it up.
    """

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.calls: Counter[str] = Counter()
        self.failing: dict[tuple[str, int], int] = {}
        self.field_errors: dict[int, int] = {}
        self.instances: dict[int, list[int]] = {}
        self.ring: dict[int, list[tuple[int, int]]] = {}
        self.open = 0
        self.blocked: Callable[[], object] = lambda: None

    def fail(self, function: str, error: int, *, device: int = 0) -> None:
        self.failing[function, device] = error

    def __getattr__(self, name: str) -> Any:
        if name in ANSWERS:
            return self._function(name, lambda *_, **__: ANSWERS[name])
        assert name.startswith(("NVML", "nvmlMemory_v2")), f"the stand-in has no {name}"
        return getattr(pynvml, name)

    def _function(self, name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def call(device: int, *rest: Any, **options: Any) -> Any:
            self.calls[name] += 1
            self.blocked()
            error = self.failing.get((name, device)) or self.failing.get(("*", device))
            if error is not None:
                raise pynvml.NVMLError(error)
            return answer(device, *rest, **options)

        return call

    def nvmlInit(self) -> None:
        if error := self.failing.get(("nvmlInit", 0)):
            raise pynvml.NVMLError(error)
        self.open += 1

    def nvmlShutdown(self) -> None:
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:
        return self.gpus

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.159.03"

    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13010

    @property
    def nvmlDeviceGetHandleByIndex(self) -> Callable[[int], int]:
        return self._function("nvmlDeviceGetHandleByIndex", lambda device: device)

    @property
    def nvmlDeviceGetClockInfo(self) -> Callable[..., int]:
        clocks = {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 3201}
        return self._function("nvmlDeviceGetClockInfo", lambda _, kind: clocks[kind])

    @property
    def nvmlDeviceGetMigMode(self) -> Callable[..., list[int]]:
        return self._function("nvmlDeviceGetMigMode", lambda device: [int(device in self.instances)] * 2)

    @property
    def nvmlDeviceGetMigDeviceHandleByIndex(self) -> Callable[..., int]:
        def answer(device: int, place: int) -> int:
            if place >= len(self.instances[device]):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            return 100 * device + self.instances[device][place]

        return self._function("nvmlDeviceGetMigDeviceHandleByIndex", answer)

    @property
    def nvmlDeviceGetGpuInstanceId(self) -> Callable[..., int]:
        return self._function("nvmlDeviceGetGpuInstanceId", lambda handle: handle % 100)

    @property
    def nvmlDeviceGetSamples(self) -> Callable[..., tuple[int, list[Any]]]:
        def answer(_: int, kind: int, seen_us: int) -> tuple[int, list[Any]]:
            samples = []
            for at_us, value in self.ring.get(kind, []):
                sample = pynvml.c_nvmlSample_t(timeStamp=at_us)
                sample.sampleValue.uiVal = value
                samples.append(sample)
            if not any(sample.timeStamp > seen_us for sample in samples):
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
            # The driver hands out places of its ring that were never used.
            return pynvml.NVML_VALUE_TYPE_UNSIGNED_INT, [pynvml.c_nvmlSample_t(timeStamp=0), *samples]

        return self._function("nvmlDeviceGetSamples", answer)

    @property
    def nvmlDeviceGetFieldValues(self) -> Callable[..., list[Any]]:
        def answer(_: int, fields: list[tuple[int, int]]) -> list[Any]:
            values = []
            for field, _scope in fields:
                status = self.field_errors.get(field, pynvml.NVML_SUCCESS)
                value = pynvml.c_nvmlFieldValue_t(fieldId=field, nvmlReturn=status)
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
                value.value.ullVal = FIELDS[field]
                values.append(value)
            return values

        return self._function("nvmlDeviceGetFieldValues", answer)
