"""What the machine does while a server works: utilisation, memory and energy beside tokens/s.

*Utilisation* of the CPU is the share of its time that the server's processes took, from their own clocks.
That of a GPU is the share of time in which at least one kernel ran, whatever that kernel left idle; it is a
driver's average over up to a second, so a visit that can carry it lasts 30 s. Energy is read from counters
only; see ``metrics.energy``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from ollamalab.compare import Comparison, Visit
from ollamalab.lab.frames import one_visit
from ollamalab.lab.sentences import result_text
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.lab.trials import Statistic, Trials, Visitor, not_run_text
from ollamalab.loadgen import LoadSettings
from ollamalab.metrics import completed, output_tokens_per_s, run_window_s
from ollamalab.metrics.energy import LoadEnergy, idle_power_w, load_energy
from ollamalab.metrics.timing import output_tokens
from ollamalab.records import RequestRecord, Sample
from ollamalab.report import Column, Table
from ollamalab.sampling import SamplingStatistics

#: Of a visit whose GPU utilisation can be told, and how much of each end is cut: the driver's average.
LEAST_GPU_WINDOW_S = 30.0
_EDGE_S = 1.0

_OTHERS_RATIO = 0.10  #: of the CPUs, from which other programs' work is told

_SAMPLER_NAMES = {
    "HostSampler": "this machine's CPU, memory and storage",
    "ProcessSampler": "the server's processes",
    "SlotSampler": "slots, over HTTP",
    "NoGpu": "GPUs (there is none)",
    "Detached": "GPUs, in a thread of their own",
    "NvidiaSmiSampler": "GPUs, from nvidia-smi",
    "ReplaySampler": "GPUs, from a recording",
}


# Visits with the server's CPU time


@dataclass(frozen=True, kw_only=True, slots=True)
class CpuTime:
    """What a server's processes used between two moments.

    Attributes:
        cpu_s: CPU time of all of them.
        elapsed_s: Meanwhile, on the clock.
    """

    cpu_s: float
    elapsed_s: float


class CpuMeter:
    """Reads the CPU clocks of a server's processes round each visit.

    Samples of ten a second would blur visits of half a second; a process's own clock does not.

    Attributes:
        spent: Index of each visit to what the server used in it; without visits to a server whose processes
            are not ours to see, or come and go.
    """

    def __init__(self) -> None:
        self.spent: dict[int, CpuTime] = {}

    def loads(self, subject: Subject, settings: LoadSettings, shape: PromptShape) -> Visitor:
        """Return the visitor "a short load" of a subject, metered."""
        load = subject.loads(settings, shape)

        async def visit(visit: Visit) -> Iterable[RequestRecord]:
            pids = subject.target.pids()
            before_s, begun_s = _cpu_s(pids), time.perf_counter()
            records = await load(visit)
            after_s, elapsed_s = _cpu_s(pids), time.perf_counter() - begun_s
            if before_s is not None and after_s is not None:
                self.spent[visit.index] = CpuTime(cpu_s=after_s - before_s, elapsed_s=elapsed_s)
            return records

        return visit

    def cpu_ratio(self, records: Sequence[RequestRecord]) -> float | None:
        """Return the share of all usable CPUs that the server took in a visit."""
        spent = self._of(records)
        return None if spent is None else spent.cpu_s / spent.elapsed_s / len(os.sched_getaffinity(0))

    def cpu_s_per_token(self, records: Sequence[RequestRecord]) -> float | None:
        """Return CPU time of the server / tokens of completed requests, in a visit."""
        spent, tokens = self._of(records), sum(map(output_tokens, completed(records)))
        return None if spent is None or not tokens else spent.cpu_s / tokens

    def _of(self, records: Sequence[RequestRecord]) -> CpuTime | None:
        visit = records[0].visit if records else None
        return None if visit is None else self.spent.get(visit)


def _cpu_s(pids: Sequence[int]) -> float | None:
    """Return the CPU time of processes together; None without any, or when one is gone."""
    try:
        # A process's own clock, as clock_getcpuclockid(3) names it: /proc counts ticks of 10 ms.
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in pids) if pids else None
    except OSError:
        return None


def machine_busy(samples: Iterable[Sample]) -> Statistic:
    """Return the statistic "mean busy share of this machine's CPUs" of a visit, whoever kept them busy."""
    told = [
        (sample.at_s, busy)
        for sample in samples
        if sample.source == "host" and (busy := sample.values.get("cpu_ratio")) is not None
    ]

    def busy_ratio(records: Sequence[RequestRecord]) -> float | None:
        start_s, end_s = run_window_s(records) or (0.0, 0.0)
        inside = [busy for at_s, busy in told if start_s <= at_s <= end_s]
        return fmean(inside) if inside else None

    return busy_ratio


# Visits with samples of GPUs


class GpuUse:
    """What samples of GPUs say of the visits they were taken in.

    Attributes:
        samples: Of the GPUs, in order of time.
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        """Keep what was sampled of GPUs; MIG instances tell no utilisation and are left out."""
        self.samples = [
            sample for sample in samples if sample.source.startswith("gpu") and "/" not in sample.source
        ]
        self._idle_w: float | None = None

    def take_idle(self, start_s: float, end_s: float) -> None:
        """Take a stretch without load for what the GPUs draw when idle."""
        self._idle_w, _ = idle_power_w(self.samples, start_s, end_s)

    def utilisation(self, records: Sequence[RequestRecord]) -> float | None:
        """Return the mean SM utilisation in a visit, of all GPUs; None if it was shorter than 30 s."""
        return self._mean(records, "sm_utilisation_ratio")

    def throttled(self, records: Sequence[RequestRecord]) -> float | None:
        """Return the share of a visit in which heat or power held clocks down; None if under 30 s."""
        return self._mean(records, "is_throttled")

    def _mean(self, records: Sequence[RequestRecord], name: str) -> float | None:
        window = run_window_s(records)
        if window is None or window[1] - window[0] < LEAST_GPU_WINDOW_S:
            return None
        start_s, end_s = window[0] + _EDGE_S, window[1] - _EDGE_S
        told = [
            value
            for sample in self.samples
            if start_s <= sample.at_s <= end_s and (value := sample.values.get(name)) is not None
        ]
        return fmean(told) if told else None

    def energy(self, records: Sequence[RequestRecord]) -> LoadEnergy:
        """Return what a visit drew; its values are None, with reasons, where counters cannot carry it."""
        return load_energy(self.samples, records, idle_w=self._idle_w)

    def per_token_j(self, records: Sequence[RequestRecord]) -> float | None:
        """Return joules per token of completed requests in a visit."""
        return self.energy(records).per_token_j

    def above_idle_per_token_j(self, records: Sequence[RequestRecord]) -> float | None:
        """Return the same without what the GPUs draw when idle."""
        return self.energy(records).above_idle_per_token_j


def why_no_utilisation(samples: Iterable[Sample], notes: Iterable[str], visit_s: float) -> str | None:
    """Return why a GPU's utilisation cannot be told of visits; None if it can.

    Args:
        samples: Of a while of sampling.
        notes: What could not be sampled.
        visit_s: How long a visit lasts.
    """
    if not any(sample.values.get("sm_utilisation_ratio") is not None for sample in samples):
        return _no_gpu(notes) or "the GPUs tell no utilisation"
    if visit_s < LEAST_GPU_WINDOW_S:
        return (
            f"a visit lasts {visit_s:.1f} s, and a GPU's utilisation takes {LEAST_GPU_WINDOW_S:g} s to tell; "
            "raise rounds, or take --profile gpu"
        )
    return None


def why_no_energy(gpu: GpuUse, notes: Iterable[str], trials: Trials, arm: str) -> str | None:
    """Return why energy per token can be told of no visit of an arm; None if it can of one."""
    if not gpu.samples:
        return _no_gpu(notes) or "no GPU was sampled"
    if trials.per_visit(arm, gpu.per_token_j):
        return None
    return gpu.energy(one_visit(trials, arm)).reasons[0]


def _no_gpu(notes: Iterable[str]) -> str | None:
    return next((note for note in notes if note.startswith("no GPU")), None)


def usage_table(
    trials: Trials, meter: CpuMeter, gpu: GpuUse, busy: Statistic, *, energy_reason: str | None
) -> Table:
    """Return, by arm, tokens/s beside what the machine did for them; means over visits.

    Args:
        trials: What was measured.
        meter: Of its visits.
        gpu: Likewise; without samples its columns are left out.
        busy: ``machine_busy`` meanwhile.
        energy_reason: Why no energy can be told; None if it can.
    """
    statistics: list[tuple[Column, Statistic]] = [
        (Column(name="Throughput", unit="tokens/s", format=".1f"), output_tokens_per_s),
        (Column(name="CPU", unit="of all", format=".0%"), meter.cpu_ratio),
        (Column(name="whole machine", unit="of all", format=".0%"), _beside(busy, meter)),
        (Column(name="CPU time", unit="ms/token", format=".1f"), _times(meter.cpu_s_per_token, 1e3)),
    ]
    if gpu.samples:
        statistics += [
            (Column(name="GPU", unit="of the time", format=".0%"), gpu.utilisation),
            (Column(name="Throttled", unit="of the time", format=".0%"), gpu.throttled),
        ]
    statistics += [
        (Column(name="Energy", unit="J/token", format=".3g"), gpu.per_token_j),
        (Column(name="above idle", unit="J/token", format=".3g"), gpu.above_idle_per_token_j),
    ]
    rows = []
    for arm in trials.arms:
        known = [trials.per_visit(arm, statistic) for _, statistic in statistics]
        rows.append((arm, *(fmean(values) if values else None for values in known), len(known[0])))
    energy = "Energy: from the GPUs' own counters." if energy_reason is None else f"Energy: {energy_reason}."
    return Table.of(
        "usage",
        "What the machine does for its tokens",
        [Column(name="Arm"), *(column for column, _ in statistics), Column(name="n")],
        rows,
        caption="Means over n visits. CPU: time of the server's processes / (time × usable CPUs), n/a where "
        f"they are not ours to see; beside it all programs' together. {energy}",
    )


def _beside(busy: Statistic, meter: CpuMeter) -> Statistic:
    """Return the share only where the server's own is known: else it may run on another machine."""

    def beside(records: Sequence[RequestRecord]) -> float | None:
        return None if meter.cpu_ratio(records) is None else busy(records)

    return beside


def _times(statistic: Statistic, factor: float) -> Statistic:
    def scaled(records: Sequence[RequestRecord]) -> float | None:
        value = statistic(records)
        return None if value is None else value * factor

    return scaled


def usage_points(trials: Trials, used: Statistic, arms: Iterable[str]) -> pd.DataFrame:
    """Return a dot for each visit that tells both: ``series`` (its arm), ``x`` (used), ``y`` (tokens/s)."""
    rows = []
    for arm in arms:
        visits: dict[int | None, list[RequestRecord]] = {}
        for record in trials.of(arm):
            visits.setdefault(record.visit, []).append(record)
        for records in visits.values():
            x, y = used(records), output_tokens_per_s(records)
            if x is not None and y is not None:
                rows.append((arm, x, y))
    return pd.DataFrame(rows, columns=["series", "x", "y"]).astype({"x": float, "y": float})


def usage_title(throughput: Comparison, used: Comparison) -> str:
    """Return the title of the figure of tokens/s over utilisation."""
    if throughput.estimate is None or used.estimate is None:
        return "Tokens/s and utilisation, visit by visit"
    return (
        f"From {throughput.baseline} to {throughput.arm}: {throughput.estimate:.2f}× the tokens/s, "
        f"{used.estimate:.2f}× the utilisation"
    )


def usage_sentence(throughput: Comparison, used: Comparison, resource: str) -> str:
    """Return what more readers did to tokens/s, and to the utilisation of the CPU or the GPU."""
    return (
        f"{throughput.arm} against {throughput.baseline}: tokens/s {_ratio_text(throughput)}, "
        f"{resource} utilisation {_ratio_text(used)}."
    )


def others_sentence(trials: Trials, meter: CpuMeter, busy: Statistic) -> str | None:
    """Return what other programs took of the machine in the visits; None if it was under a tenth."""
    groups: dict[int | None, list[RequestRecord]] = {}
    for record in trials.records:
        groups.setdefault(record.visit, []).append(record)
    taken = [
        together - own
        for records in groups.values()
        if (own := meter.cpu_ratio(records)) is not None and (together := busy(records)) is not None
    ]
    if not taken or fmean(taken) < _OTHERS_RATIO:
        return None
    return (
        f"Other programs took {fmean(taken):.0%} of this machine's CPUs meanwhile, so both tokens/s and the "
        "server's share are lower than they would be on a quiet machine."
    )


def energy_sentence(per_token: Comparison, reason: str | None) -> str:
    """Return what a token costs in joules, or why that is not told."""
    if reason is not None:
        return f"Energy per token: {not_run_text(reason)}."
    return f"Energy per token, {per_token.arm} against {per_token.baseline}: {result_text(per_token)}."


def _ratio_text(item: Comparison) -> str:
    if item.estimate is None or item.low is None or item.high is None:
        return "n/a"
    return f"{item.estimate:.2f}× ({item.low:.2f}–{item.high:.2f})"


# What watching cost


def sampling_table(samplings: Mapping[str, SamplingStatistics]) -> Table:
    """Return what each sampling took, by kind of sampler.

    Args:
        samplings: What was sampled meanwhile, to its statistics.
    """
    rows = []
    for name, one in samplings.items():
        rounds = max(1, one.rounds)
        parts = dict(one.reading_cpu_s)
        parts["waking and keeping"] = one.cpu_s - sum(parts.values())
        for kind, cpu_s in parts.items():
            label = _SAMPLER_NAMES.get(kind, kind)
            reading_s = one.reading_s.get(kind)
            took_ms = None if reading_s is None else reading_s / rounds * 1e3
            rows.append(
                (name, label, took_ms, cpu_s / rounds * 1e3, _share(cpu_s, one.elapsed_s), one.rounds)
            )
        rows.append((name, "all of it", None, one.cpu_s / rounds * 1e3, one.cpu_ratio, one.rounds))
    return Table.of(
        "own_cost",
        "What watching cost",
        [
            Column(name="While"),
            Column(name="Part"),
            Column(name="A reading takes", unit="ms", format=".2f"),
            Column(name="CPU time", unit="ms/round", format=".2f"),
            Column(name="CPU", unit="of one core", format=".2%"),
            Column(name="Rounds"),
        ],
        rows,
        caption="Measured by the sampling itself, from its threads' own clocks. What the server takes to "
        "answer about its slots is in the server's CPU time, not here.",
    )


def _share(cpu_s: float, elapsed_s: float) -> float | None:
    return cpu_s / elapsed_s if elapsed_s else None
