"""What the machine did in visits, from a real process's clock, a scripted server and samples of a GPU."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lab_samples import RATE, compared, done

from ollamalab import lab
from ollamalab.compare import Metric, Visit
from ollamalab.gpu import open_gpus
from ollamalab.lab import CpuMeter, GpuUse, Trials
from ollamalab.lab.usage import CpuTime
from ollamalab.loadgen import LoadSettings
from ollamalab.records import RequestRecord, Sample
from ollamalab.report.frames import samples_parquet
from ollamalab.sampling import Sampling

USED = Metric(name="cpu_ratio", better="lower")
NO_GPU = "no GPU: there is none"


class Busy:
    """A subject whose visits let a real process work for a while."""

    def __init__(self, process: asyncio.subprocess.Process | None) -> None:
        self.process = process
        self.target = SimpleNamespace(pids=lambda: (process.pid,) if process else ())

    def loads(self, *_: object) -> Any:
        async def visit(_: Visit) -> list[RequestRecord]:
            if self.process is not None:
                assert self.process.stdin is not None
                assert self.process.stdout is not None
                self.process.stdin.write(b"work\n")
                await self.process.stdout.readline()
            return [done("a", visit=3, tokens=10)]

        return visit


async def metered(subject: Any) -> CpuMeter:
    """Return a meter after one visit, number 3."""
    meter = CpuMeter()
    await meter.loads(subject, LoadSettings(requests=1), lab.PromptShape())(Visit(index=3, block=0, arm="a"))
    return meter


async def test_the_cpu_time_of_a_visit_is_that_of_the_servers_processes() -> None:
    """A process that spins for 50 ms of its own time has spent them, and this one's work does not count."""
    spin = (
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    until = time.process_time() + 0.05\n"
        "    while time.process_time() < until: pass\n"
        "    print('done', flush=True)\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", spin, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    try:
        meter = await metered(Busy(process))
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()
    spent = meter.spent[3]
    assert 0.05 <= spent.cpu_s <= 0.5
    assert spent.elapsed_s >= 0.05
    visit = [done("a", visit=3, tokens=10)]
    assert meter.cpu_s_per_token(visit) == pytest.approx(spent.cpu_s / 10)
    assert meter.cpu_ratio(visit) == pytest.approx(
        spent.cpu_s / spent.elapsed_s / len(os.sched_getaffinity(0))
    )


async def test_processes_that_are_not_ours_to_see_have_no_cpu_time() -> None:
    meter = await metered(Busy(None))
    assert meter.spent == {}
    assert meter.cpu_ratio([done("a", visit=3)]) is None
    assert meter.cpu_s_per_token([done("a", visit=3)]) is None
    assert meter.cpu_ratio([]) is None


# GPUs, from a recording with a counter of 400 J/s


def visit_of(start_s: float, lasts_s: float, *, arm: str = "a", visit: int = 0) -> list[RequestRecord]:
    """Return one visit: a request of 100 tokens."""
    return [
        done(
            arm,
            visit=visit,
            block=visit,
            sent_s=start_s,
            first_s=start_s + 0.1,
            last_s=start_s + lasts_s,
            end_s=start_s + lasts_s,
            tokens=100,
        )
    ]


def gpu_samples(seconds: float = 120.0, *, sources: tuple[str, ...] = ("gpu0",)) -> list[Sample]:
    """Return samples ten times a second: 100 J/s in the first 40 s, 400 J/s and 80 % afterwards."""
    found = []
    for tick in range(int(seconds * 10)):
        at_s = tick / 10
        joules = 100 * min(at_s, 40) + 400 * max(0.0, at_s - 40)
        values = {
            "energy_j": joules,
            "sm_utilisation_ratio": 0.8 if at_s > 40 else 0.0,
            "is_throttled": float(at_s > 60),
        }
        found += [Sample(at_s=at_s, source=source, values=values) for source in sources]
        found.append(Sample(at_s=at_s, source="host", values={"cpu_ratio": 1.0}))
        found.append(Sample(at_s=at_s, source="gpu0/mig3", values={"memory_used_bytes": 1.0}))
    return found


def test_a_gpus_utilisation_is_the_mean_within_a_long_visit() -> None:
    use = GpuUse(gpu_samples())
    assert {sample.source for sample in use.samples} == {"gpu0"}
    assert use.utilisation(visit_of(45, 40)) == pytest.approx(0.8)
    assert use.throttled(visit_of(45, 32)) == pytest.approx(0.5, abs=0.05)
    assert use.utilisation(visit_of(45, 29)) is None
    assert use.utilisation([]) is None
    assert GpuUse([]).utilisation(visit_of(45, 40)) is None


def test_energy_per_token_is_told_with_and_without_what_idling_draws() -> None:
    use = GpuUse(gpu_samples(sources=("gpu0", "gpu1")))
    visit = visit_of(50, 60)
    assert use.per_token_j(visit) == pytest.approx(2 * 400 * 60 / 100)
    assert use.above_idle_per_token_j(visit) is None
    use.take_idle(2, 38)
    assert use.above_idle_per_token_j(visit) == pytest.approx(2 * 300 * 60 / 100)
    assert use.per_token_j(visit_of(50, 5)) is None


def test_why_nothing_can_be_told_of_a_gpu_is_one_line() -> None:
    samples, notes = gpu_samples(4), ["slots are not told", NO_GPU]
    assert lab.why_no_utilisation([], notes, 60) == NO_GPU
    assert lab.why_no_utilisation([], [], 60) == "the GPUs tell no utilisation"
    assert "a visit lasts 2.0 s" in str(lab.why_no_utilisation(samples, [], 2.0))
    assert lab.why_no_utilisation(samples, [], 60) is None
    long, short = visit_of(50, 60, visit=0), visit_of(50, 5, visit=1)
    both, brief = (Trials(arms=("a",), records=tuple(records)) for records in (long + short, short))
    assert lab.why_no_energy(GpuUse([]), notes, both, "a") == NO_GPU
    assert "too short" in str(lab.why_no_energy(GpuUse(gpu_samples()), [], brief, "a"))
    assert lab.why_no_energy(GpuUse(gpu_samples()), [], both, "a") is None


def test_a_recording_of_a_gpu_run_goes_the_same_way(tmp_path: Path) -> None:
    """From the file through the sampling thread to the figures; a clock that runs 1000 times as fast."""
    file = tmp_path / "13.samples.parquet"
    file.write_bytes(samples_parquet(sample for sample in gpu_samples() if sample.source == "gpu0"))
    source = open_gpus(str(file))
    with Sampling([source], interval_s=0.001) as sampling:
        pass
    assert [sample.source for sample in sampling.samples][:1] == ["gpu0"]
    assert lab.why_no_utilisation(sampling.samples, sampling.notes, 60) is None
    brief = Trials(arms=("a",), records=tuple(visit_of(0, 1)))
    assert "no GPU" not in str(lab.why_no_energy(GpuUse(sampling.samples), sampling.notes, brief, "a"))


# Tables, titles and sentences


BUSY = lab.machine_busy(gpu_samples())


def two_arms() -> tuple[Trials, CpuMeter]:
    """Return a visit of 45 s and one of 30 s, both of 100 tokens, at the same utilisation."""
    records = [*visit_of(42, 40, arm="1 reader", visit=0), *visit_of(84, 32, arm="4 readers", visit=1)]
    meter = CpuMeter()
    meter.spent = {
        0: CpuTime(cpu_s=40.0, elapsed_s=40.0),
        1: CpuTime(cpu_s=32.0, elapsed_s=32.0),
    }
    return Trials(arms=("1 reader", "4 readers"), records=tuple(records)), meter


def test_the_table_shows_a_gpus_columns_where_there_is_one() -> None:
    trials, meter = two_arms()
    without = lab.usage_table(trials, meter, GpuUse([]), BUSY, energy_reason=NO_GPU)
    assert [column.name for column in without.columns] == [
        *("Arm", "Throughput", "CPU", "whole machine", "CPU time", "Energy", "above idle", "n")
    ]
    assert without.rows[0][5] is None
    assert NO_GPU in without.caption
    with_gpu = lab.usage_table(trials, meter, GpuUse(gpu_samples()), BUSY, energy_reason=None)
    first = dict(zip([column.name for column in with_gpu.columns], with_gpu.rows[0], strict=True))
    assert first["Throughput"] == pytest.approx(2.5)
    assert first["GPU"] == pytest.approx(0.8)
    assert first["CPU time"] == pytest.approx(400.0)
    assert first["Energy"] == pytest.approx(160.0)
    assert first["n"] == 1


def test_what_other_programs_took_is_told_from_a_tenth_on() -> None:
    """The host was busy throughout; the server took all of it, then none."""
    trials, meter = two_arms()
    cpus = len(os.sched_getaffinity(0))
    meter.spent = {visit: CpuTime(cpu_s=cpus * 1.0, elapsed_s=1.0) for visit in (0, 1)}
    assert lab.others_sentence(trials, meter, BUSY) is None
    meter.spent[1] = CpuTime(cpu_s=0.0, elapsed_s=1.0)
    assert "Other programs took 50%" in str(lab.others_sentence(trials, meter, BUSY))
    meter.spent = {}
    assert lab.others_sentence(trials, meter, BUSY) is None
    assert lab.machine_busy([])(visit_of(0, 1)) is None


def test_dots_are_of_visits_that_tell_both() -> None:
    trials, meter = two_arms()
    del meter.spent[1]
    points = lab.usage_points(trials, meter.cpu_ratio, trials.arms)
    assert points["series"].tolist() == ["1 reader"]
    assert points["y"].tolist() == pytest.approx([2.5])


def test_titles_and_sentences_say_both_ratios_or_nothing() -> None:
    rate = compared(RATE, [(20.0, 10.0)] * 8, arm="4 readers", baseline="1 reader")
    used = compared(USED, [(1.0, 1.0)] * 8, arm="4 readers", baseline="1 reader")
    assert (
        lab.usage_title(rate, used) == "From 1 reader to 4 readers: 2.00× the tokens/s, 1.00× the utilisation"
    )
    nothing = replace(used, estimate=None)
    assert lab.usage_title(rate, nothing) == "Tokens/s and utilisation, visit by visit"
    assert lab.usage_sentence(rate, used, "CPU") == (
        "4 readers against 1 reader: tokens/s 2.00× (2.00–2.00), CPU utilisation 1.00× (1.00–1.00)."
    )
    assert lab.usage_sentence(rate, nothing, "GPU").endswith("GPU utilisation n/a.")
    assert lab.energy_sentence(rate, NO_GPU) == f"Energy per token: not run: {NO_GPU}."
    assert "2.00×" in lab.energy_sentence(rate, None)


def test_what_watching_cost_adds_up() -> None:
    class Quiet:
        def __init__(self) -> None:
            self.notes: list[str] = []

        def read(self) -> dict[str, dict[str, float | None]]:
            return {}

    with Sampling([Quiet()], interval_s=3600) as sampling:
        pass
    table = lab.sampling_table({"standing still": sampling.statistics()})
    assert [row[1] for row in table.rows] == ["Quiet", "waking and keeping", "all of it"]
    parts = [row[3] for row in table.rows]
    assert parts[0] + parts[1] == pytest.approx(parts[2])  # type: ignore[operator]
