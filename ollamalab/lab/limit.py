"""What a limit of one loaded model does to two models that share a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from statistics import median

from ollamalab.compare import Visit
from ollamalab.lab.experiment import Lab
from ollamalab.lab.observation import Observation
from ollamalab.lab.subject import ONE_REQUEST, PromptShape, Subject
from ollamalab.lab.trials import Visitor
from ollamalab.metrics import ttft_s
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table

#: The arm in which a second model has to evict the first.
ONE_MODEL = "OLLAMA_MAX_LOADED_MODELS=1"

#: Longer than any experiment: whoever goes before has been evicted.
_KEPT = "24h"


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One request for one of two models.

    Attributes:
        other_is_gone: Whether the model asked before is no longer loaded after it.
        load_s: That the request waited for its model, as the server says.
        first_token_s: From the send to the first token.
    """

    other_is_gone: bool
    load_s: float | None
    first_token_s: float | None


async def take_turns(
    experiment: Lab, subjects: Mapping[str, Subject], other_model: str, shape: PromptShape, *, pairs: int
) -> dict[str, list[Turn]]:
    """Ask two models of each server in turn, both to be kept for a day, and see which of them stays.

    Args:
        experiment: Keeps the records.
        subjects: Arm to the first model of a server; the first is the baseline.
        other_model: The second.
        shape: Lengths.
        pairs: Requests per server.

    Returns:
        Arm to its turns, in order; empty unless there are two servers.
    """
    turns: dict[str, list[Turn]] = {}
    if len(subjects) < 2:
        return turns
    visitors = {}
    for name, first in subjects.items():
        other = Subject(first.target, other_model, seed=int(experiment.parameters["seed"]))
        await experiment.enter(other)
        for subject in (first, other):
            await subject.client.preload(subject.model, keep_alive=_KEPT)
        visitors[name] = _turns_of(first, other, shape, turns.setdefault(name, []))
    await experiment.compare(visitors, pairs=pairs)
    return turns


def _turns_of(first: Subject, other: Subject, shape: PromptShape, turns: list[Turn]) -> Visitor:
    order = cycle(((first, other), (other, first)))

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        asked, before = next(order)
        (record,) = (await asked.offer(ONE_REQUEST, shape, stream=f"turn {visit.block}")).records
        is_gone = not await before.is_loaded()
        load_s = record.server.load_s if record.server else None
        turns.append(Turn(other_is_gone=is_gone, load_s=load_s, first_token_s=ttft_s(record)))
        return [record]

    return visit


def turns_table(turns: Mapping[str, Sequence[Turn]]) -> Table:
    """Return how often the other model was gone, and what its return took."""
    rows = [
        (name, len(one), sum(turn.other_is_gone for turn in one), *_waits(one)) for name, one in turns.items()
    ]
    return Table.of(
        "turns",
        "Two models of one server, asked in turn",
        [
            Column(name="Setting"),
            Column(name="n"),
            Column(name="Other model gone"),
            Column(name="Load", unit="ms", format=",.1f"),
            Column(name="First token", unit="ms", format=",.0f"),
        ],
        rows,
        caption="Medians over n requests. Gone: after the request /api/ps no longer lists the model that was "
        "asked before, although it was loaded for a day.",
    )


def _waits(turns: Sequence[Turn]) -> tuple[float | None, float | None]:
    """Return the median load and time to first token in ms."""
    loads = [turn.load_s * 1e3 for turn in turns if turn.load_s is not None]
    firsts = [turn.first_token_s * 1e3 for turn in turns if turn.first_token_s is not None]
    return median(loads) if loads else None, median(firsts) if firsts else None


def turns_seen(turns: Mapping[str, Sequence[Turn]], *, not_run: str | None = None) -> Observation:
    """Return whether a limit of one loaded model keeps that model loaded.

    Args:
        turns: Arm to its turns; the limit's and, where there is one, that of the defaults.
        not_run: Why it was not tried; None if it was.
    """
    limited = turns.get(ONE_MODEL, ())
    if not limited:
        return Observation(holds=None, evidence=not_run or "there is no server for it")
    parts = []
    for name, one in turns.items():
        gone = sum(turn.other_is_gone for turn in one)
        load_ms, _ = _waits(one)
        wait = (
            "" if load_ms is None else f" and a load took {load_ms:.{0 if load_ms >= 10 else 1}f} ms (median)"
        )
        parts.append(f"with {name} the other one was gone after {gone} of {len(one)} requests{wait}")
    kept = not any(turn.other_is_gone for turn in limited)
    return Observation(
        holds=kept, evidence="two models, both to stay for a day: " + "; ".join(parts), n=len(limited)
    )
