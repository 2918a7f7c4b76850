"""GPUs through NVML, on a stand-in for the driver.

That a real driver answers like this is seen where there is one: see
``test_this_machine_has_a_gpu_or_a_reason``.
"""

from __future__ import annotations

import ctypes
import re
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from nvml_standin import ANSWERS, Nvml

from ollamalab import gpu
from ollamalab.errors import SamplerUnavailable, SettingsError
from ollamalab.gpu import (
    VALUES,
    GpuSampler,
    NoGpu,
    clock_events,
    describe_gpus,
    gpu_processes,
    gpu_sampler,
    throttling,
)
from ollamalab.gpu.readings import _FIELD, _SAMPLES, _VALUES, instance_readings, readings
from ollamalab.sampling import Sampling


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
        "memory_free_bytes": 59 << 30,
        "memory_total_bytes": 80 << 30,
        "sm_clock_mhz": 1980,
        "memory_clock_mhz": 3201,
        "temperature_c": 61,
        "performance_state": 0,
        "clock_event_mask": 4,
        "is_throttled": 1.0,
        "pcie_generation": 5,
        "pcie_generation_max": 5,
        "pcie_width": 16,
        "pcie_sent_bytes": 5e6,
        "pcie_received_bytes": 7e6,
        "pcie_sent_bytes_per_s": None,
        "pcie_received_bytes_per_s": None,
        "power_buffer_mean_w": None,
        "power_buffer_max_w": None,
        "sm_utilisation_buffer_mean_ratio": None,
        "sm_utilisation_buffer_max_ratio": None,
    }


def test_every_reading_gives_only_values_that_are_listed() -> None:
    """A value missing from the list would appear on some machines only."""
    nvml = Nvml()
    fill(nvml, 1)
    given: set[str] = set()
    for kind in [*readings().values(), *instance_readings().values()]:
        for way in kind.ways:
            way(nvml, 0)
            fill(nvml, 1_000 * sum(nvml.calls.values()))
            given |= way(nvml, 0).keys()
    assert given == set(VALUES)


def test_structures_are_read_as_pynvml_lays_them_out() -> None:
    """They are read as bytes, which no name in the structure would notice if it moved."""
    value = pynvml.c_nvmlFieldValue_t(fieldId=1, scopeId=2, timestamp=3, latencyUsec=4, valueType=5)
    value.nvmlReturn, value.value.ullVal = 6, 7
    assert ctypes.sizeof(value) == _FIELD.size
    assert _FIELD.unpack(value) == (1, 2, 3, 4, 5, 6, (7).to_bytes(8, sys.byteorder))
    for kind, (name, _) in enumerate(pynvml.c_nvmlValue_t._fields_):
        sample = pynvml.c_nvmlSample_t(timeStamp=9)
        setattr(sample.sampleValue, name, 50)
        assert ctypes.sizeof(sample) == _SAMPLES[kind].size
        assert _SAMPLES[kind].unpack(sample) == (9, 50)
        assert _VALUES[kind].unpack(bytes(sample)[8:]) == (50,)


def fill(nvml: Nvml, at_us: int, *values: int) -> None:
    """Put samples into the driver's rings, a microsecond apart."""
    for kind in (pynvml.NVML_TOTAL_POWER_SAMPLES, pynvml.NVML_GPU_UTILIZATION_SAMPLES):
        nvml.ring.setdefault(kind, []).extend((at_us + n, value) for n, value in enumerate(values or [50]))


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_each_kind_is_read_at_its_own_pace() -> None:
    """Ten seconds at 10 Hz: power every time, memory twice a second, the link once more."""
    nvml, clock = Nvml(), Clock()
    sampler = GpuSampler(nvml, clock=clock)
    for tick in range(101):
        clock.now_s = 100.0 + tick / 10
        sampler.read()
    assert nvml.calls["nvmlDeviceGetTotalEnergyConsumption"] == 101
    assert nvml.calls["nvmlDeviceGetUtilizationRates"] == 61
    assert nvml.calls["nvmlDeviceGetMemoryInfo"] == 21
    assert nvml.calls["nvmlDeviceGetTemperatureV"] == 11
    assert nvml.calls["nvmlDeviceGetCurrPcieLinkWidth"] == 2


def test_what_was_not_due_is_absent_and_what_cannot_be_told_is_none_once() -> None:
    nvml, clock = Nvml(), Clock()
    nvml.fail("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_NOT_SUPPORTED)
    sampler = GpuSampler(nvml, clock=clock)
    assert sampler.read()["gpu0"].keys() == set(VALUES)
    clock.now_s += 0.1
    soon = sampler.read()["gpu0"]
    assert soon["energy_j"] == 1234.567
    assert soon.keys() & {"memory_used_bytes", "sm_utilisation_ratio", "pcie_width"} == set()


def test_slow_kinds_of_several_gpus_are_not_read_in_one_round() -> None:
    nvml, clock = Nvml(gpus=4), Clock()
    sampler = GpuSampler(nvml, clock=clock)
    sampler.read()
    most = 0
    for tick in range(1, 400):
        clock.now_s = 100.0 + tick / 10
        before = nvml.calls["nvmlDeviceGetCurrPcieLinkWidth"]
        sampler.read()
        most = max(most, nvml.calls["nvmlDeviceGetCurrPcieLinkWidth"] - before)
    assert most == 1


def test_buffers_tell_mean_and_greatest_since_they_were_last_read() -> None:
    """What the driver had sampled before anybody watched does not count."""
    nvml, clock = Nvml(), Clock()
    fill(nvml, 1_000, 99_000)
    sampler = GpuSampler(nvml, clock=clock)
    assert sampler.read()["gpu0"]["power_buffer_mean_w"] is None
    fill(nvml, 2_000, 100_000, 200_000, 600_000)
    clock.now_s += 2
    values = sampler.read()["gpu0"]
    assert (values["power_buffer_mean_w"], values["power_buffer_max_w"]) == (300.0, 600.0)
    clock.now_s += 2
    assert "power_buffer_mean_w" not in sampler.read()["gpu0"]


def test_pcie_throughput_is_asked_only_where_it_is_not_counted() -> None:
    nvml = Nvml()
    assert read(nvml)["pcie_sent_bytes"] == 5e6
    assert nvml.calls["nvmlDeviceGetPcieThroughput"] == 0
    for field in (pynvml.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, pynvml.NVML_FI_DEV_PCIE_COUNT_RX_BYTES):
        nvml.field_errors[field] = pynvml.NVML_ERROR_NOT_SUPPORTED
    values = read(nvml)
    assert values["pcie_sent_bytes"] is None
    assert values["pcie_sent_bytes_per_s"] == 250e6


def test_mig_instances_tell_their_memory_beside_their_gpu() -> None:
    nvml = Nvml(gpus=2)
    nvml.instances[1] = [3, 5]
    nvml.fail("nvmlDeviceGetUtilizationRates", pynvml.NVML_ERROR_NOT_SUPPORTED, device=1)
    with GpuSampler(nvml) as sampler:
        found = sampler.read()
        assert list(found) == ["gpu0", "gpu1", "gpu1/mig3", "gpu1/mig5"]
        assert found["gpu1/mig3"] == {
            "memory_used_bytes": 20 << 30,
            "memory_free_bytes": 59 << 30,
            "memory_total_bytes": 80 << 30,
        }
        assert found["gpu1"]["sm_utilisation_ratio"] is None
        assert sampler.names["gpu1/mig3"] == "NVIDIA Stand-in"


def test_a_gpu_that_does_not_exist_is_refused_with_those_that_do() -> None:
    nvml = Nvml(gpus=3)
    with GpuSampler(nvml, gpus=[2, 0]) as sampler:
        assert list(sampler.read()) == ["gpu2", "gpu0"]
    with pytest.raises(SettingsError, match=r"there is no GPU 9: this machine has GPUs 0 to 2"):
        GpuSampler(nvml, gpus=[0, 9])
    assert nvml.open == 0


def test_processes_are_listed_apart_from_the_sampler() -> None:
    nvml = Nvml(gpus=2)
    me = psutil.Process()
    holder = pynvml.c_nvmlProcessInfo_v3_t(pid=me.pid, usedGpuMemory=7 << 30)
    ANSWERS["nvmlDeviceGetComputeRunningProcesses"] = [holder]
    try:
        first, second = gpu_processes(nvml)
        GpuSampler(nvml).read()
    finally:
        ANSWERS["nvmlDeviceGetComputeRunningProcesses"] = []
    assert (first.source, first.pid, first.name, first.memory_bytes) == ("gpu0", me.pid, me.name(), 7 << 30)
    assert second.source == "gpu1"
    assert nvml.calls["nvmlDeviceGetComputeRunningProcesses"] == 2
    assert gpu_processes(Nvml(gpus=0)) == ()


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
    nvml, clock = Nvml(), Clock()
    nvml.fail("nvmlDeviceGetUtilizationRates", error)
    sampler = GpuSampler(nvml, clock=clock)
    for _ in range(5):
        values = sampler.read()["gpu0"]
        assert values.get("sm_utilisation_ratio") is None
        assert values["energy_j"] == 1234.567
        clock.now_s += 1
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
    assert costs.keys() == readings().keys()
    assert all(cost is not None and cost > 0 for cost in costs.values())


def test_clock_events_have_names() -> None:
    mask = pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown
    assert clock_events(mask) == ("software power cap", "hardware thermal slowdown")
    assert clock_events(0) == ()
    assert throttling(mask | pynvml.nvmlClocksEventReasonGpuIdle) == clock_events(mask)
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
    source = "".join(path.read_text() for path in Path(gpu.__file__).parent.glob("*.py"))
    names = set(re.findall(r"\b(nvml(?!Return)[A-Z]\w+)", source))
    assert len(names) > 20
    assert {name for name in names if not hasattr(pynvml, name)} == set()
