"""Cold starts: a fresh server that is asked at once, and arms that are relaunched between visits."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import median

import pandas as pd

from ollamalab.compare import design
from ollamalab.lab.page_cache import drop_from_cache
from ollamalab.lab.subject import ONE_REQUEST, PromptShape, Subject
from ollamalab.lab.trials import Trials, run_visits
from ollamalab.metrics import stages
from ollamalab.records import Outcome, RequestRecord

#: Stages of a cold start, in order: the columns of ``stage_medians``.
STAGES = ("spawn", "load", "prefill", "decode", "other")

#: Scenarios of the stage table.
FROM_DISK = "fresh server, file on disk"
FRESH = "fresh server, file in memory"
UNLOADED = "server runs, model unloaded"
PRELOADED = "model preloaded"


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


async def compare_relaunched(
    subjects: Mapping[str, Subject],
    shape: PromptShape,
    *,
    launches: int,
    blocks_per_launch: int,
    rng: random.Random,
) -> tuple[Trials, dict[str, list[ColdStart]]]:
    """Compare warm requests of servers with different settings, relaunching both between stretches.

    What one launch happens to get (memory layout, CPU) would pass for an effect of its settings; so both
    servers are launched anew several times, in random order, and stay resident side by side in between.
    After a launch the first request is the cold start, the second is thrown away.

    Args:
        subjects: Arm to server and model; the first is the baseline.
        shape: Lengths.
        launches: Fresh servers per arm; at least 4 for a verdict worth having.
        blocks_per_launch: Blocks of visits between relaunches.
        rng: Draws the orders.

    Returns:
        The warm requests, and by arm the cold start of each launch.
    """
    names = tuple(subjects)
    starts: dict[str, list[ColdStart]] = {name: [] for name in names}
    records: list[RequestRecord] = []
    visitors = {name: subject.loads(ONE_REQUEST, shape) for name, subject in subjects.items()}
    visits = design(names, launches * blocks_per_launch, rng)
    for _, stretch in groupby(visits, key=lambda visit: visit.block // blocks_per_launch):
        for name in rng.sample(names, len(names)):
            starts[name].append(await first_after_spawn(subjects[name], shape, scenario=FRESH))
            await subjects[name].offer(ONE_REQUEST, shape, stream="discarded")
        records += (await run_visits(visitors, stretch)).records
    return Trials(arms=names, records=tuple(records)), starts
