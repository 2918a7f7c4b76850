"""GPUs through NVML: a stand-in for the driver, with NVML's own constants, structures and errors.

That a real driver answers like this is seen where there is one: see
``test_this_machine_has_a_gpu_or_a_reason``.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pynvml
import pytest

from ollamalab import gpu
from ollamalab.errors import SamplerUnavailable
from ollamalab.gpu import VALUES, GpuSampler, NoGpu, clock_events, describe_gpus, gpu_sampler
from ollamalab.sampling import Sampling

#: What each function answers by default, on every device.
ANSWERS: dict[str, Any] = {
    "nvmlDeviceGetPowerUsage": 90_500,
    "nvmlDeviceGetTotalEnergyConsumption": 1_234_567,
    "nvmlDeviceGetUtilizationRates": pynvml.c_nvmlUtilization_t(gpu=85, memory=40),
    "nvmlDeviceGetMemoryInfo": pynvml.c_nvmlMemory_v2_t(total=80 << 30, used=20 << 30, reserved=1 << 30),
    "nvmlDeviceGetTemperatureV": 61,
    "nvmlDeviceGetTemperature": 61,
    "nvmlDeviceGetCurrentClocksEventReasons": pynvml.nvmlClocksEventReasonSwPowerCap,
    "nvmlDeviceGetCurrentClocksThrottleReasons": pynvml.nvmlClocksThrottleReasonGpuIdle,
    "nvmlDeviceGetName": "NVIDIA Stand-in",
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetEnforcedPowerLimit": 650_000,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700_000,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetComputeRunningProcesses": [],
}


class Nvml:
    """An NVML with some GPUs, whose functions can be made to fail with one of NVML's errors."""

    def __init__(self, gpus: int = 1) -> None:
        self.gpus = gpus
        self.calls: Counter[str] = Counter()
        self.failing: dict[tuple[str, int], int] = {}  # function ("*": all) and device to error
        self.field_errors: dict[int, int] = {}
        self.open = 0

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
    def nvmlDeviceGetFieldValues(self) -> Callable[..., list[Any]]:
        milliwatts = {pynvml.NVML_FI_DEV_POWER_INSTANT: 412_000, pynvml.NVML_FI_DEV_POWER_AVERAGE: 388_250}

        def answer(_: int, fields: list[int]) -> list[Any]:
            values = []
            for field in fields:
                status = self.field_errors.get(field, pynvml.NVML_SUCCESS)
                value = pynvml.c_nvmlFieldValue_t(fieldId=field, nvmlReturn=status)
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
                value.value.uiVal = milliwatts[field]
                values.append(value)
            return values

        return self._function("nvmlDeviceGetFieldValues", answer)


def read(nvml: Nvml) -> dict[str, float | None]:
    return dict(GpuSampler(nvml).read()["gpu0"])


def test_every_value_is_in_the_unit_of_its_name() -> None:
    assert read(Nvml()) == {
        "power_instant_w": 412.0,
        "power_average_w": 388.25,
        "power_w": None,
        "energy_j": 1234.567,
        "sm_utilisation_ratio": 0.85,
        "memory_utilisation_ratio": 0.40,
        "memory_used_bytes": 20 << 30,
        "memory_total_bytes": 80 << 30,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 61,
        "clock_event_mask": 4,
        "is_throttled": 1.0,
    }


def test_every_reading_gives_only_values_that_are_listed() -> None:
    """A value missing from the list would appear on some machines only."""
    nvml = Nvml()
    given = {name for ways in gpu._READINGS.values() for way in ways for name in way(nvml, 0)}
    assert given == set(VALUES)


def test_a_chip_without_power_fields_tells_its_power_under_another_name() -> None:
    """What the older call means, an instant or an average, depends on the chip."""
    nvml = Nvml()
    for field in (pynvml.NVML_FI_DEV_POWER_INSTANT, pynvml.NVML_FI_DEV_POWER_AVERAGE):
        nvml.field_errors[field] = pynvml.NVML_ERROR_NOT_SUPPORTED
    values = read(nvml)
    assert values["power_w"] == 90.5
    assert values["power_instant_w"] is None
    assert values["power_average_w"] is None


def test_one_power_field_may_be_missing() -> None:
    nvml = Nvml()
    nvml.field_errors[pynvml.NVML_FI_DEV_POWER_INSTANT] = pynvml.NVML_ERROR_NOT_SUPPORTED
    values = read(nvml)
    assert values["power_instant_w"] is None
    assert values["power_average_w"] == 388.25


def test_an_older_driver_is_asked_in_the_older_way() -> None:
    nvml = Nvml()
    nvml.fail("nvmlDeviceGetTemperatureV", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    nvml.fail("nvmlDeviceGetCurrentClocksEventReasons", pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)
    values = read(nvml)
    assert values["temperature_c"] == 61
    assert values["clock_event_mask"] == 1
    assert values["is_throttled"] == 0.0


@pytest.mark.parametrize("error", [pynvml.NVML_ERROR_NOT_SUPPORTED, pynvml.NVML_ERROR_NO_PERMISSION])
def test_what_a_device_does_not_support_is_none_and_asked_once(error: int) -> None:
    nvml = Nvml()
    nvml.fail("nvmlDeviceGetUtilizationRates", error)
    sampler = GpuSampler(nvml)
    for _ in range(5):
        values = sampler.read()["gpu0"]
        assert values["sm_utilisation_ratio"] is None
        assert values["energy_j"] == 1234.567
    assert nvml.calls["nvmlDeviceGetUtilizationRates"] == 1
    assert nvml.calls["nvmlDeviceGetTotalEnergyConsumption"] == 5
    assert nvml.calls["nvmlDeviceGetHandleByIndex"] == 1


def test_a_passing_failure_costs_one_reading() -> None:
    nvml = Nvml()
    sampler = GpuSampler(nvml)
    nvml.fail("nvmlDeviceGetTotalEnergyConsumption", pynvml.NVML_ERROR_TIMEOUT)
    assert sampler.read()["gpu0"]["energy_j"] is None
    nvml.failing.clear()
    assert sampler.read()["gpu0"]["energy_j"] == 1234.567


def test_a_lost_gpu_is_noted_and_the_others_go_on() -> None:
    nvml = Nvml(gpus=3)
    sampler = GpuSampler(nvml)
    assert list(sampler.read()) == ["gpu0", "gpu1", "gpu2"]
    nvml.fail("*", pynvml.NVML_ERROR_GPU_IS_LOST, device=1)
    assert list(sampler.read()) == ["gpu0", "gpu2"]
    assert sampler.notes == ["gpu1 went away: GPU is lost"]


def test_when_the_last_gpu_is_lost_the_sampling_ends_with_a_note_and_no_crash() -> None:
    nvml = Nvml()
    asked = threading.Event()

    class Watched(GpuSampler):
        def read(self) -> Any:
            try:
                return super().read()
            except SamplerUnavailable:
                asked.set()
                raise

    with Sampling([Watched(nvml)], interval_s=0.001) as s:
        nvml.fail("*", pynvml.NVML_ERROR_GPU_IS_LOST)
        assert asked.wait(60)
    assert s.samples
    assert s.notes == ["gpu0 went away: GPU is lost", "no GPU is left to read"]


def test_a_gpu_that_may_not_be_opened_is_noted_and_the_others_are_read() -> None:
    nvml = Nvml(gpus=2)
    nvml.fail("nvmlDeviceGetHandleByIndex", pynvml.NVML_ERROR_NO_PERMISSION)
    sampler = GpuSampler(nvml)
    assert list(sampler.read()) == ["gpu1"]
    assert sampler.notes == ["gpu0 cannot be read: Insufficient Permissions"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "libnvidia-ml"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "not loaded"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "no permission"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "reboot"),
        (pynvml.NVML_ERROR_UNKNOWN, "Unknown Error"),
    ],
)
def test_without_a_gpu_the_reason_is_told(error: int, reason: str) -> None:
    nvml = Nvml()
    nvml.fail("nvmlInit", error)
    with pytest.raises(SamplerUnavailable, match=f"^no GPU: .*{reason}"):
        GpuSampler(nvml)
    assert nvml.open == 0


def test_a_driver_that_shows_no_gpu_is_no_gpu() -> None:
    nvml = Nvml(gpus=0)
    with pytest.raises(SamplerUnavailable, match=r"^no GPU: .* shows none$"):
        GpuSampler(nvml)
    assert nvml.open == 0


def test_a_notebook_runs_the_same_without_a_gpu() -> None:
    nvml = Nvml(gpus=0)
    with gpu_sampler(nvml) as sampler, Sampling([sampler], interval_s=3600) as s:
        pass
    assert s.samples == []
    assert s.notes == ["no GPU: the NVIDIA driver is loaded but shows none"]


def test_this_machine_has_a_gpu_or_a_reason() -> None:
    """The real library, with or without a driver behind it."""
    facts = describe_gpus()
    with gpu_sampler() as sampler:
        if isinstance(sampler, NoGpu):
            assert sampler.notes == [facts["reason"]]
            assert facts["reason"].startswith("no GPU: ")
            assert facts["gpus"] == []
        else:
            readings = sampler.read()
            assert len(readings) == len(facts["gpus"])
            for values in readings.values():
                assert values["memory_total_bytes"] is None or values["memory_total_bytes"] > 0
                assert values["sm_clock_mhz"] is None or values["sm_clock_mhz"] > 0


def test_the_driver_is_let_go() -> None:
    nvml = Nvml()
    with GpuSampler(nvml):
        assert nvml.open == 1
    describe_gpus(nvml)
    assert nvml.open == 0


def test_the_cost_of_each_kind_of_reading_is_measured() -> None:
    sampler = GpuSampler(Nvml(gpus=2))
    assert set(sampler.costs_s().values()) == {None}
    sampler.read()
    costs = sampler.costs_s()
    assert costs.keys() == gpu._READINGS.keys()
    assert all(cost is not None and cost > 0 for cost in costs.values())


def test_clock_events_have_names() -> None:
    mask = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    assert clock_events(mask) == ("software power cap", "hardware thermal slowdown")
    assert clock_events(0) == ()
    assert sum(gpu.CLOCK_EVENTS) == pynvml.nvmlClocksEventReasonAll


@pytest.mark.parametrize(
    ("reason", "is_throttled"),
    [
        (pynvml.nvmlClocksEventReasonGpuIdle, 0.0),
        (pynvml.nvmlClocksEventReasonApplicationsClocksSetting, 0.0),
        (pynvml.nvmlClocksEventReasonHwSlowdown, 1.0),
        (pynvml.nvmlClocksEventReasonSwThermalSlowdown, 1.0),
        (pynvml.nvmlClocksEventReasonHwPowerBrakeSlowdown, 1.0),
    ],
)
def test_only_heat_and_power_throttle(
    reason: int, is_throttled: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ANSWERS, "nvmlDeviceGetCurrentClocksEventReasons", reason)
    assert read(Nvml())["is_throttled"] == is_throttled


def test_the_facts_of_the_gpus_are_told() -> None:
    nvml = Nvml(gpus=2)
    nvml.fail("nvmlDeviceGetMigMode", pynvml.NVML_ERROR_NOT_SUPPORTED)
    nvml.fail("nvmlDeviceGetHandleByIndex", pynvml.NVML_ERROR_GPU_IS_LOST, device=1)
    facts = describe_gpus(nvml)
    assert facts == {
        "driver": "580.159.03",
        "cuda_version": "13.1",
        "reason": None,
        "gpus": [
            {
                "name": "NVIDIA Stand-in",
                "memory_bytes": 80 << 30,
                "compute_capability": "9.0",
                "power_limit_w": 650.0,
                "power_default_w": 700.0,
                "is_persistent": True,
                "is_mig": None,
                "pcie": "5.0 x16",
                "compute_processes": 0,
            },
            {"name": "cannot be asked: GPU is lost"},
        ],
    }


def test_nvml_has_every_function_that_is_called() -> None:
    """The stand-in answers whatever it is taught; the real module must have those names too."""
    source = Path(gpu.__file__).read_text()
    names = set(re.findall(r"\b(nvml(?!Return)[A-Z]\w+)", source))
    assert len(names) > 20
    assert {name for name in names if not hasattr(pynvml, name)} == set()
