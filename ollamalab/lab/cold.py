"""Cold starts: fresh servers that are asked at once, and engines that are launched anew for each pair."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median, stdev

import pandas as pd

from ollamalab.compare import Visit
from ollamalab.lab.page_cache import drop_from_cache
from ollamalab.lab.subject import ONE_REQUEST, PromptShape, Subject
from ollamalab.lab.trials import Statistic, Trials, run_visits
from ollamalab.metrics import stages
from ollamalab.records import Outcome, RequestRecord

#: Stages of a cold start, in order: the columns of ``stage_medians``.
STAGES = ("spawn", "load", "prefill", "decode", "other")

#: Scenarios of the stage table.
FROM_DISK = "fresh server, file on disk"
FRESH = "fresh server, file in memory"
UNLOADED = "server runs, file in memory"
PRELOADED = "model preloaded"
WARM = "model in use"
SCENARIOS = (FROM_DISK, FRESH, UNLOADED, PRELOADED, WARM)


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """The first request after something was cold.

    Attributes:
        scenario: What was cold.
        spawn_s: From making the server's process to its first answer; None if it ran already.
        record: The request.
    """

    scenario: str
    spawn_s: float | None
    record: RequestRecord

    @property
    def is_ok(self) -> bool:
        """Whether the request completed; else it counts in no median."""
        return self.record.outcome is Outcome.OK


@dataclass(frozen=True, kw_only=True)
class Launched:
    """The first requests of fresh servers, and the scenarios that could not be had."""

    starts: tuple[ColdStart, ...]
    not_run: Mapping[str, str]  #: scenario to the reason


async def launch_fresh(subject: Subject, shape: PromptShape, *, file: Path | None, starts: int) -> Launched:
    """Start fresh servers and ask each at once: with the model file on disk, then with it in memory.

    Args:
        subject: Server and model.
        shape: Lengths.
        file: The model file that the server loads; None if it is not known.
        starts: How many of each.
    """
    if subject.target.unchangeable is not None:
        return Launched(starts=(), not_run=dict.fromkeys((FROM_DISK, FRESH), subject.target.unchangeable))
    from_disk = await starts_from_disk(subject, shape, file=file, starts=starts)
    not_run = {}
    if not from_disk:
        why = "it is not known which file the server loads" if file is None else "the system keeps its pages"
        not_run[FROM_DISK] = f"the file cannot be dropped from the page cache: {why}"
    in_memory = await fresh_starts(subject, shape, starts=starts)
    return Launched(starts=(*from_disk, *in_memory), not_run=not_run)


async def fresh_starts(subject: Subject, shape: PromptShape, *, starts: int) -> list[ColdStart]:
    """Start fresh servers and ask each at once; the model was in use until now, so its file is cached."""
    return [await first_after_spawn(subject, shape, scenario=FRESH) for _ in range(starts)]


async def starts_from_disk(
    subject: Subject, shape: PromptShape, *, file: Path | None, starts: int
) -> list[ColdStart]:
    """Start fresh servers whose model file has just been dropped from the page cache.

    Args:
        subject: Server and model; ours to restart.
        shape: Lengths.
        file: The model file that the server loads; None if it is not known.
        starts: How many.

    Returns:
        Fewer, or none, where the system does not let go of the file's pages: it would measure the wrong
        thing.
    """
    measured: list[ColdStart] = []
    while file is not None and len(measured) < starts:
        await subject.unload()
        if not drop_from_cache(file):
            break
        measured.append(await first_after_spawn(subject, shape, scenario=FROM_DISK))
    return measured


async def first_after_spawn(subject: Subject, shape: PromptShape, *, scenario: str) -> ColdStart:
    """Give the subject a fresh server and ask it at once.

    Raises:
        TargetError: The server is not ours to restart.
    """
    await subject.restart()
    startup = subject.target.startup
    result = await subject.offer(ONE_REQUEST, shape, stream="cold")
    return ColdStart(
        scenario=scenario,
        spawn_s=startup.answering_s - startup.spawned_s if startup else None,
        record=replace(result.records[0], arm=scenario),
    )


def as_starts(records: Iterable[RequestRecord], scenario: str) -> list[ColdStart]:
    """Return requests of a running server as starts of a scenario."""
    return [ColdStart(scenario=scenario, spawn_s=None, record=record) for record in records]


def by_scenario(starts: Iterable[ColdStart]) -> dict[str, list[ColdStart]]:
    """Return the starts of each scenario, in order of appearance."""
    groups: dict[str, list[ColdStart]] = {}
    for start in starts:
        groups.setdefault(start.scenario, []).append(start)
    return groups


def stage_medians(starts: Iterable[ColdStart]) -> pd.DataFrame:
    """Return the median seconds of each stage: index scenario, in order of appearance.

    Only starts whose request completed count. Prefill and decode are the server's own; *other* is what is
    left of the client's time: connecting, slot wait, templating, network and the client itself.
    """
    rows: dict[str, dict[str, float | None]] = {}
    for scenario, every in by_scenario(starts).items():
        group = [start for start in every if start.is_ok]
        ledgers = [stages(start.record) for start in group]
        rows[scenario] = {
            "spawn": _median([start.spawn_s for start in group]),
            "load": _median([ledger.load_s for ledger in ledgers]),
            "prefill": _median([ledger.prompt_eval_s for ledger in ledgers]),
            "decode": _median([ledger.eval_s for ledger in ledgers]),
            "other": _median(
                [_sum(ledger.connect_s, ledger.slot_wait_s, ledger.network_s) for ledger in ledgers]
            ),
        }
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(STAGES)).astype(float)


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _sum(*parts: float | None) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


async def compare_reloaded(
    subjects: Mapping[str, Subject],
    shape: PromptShape,
    *,
    launches: int,
    rng: random.Random,
    not_run: Mapping[str, str] | None = None,
    is_brief: bool = False,
) -> Trials:
    """Compare warm requests of servers with different settings, one pair per launch of their engines.

    What one launch happens to get (memory layout, cores) would pass for an effect of its settings, and
    requests of one launch share it: as separate pairs they would name a difference where there is none
    in 9 to 15 % of comparisons (simulated, launches spread as much as requests or more). So before each
    pair every server unloads the model, which ends its engine's process, and loads it again; the empty
    request that loads it and a first one with a prompt are thrown away. A server that is alone has nothing
    to be compared with: it is only warmed up once.

    Args:
        subjects: Arm to server and model; the first is the baseline. All stay resident.
        shape: Lengths.
        launches: How often; each gives one pair.
        rng: Draws the order of asking after each launch.
        not_run: Arms that the target cannot carry, with the reason.
        is_brief: Whether the request that is thrown away is a word, not one of this shape: for many arms.
    """
    names = tuple(subjects)
    visitors = {name: subject.loads(ONE_REQUEST, shape) for name, subject in subjects.items()}
    records: list[RequestRecord] = []
    for launch in range(launches):
        if launch == 0 or len(names) > 1:
            thrown_away = None if is_brief else shape
            anew = len(names) > 1
            await asyncio.gather(*(_warm_up(subjects[name], thrown_away, anew=anew) for name in names))
        order = rng.sample(names, len(names))
        visits = [
            Visit(index=launch * len(names) + position, block=launch, arm=name)
            for position, name in enumerate(order)
        ]
        records += (await run_visits(visitors, visits)).records
    return Trials(arms=names, records=tuple(records), not_run=dict(not_run or {}))


async def _warm_up(subject: Subject, shape: PromptShape | None, *, anew: bool) -> None:
    """Put the load and one request behind the subject; ``anew`` gives it a fresh engine first."""
    if anew:
        await subject.unload()
    await subject.load()
    if shape is None:
        await subject.client.generate(subject.model, "Hello", options={**subject.options, "num_predict": 1})
    else:
        await subject.offer(ONE_REQUEST, shape, stream="discarded")


def launch_spread(trials: Trials, arm: str, statistic: Statistic) -> float | None:
    """Return how much an arm differs from launch to launch: the standard deviation of log values.

    One request per launch, so the requests' own noise is in it; None with fewer than two launches.
    """
    logs = [math.log(value) for value in trials.per_visit(arm, statistic) if value > 0]
    return stdev(logs) if len(logs) > 1 else None
