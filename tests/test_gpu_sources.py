"""Every source of GPU samples keeps one contract, and none of them holds up whoever reads it.

The other sides are stand-ins: of the driver, of the command, of the exporter (real sockets, real processes).
Not run here: a real driver, a real ``nvidia-smi``, a real DCGM exporter.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pynvml
import pytest
from gpu_machine import DCGM_PAGE, MACHINE, NAME, SMI, nvidia_smi, page, recording
from hypothesis import given
from hypothesis import strategies as st
from nvml_standin import Nvml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily

from ollamalab.errors import OllamaLabError, RunError, SamplerUnavailable, SettingsError
from ollamalab.gpu import (
    EXPOSED,
    VALUES,
    Detached,
    GpuSampler,
    GpuSource,
    NoGpu,
    NvidiaSmiSampler,
    PrometheusSampler,
    ReplaySampler,
    open_gpus,
)
from ollamalab.gpu.prometheus import read_page
from ollamalab.gpu.smi import FIELDS, read_row
from ollamalab.sampling import Sampling

BUFFERS = {name for name in VALUES if "buffer" in name}
FROM_NVML = set(MACHINE)
FROM_SMI = FROM_NVML - {"energy_j", "pcie_sent_bytes", "pcie_received_bytes"}
FROM_DCGM = FROM_SMI - {"power_average_w", "performance_state"} - {"pcie_generation", "pcie_generation_max"}
FROM_DCGM = (FROM_DCGM - {"pcie_width"}) | {"energy_j"}


@dataclass
class Kind:
    """One kind of source: how a test gets it, and what it knows of the machine."""

    opened: Callable[[Path], Any]
    tells: set[str]


def own_page() -> str:
    """Return the page that ``monitor --serve`` would write of the machine."""
    return "".join(
        f'{EXPOSED[name][0]}{{gpu="gpu0",name="{NAME}"}} {value * EXPOSED[name][1]}\n'
        for name, value in MACHINE.items()
    )


@contextmanager
def scraped(text: str) -> Iterator[PrometheusSampler]:
    with page(text) as url, PrometheusSampler(url) as sampler:
        yield sampler


KINDS = {
    "nvml": Kind(lambda _: GpuSampler(Nvml()), FROM_NVML),
    "nvml, detached": Kind(lambda _: Detached(lambda: GpuSampler(Nvml()), name="NVML"), FROM_NVML),
    "nvidia-smi": Kind(lambda folder: NvidiaSmiSampler(nvidia_smi(folder), interval_s=0.01), FROM_SMI),
    "DCGM exporter": Kind(lambda _: scraped(DCGM_PAGE), FROM_DCGM),
    "our own page": Kind(lambda _: scraped(own_page()), FROM_NVML),
    "parquet": Kind(lambda folder: ReplaySampler(recording(folder / "a.parquet")), FROM_NVML),
    "JSON": Kind(lambda folder: ReplaySampler(recording(folder / "a.json")), FROM_NVML),
    "JSON lines": Kind(lambda folder: ReplaySampler(recording(folder / "a.jsonl")), FROM_NVML),
    "none": Kind(lambda _: NoGpu("no GPU: this is a test"), set()),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


def test_the_same_machine_gives_the_same_figures_whatever_reads_it(kind: Kind, tmp_path: Path) -> None:
    with kind.opened(tmp_path) as source:
        found = source.read()
    if not kind.tells:
        assert found == {}
        return
    assert list(found) == ["gpu0"]
    values = found["gpu0"]
    assert values.keys() <= set(VALUES)
    told = {name: value for name, value in values.items() if value is not None}
    assert told.keys() == kind.tells
    assert told == pytest.approx({name: MACHINE[name] for name in kind.tells})


def test_a_sampling_takes_any_of_them(kind: Kind, tmp_path: Path) -> None:
    with kind.opened(tmp_path) as source, Sampling([source], interval_s=3600) as sampling:
        pass
    assert {sample.source for sample in sampling.samples} == ({"gpu0"} if kind.tells else set())
    assert all("\n" not in note for note in sampling.notes)


def test_to_close_twice_is_to_close_once_and_nothing_stays_behind(kind: Kind, tmp_path: Path) -> None:
    threads = set(threading.enumerate())
    with kind.opened(tmp_path) as source:
        source.read()
        source.close()
        source.close()
    assert set(threading.enumerate()) <= threads
    assert [child for child in psutil.Process().children() if "smi" in " ".join(child.cmdline())] == []


class Other:
    """A sampler beside one that hangs; lets a test wait for its readings."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.readings = 0
        self._changed = threading.Condition()

    def read(self) -> Mapping[str, Mapping[str, float | None]]:
        with self._changed:
            self.readings += 1
            self._changed.notify_all()
        return {"other": {"value": 1.0}}

    def wait_for_more(self, readings: int = 3) -> None:
        with self._changed:
            wanted = self.readings + readings
            assert self._changed.wait_for(lambda: self.readings >= wanted, timeout=60)


def test_a_driver_that_hangs_costs_its_own_samples_and_nobody_elses() -> None:
    nvml, release, other = Nvml(), threading.Event(), Other()
    source = Detached(lambda: GpuSampler(nvml), name="NVML", patience_s=0.01)
    with Sampling([source, other], interval_s=0.001) as sampling:
        other.wait_for_more()
        nvml.blocked = release.wait
        while not source.notes:
            other.wait_for_more(1)
        other.wait_for_more()
        assert source.notes == ["NVML did not answer within 0.01 s; it is waited for"]
        before = sum(sample.source == "gpu0" for sample in sampling.samples)
        nvml.blocked = lambda: None
        release.set()
        while sum(sample.source == "gpu0" for sample in sampling.samples) == before:
            other.wait_for_more(1)
    assert re.fullmatch(r"NVML answered again after \d+\.\d s", source.notes[1])
    source.close()
    assert nvml.open == 0


def test_a_driver_that_hangs_when_it_is_opened_is_no_gpu() -> None:
    nvml, release = Nvml(), threading.Event()
    nvml.blocked = release.wait
    with pytest.raises(SamplerUnavailable, match=r"^NVML did not answer within 0.01 s$"):
        Detached(lambda: GpuSampler(nvml), name="NVML", opening_s=0.01)
    release.set()


def test_what_its_thread_takes_is_counted_with_the_sampling() -> None:
    with Detached(lambda: GpuSampler(Nvml()), name="NVML") as source:
        opened_s = source.cpu_s
        with Sampling([source], interval_s=3600) as sampling:
            pass
        read_s = source.cpu_s - opened_s
    assert read_s > 0
    statistics = sampling.statistics()
    assert statistics.reading_cpu_s["Detached"] >= read_s
    assert statistics.cpu_s >= statistics.reading_cpu_s["Detached"]


def test_a_source_that_ends_while_detached_says_so() -> None:
    nvml = Nvml()
    with Detached(lambda: GpuSampler(nvml), name="NVML") as source:
        nvml.fail("*", pynvml.NVML_ERROR_GPU_IS_LOST)
        with pytest.raises(SamplerUnavailable, match="no GPU is left"):
            source.read()
        assert source.notes == ["gpu0 went away: GPU is lost"]


def test_an_endpoint_that_never_answers_holds_nobody_up() -> None:
    other = Other()
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        source = Detached(lambda: PrometheusSampler(url), name=url, patience_s=0.01)
        with Sampling([source, other], interval_s=0.001):
            while not source.notes:
                other.wait_for_more(1)
            other.wait_for_more()
    source.close()
    assert source.notes[0] == f"{url} did not answer within 0.01 s; it is waited for"


def test_an_endpoint_that_comes_and_goes_is_asked_again() -> None:
    now_s = [0.0]
    with page(DCGM_PAGE) as url:
        sampler = PrometheusSampler(url, clock=lambda: now_s[0])
        assert sampler.read() != {}
        assert sampler.read() == {}  # not due
        assert sampler.notes == []
    for _ in range(3):
        now_s[0] += 1
        assert sampler.read() == {}
    (note,) = sampler.notes
    assert note == f"{url}/metrics cannot be read (Connection refused); it is asked again"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("go_goroutines 5\n", "tells no GPU: it has no metric of DCGM's or of ours"),
        ('DCGM_FI_DEV_GPU_UTIL{gpu="0" 85\n', "cannot be read"),
        ('DCGM_FI_DEV_GPU_UTIL{gpu="0"}\n', "cannot be read"),
        ("DCGM_FI_DEV_GPU_UTIL{gpu=0} 85\n", "cannot be read"),
        ("", "tells no GPU"),
    ],
)
def test_a_page_of_something_else_is_noted(text: str, words: str) -> None:
    with scraped(text) as sampler:
        assert sampler.read() == {}
        assert words in sampler.notes[0]


def test_a_page_elsewhere_is_noted_with_its_status() -> None:
    with page(DCGM_PAGE) as url:
        sampler = PrometheusSampler(f"{url}/elsewhere")
        assert sampler.read() == {}
        assert "(404 Not Found)" in sampler.notes[0]


def test_mig_instances_of_dcgm_have_the_names_that_nvml_gives_them() -> None:
    gpu = 'gpu="1",UUID="GPU-1f",modelName="NVIDIA A800"'
    text = (
        f'DCGM_FI_DEV_FB_USED{{{gpu},GPU_I_PROFILE="2g.20gb",GPU_I_ID="3"}} 10\n'
        f'DCGM_FI_DEV_FB_USED{{{gpu},GPU_I_PROFILE="2g.20gb",GPU_I_ID="5"}} 20\n'
        f"DCGM_FI_DEV_SM_CLOCK{{{gpu}}} 1410\n"
    )
    found, names = read_page(text)
    assert set(found) == {"gpu1", "gpu1/mig3", "gpu1/mig5"}
    assert found["gpu1/mig5"]["memory_used_bytes"] == 20 << 20
    assert names["gpu1/mig3"] == "NVIDIA A800"


@given(
    name=st.text(st.characters(codec="utf-8"), max_size=20),
    value=st.floats(0, 1e15),
)
def test_whatever_a_library_writes_is_read_as_it_was(name: str, value: float) -> None:
    """Our reader is seven times as fast as the library's; it must not be more forgetful."""
    family = CounterMetricFamily("ollamalab_gpu_energy_joules", "Energy.", labels=["gpu", "name"])
    family.add_metric(["gpu0", name], value)

    class Collector:
        def collect(self) -> Iterator[CounterMetricFamily]:
            yield family

    registry = CollectorRegistry()
    registry.register(Collector())  # type: ignore[arg-type]
    found, names = read_page(generate_latest(registry).decode())
    assert found["gpu0"]["energy_j"] == value
    assert names == {"gpu0": name}


def test_numbers_that_say_nothing_are_none() -> None:
    lines = [
        'DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-1f"} NaN',
        'DCGM_FI_DEV_CLOCKS_EVENT_REASONS{gpu="0",UUID="GPU-1f"} +Inf',
        'DCGM_FI_DEV_FB_USED{gpu="0",UUID="GPU-1f"} 140737488355328',
        'DCGM_FI_DEV_GPU_TEMP{gpu="0",UUID="GPU-1f"} 61 1700000000000',
    ]
    values = read_page("\n".join(lines))[0]["gpu0"]
    assert {name: value for name, value in values.items() if value is not None} == {"temperature_c": 61}


def test_every_value_has_a_metric_of_its_own() -> None:
    metrics = [metric for metric, _ in EXPOSED.values()]
    assert len(set(metrics)) == len(VALUES)
    assert EXPOSED["energy_j"] == ("ollamalab_gpu_energy_joules_total", 1.0)
    assert EXPOSED["sm_clock_mhz"] == ("ollamalab_gpu_sm_clock_hertz", 1e6)
    assert EXPOSED["pcie_sent_bytes_per_s"][0] == "ollamalab_gpu_pcie_sent_bytes_per_second"


def test_what_nvidia_smi_cannot_tell_is_none() -> None:
    cells = dict.fromkeys(FIELDS, "[N/A]") | {"index": "3", "name": "NVIDIA GeForce GTX 960M"}
    row = read_row(", ".join(cells[field] for field in FIELDS), FIELDS)
    assert row is not None
    source, name, values = row
    assert (source, name) == ("gpu3", "NVIDIA GeForce GTX 960M")
    assert set(values.values()) == {None}


def test_an_older_drivers_reasons_are_read_by_their_older_name() -> None:
    cells = SMI | {
        "clocks_event_reasons.active": "[N/A]",
        "clocks_throttle_reasons.active": "0x0000000000000008",
    }
    row = read_row(", ".join(cells[field] for field in FIELDS), FIELDS)
    assert row is not None
    assert (row[2]["clock_event_mask"], row[2]["is_throttled"]) == (8, 1.0)


@pytest.mark.parametrize("line", ["", "No devices were found", "0, NVIDIA H200", "x" * 1000])
def test_what_is_no_row_is_none(line: str) -> None:
    assert read_row(line, FIELDS) is None


def test_the_fields_of_the_source_document_are_asked_for() -> None:
    """Save the time, the bus and the driver's version, which are no samples."""
    listed = (
        "name,pstate,pcie.link.gen.max,pcie.link.gen.current,temperature.gpu,utilization.gpu,"
        "utilization.memory,memory.total,memory.free,memory.used"
    )
    assert set(listed.split(",")) <= set(FIELDS)


def test_an_older_nvidia_smi_is_asked_for_what_it_knows(tmp_path: Path) -> None:
    command = nvidia_smi(tmp_path, unknown=("power.draw.instant", "power.draw.average"))
    with NvidiaSmiSampler(command, interval_s=0.01) as source:
        values = source.read()["gpu0"]
        assert values["power_w"] == 388.25
        assert values["power_instant_w"] is None
        for field, note in zip(("power.draw.instant", "power.draw.average"), source.notes, strict=True):
            assert note == f"{command} does not know {field}; its version is too old or too new"


def test_a_driver_that_nvidia_smi_cannot_reach_is_told_in_its_words(tmp_path: Path) -> None:
    said = "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."
    with pytest.raises(SamplerUnavailable, match=rf"^no GPU: .*nvidia-smi ended with status 9: {said}"):
        NvidiaSmiSampler(nvidia_smi(tmp_path, lines=0, then=said))


def test_an_nvidia_smi_that_says_nothing_is_no_gpu(tmp_path: Path) -> None:
    with pytest.raises(SamplerUnavailable, match=r"said nothing within 0.5 s"):
        NvidiaSmiSampler(nvidia_smi(tmp_path, lines=0), opening_s=0.5)


def test_an_nvidia_smi_that_hangs_is_noted_and_holds_nobody_up(tmp_path: Path) -> None:
    now_s = [0.0]
    command = nvidia_smi(tmp_path, lines=1)
    with NvidiaSmiSampler(command, interval_s=0.1, clock=lambda: now_s[0]) as source:
        assert source.read()["gpu0"]["sm_utilisation_ratio"] == 0.85
        now_s[0] = 0.9
        assert source.read() == {}
        assert source.notes == []
        now_s[0] = 1.5
        assert source.read() == {}
        assert source.read() == {}
        assert source.notes == ["nvidia-smi has been silent for 1.5 s; it is waited for"]


def test_an_nvidia_smi_that_ends_is_unavailable_from_then_on(tmp_path: Path) -> None:
    said = "Unable to determine the device handle: GPU is lost."
    other = Other()
    with (
        NvidiaSmiSampler(nvidia_smi(tmp_path, lines=1, then=said), interval_s=0.05) as source,
        Sampling([source, other], interval_s=0.001) as sampling,
    ):
        while f"nvidia-smi has ended: {said}" not in sampling.notes:
            other.wait_for_more(1)
        other.wait_for_more()


def test_without_the_command_that_is_the_reason() -> None:
    with pytest.raises(SamplerUnavailable, match=r"^no GPU: there is no nvidia-smi-of-nowhere on PATH$"):
        NvidiaSmiSampler("nvidia-smi-of-nowhere")


def test_a_recording_is_given_out_at_its_own_pace(tmp_path: Path) -> None:
    now_s = [900.0]
    sampler = ReplaySampler(recording(tmp_path / "a.parquet", seconds=3), clock=lambda: now_s[0])
    assert sampler.read()["gpu0"]["energy_j"] == 1234.567
    now_s[0] = 900.5
    assert sampler.read() == {}
    now_s[0] = 902.0  # both that passed: the latest counts
    assert sampler.read()["gpu0"]["energy_j"] == 1234.567 + 800
    with pytest.raises(SamplerUnavailable, match=r"^the recording a.parquet is over after 2.0 s$"):
        sampler.read()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.parquet", b"PAR1 but not really"),
        ("a.json", b"[{]"),
        ("a.json", b'[{"at_s": 1.0, "source": "gpu0"}]'),
        ("a.json", b'[{"at_s": "soon", "source": "gpu0", "name": "energy_j", "value": 1}]'),
        ("a.json", b'[{"at_s": 1.0, "source": "gpu0", "name": "energy_j", "value": "much"}]'),
        ("a.json", b'{"at_s": 1.0}'),
        ("a.json", b"3"),
        ("a.json", b"\xff\xfe"),
        ("a.json", b'[{"at_s": NaN, "source": "gpu0", "name": "energy_j", "value": 1}]'),
    ],
)
def test_a_file_that_is_no_recording_is_one_line_with_what_to_give(
    name: str, content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(
        RunError, match=r"is no recording of GPU samples .*give a \.samples\.parquet"
    ) as error:
        ReplaySampler(path)
    assert "\n" not in str(error.value)


def test_a_recording_without_a_gpu_says_so(tmp_path: Path) -> None:
    path = recording(tmp_path / "a.json", gpu="slots:smollm2")
    with pytest.raises(RunError, match="has no sample of a GPU"):
        ReplaySampler(path)


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        ("nonsense", SettingsError, "'nonsense' is no source of GPU samples; give auto"),
        ("0,9", SettingsError, "there is no GPU 9: this machine has GPUs 0 to 1"),
        ("http://", SettingsError, "is not the address of a page of metrics"),
        ("http://user:secret@gpu2:9400", SettingsError, "leave out the user name"),
    ],
)
def test_a_source_that_does_not_exist_is_refused(
    source: str, error: type[OllamaLabError], words: str
) -> None:
    nvml = Nvml(gpus=2)
    with pytest.raises(error, match=words) as refused:
        open_gpus(source, nvml=nvml)
    assert "secret" not in str(refused.value)
    assert nvml.open == 0


def test_sources_are_opened_by_what_they_are_called(tmp_path: Path) -> None:
    nvml = Nvml(gpus=3)
    opened: list[tuple[str, list[str]]] = [("auto", ["gpu0", "gpu1", "gpu2"]), ("2,0", ["gpu2", "gpu0"])]
    opened += [("none", []), (str(recording(tmp_path / "a.json")), ["gpu0"])]
    for name, gpus in opened:
        source: GpuSource = open_gpus(name, nvml=nvml)
        assert list(source.read()) == gpus
        source.close()
    with page(DCGM_PAGE) as url:
        source = open_gpus(url)
        assert list(source.read()) == ["gpu0"]
        assert source.names == {"gpu0": NAME}
        source.close()
    assert nvml.open == 0


def test_auto_without_a_gpu_is_the_reason_why() -> None:
    source = open_gpus("auto", nvml=Nvml(gpus=0))
    assert source.read() == {}
    assert source.notes == ["no GPU: the NVIDIA driver is loaded but shows none"]


def test_gpus_asked_for_by_index_have_to_be_there() -> None:
    nvml = Nvml()
    nvml.fail("nvmlInit", pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with pytest.raises(SamplerUnavailable, match="the NVIDIA driver is not loaded"):
        open_gpus("0", nvml=nvml)


def test_the_stand_in_and_the_machine_are_the_same() -> None:
    assert set(SMI) == set(FIELDS)
