"""The life of a model on a server: what is loaded when, and what the machine's samples say of it.

A *life* is a model's way into memory and out again, in *phases*. Phases, tokens and samples share one clock,
so that one figure can show them together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeVar

import pandas as pd

from ollamalab.lab.frames import series
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.loadgen import LoadResult, LoadSettings
from ollamalab.metrics import run_window_s
from ollamalab.records import RequestRecord, Sample
from ollamalab.report import Column, Table

Done = TypeVar("Done")

#: What takes place in a life, in order.
UNLOADED, LOADING, READY, IN_USE, KEPT, GONE = (
    "unloaded",
    "loading",
    "loaded, not yet used",
    "in use",
    "loaded, after use",
    "unloaded again",
)
_PEAKS = (LOADING, IN_USE)  #: phases whose memory is told at its highest


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of a model's life.

    Attributes:
        name: What took place.
        start_s: On the clock of tokens and samples.
        end_s: Likewise.
    """

    name: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Life:
    """One way of a model into memory and out again: its phases, and the requests of its use."""

    phases: tuple[Phase, ...]
    result: LoadResult


async def live_once(subject: Subject, load: LoadSettings, shape: PromptShape, *, pause_s: float) -> Life:
    """Unload a model, load it, use it, keep it, unload it, and note when each began and ended.

    Args:
        subject: The model; other clients of its server would disturb what is seen.
        load: Its use.
        shape: Lengths of prompts and answers.
        pause_s: How long nothing happens in between.

    Raises:
        TargetError: The server does not unload it.
    """
    phases: list[Phase] = []

    async def through(name: str, doing: Awaitable[Done]) -> Done:
        start_s = time.perf_counter()
        done = await doing
        phases.append(Phase(name=name, start_s=start_s, end_s=time.perf_counter()))
        return done

    await subject.unload()
    await through(UNLOADED, asyncio.sleep(pause_s))
    await through(LOADING, subject.client.preload(subject.model))
    await through(READY, asyncio.sleep(pause_s))
    result = await through(IN_USE, subject.offer(load, shape, stream="life"))
    await through(KEPT, asyncio.sleep(pause_s))
    await subject.unload()
    await through(GONE, asyncio.sleep(pause_s))
    return Life(phases=tuple(phases), result=result)


def memory_table(lives: Sequence[Life], samples: Sequence[Sample], subject: Subject) -> Table:
    """Return what a model holds in memory in each phase of its life; means over lives.

    Args:
        lives: Of one model.
        samples: From before the first to after the last.
        subject: The model.
    """
    sources = {sample.source for sample in samples}
    gpus = sorted(source for source in sources if source.startswith("gpu") and "/" not in source)
    held: list[tuple[str, list[pd.DataFrame]]] = [
        ("Server's processes", [series(samples, server_source(subject), "rss_bytes")])
    ]
    if gpus:
        held.append(("GPUs", [series(samples, source, "memory_used_bytes") for source in gpus]))
    rows = []
    for place, phase in enumerate(lives[0].phases if lives else ()):
        spans = [life.phases[place] for life in lives]
        cells = [_mean([_held(parts, span) for span in spans]) for _, parts in held]
        seconds = fmean(span.end_s - span.start_s for span in spans)
        rows.append((phase.name, seconds, *(None if one is None else one / 1e6 for one in cells), len(spans)))
    return Table.of(
        "memory",
        f"Memory in the life of {subject.name}",
        [
            Column(name="Phase"),
            Column(name="Takes", unit="s", format=".2f"),
            *(Column(name=name, unit="MB", format=",.0f") for name, _ in held),
            Column(name="n"),
        ],
        rows,
        caption="Means over n lives of the median in a phase, of the highest while loading and in use. The "
        "pauses are ours. Memory of processes: resident, shared pages counted once for each.",
    )


def _held(parts: Sequence[pd.DataFrame], span: Phase) -> float | None:
    """Return what all parts hold in a phase together; None if one was not read in it."""
    total = 0.0
    for part in parts:
        inside = part[(part["at_s"] >= span.start_s) & (part["at_s"] <= span.end_s)]["value"]
        if inside.empty:
            return None
        total += float(inside.max() if span.name in _PEAKS else inside.median())
    return total


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def memory_title(table: Table) -> str:
    """Return the title of the figure of a life, from its table."""
    held = {row[0]: row[2] for row in table.rows}
    ready, kept, gone = (held.get(name) for name in (READY, KEPT, GONE))
    if not all(isinstance(value, float) for value in (ready, kept, gone)):
        return "Memory over the life of a model"
    return f"Loaded it holds {kept:,.0f} MB whether it is used or not; unloaded {gone:,.0f} MB"


# What figures are drawn from


def server_source(subject: Subject) -> str:
    """Return how samples of the server's processes are called; see ``Lab.watch``."""
    return f"server {subject.target.url}"


def token_counts(records: Iterable[RequestRecord]) -> pd.DataFrame:
    """Return how many chunks of text had arrived by when: columns ``at_s`` and ``value``."""
    times_s = sorted(at_s for record in records for at_s in record.token_times_s)
    return pd.DataFrame({"at_s": times_s, "value": range(1, len(times_s) + 1)}, dtype=float)


def phase_spans(phases: Iterable[Phase]) -> pd.DataFrame:
    """Return phases as columns ``name``, ``start_s``, ``end_s``."""
    return pd.DataFrame(
        [(phase.name, phase.start_s, phase.end_s) for phase in phases], columns=["name", "start_s", "end_s"]
    )


def load_spans(loads: Mapping[str, Iterable[RequestRecord]]) -> pd.DataFrame:
    """Return loads as columns ``name``, ``start_s``, ``end_s``; one in which nothing was sent is left out."""
    windows = {name: run_window_s(records) for name, records in loads.items()}
    return phase_spans(
        Phase(name=name, start_s=window[0], end_s=window[1]) for name, window in windows.items() if window
    )


def machine_panels(
    samples: Sequence[Sample], subject: Subject, *, gpu: str = "gpu0"
) -> dict[str, pd.DataFrame]:
    """Return what was sampled of a server and one GPU, for the panels of a figure; only what there is.

    Returns:
        Axis label, with the unit, to columns ``at_s`` and ``value``.
    """
    server = server_source(subject)
    wanted = (
        ("server's CPU\n[cores]", server, "cpu_ratio", 1.0),
        ("server's\nmemory [MB]", server, "rss_bytes", 1e-6),
        ("GPU\nutilisation [%]", gpu, "sm_utilisation_ratio", 100.0),
        ("GPU\npower [W]", gpu, "power_instant_w", 1.0),
        ("GPU\nmemory [MB]", gpu, "memory_used_bytes", 1e-6),
    )
    found = {label: (series(samples, source, name), scale) for label, source, name, scale in wanted}
    return {
        label: data.assign(value=data["value"] * scale) for label, (data, scale) in found.items() if len(data)
    }
