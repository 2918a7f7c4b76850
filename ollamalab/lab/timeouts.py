"""Timeouts that follow from what was measured: one for connecting, one for a load, one between bytes.

*Why three*: a client that connects within a millisecond need not wait a minute for a dead host, and one whose
model takes a minute to load must. Many libraries have only two numbers, for connecting and for reading;
there the second one is that of the load.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from ollamalab.client import OllamaClient
from ollamalab.compare import Visit
from ollamalab.lab.models import model_file
from ollamalab.lab.page_cache import drop_from_cache
from ollamalab.lab.stages import Bodies, ask
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.lab.tables import with_not_run
from ollamalab.lab.trials import Trials, Visitor
from ollamalab.metrics import completed, e2e_final_line_s, success_share, token_gaps_s, ttft_s
from ollamalab.protocol.names import parse_name
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import Column, Table

#: How many times what was seen is waited for: what was seen is few tries on a quiet host.
MARGIN = 3.0

#: Linux repeats a lost SYN after 1 s and after 3 s: less would give up what a third try gets.
LEAST_CONNECT_S = 4.0

_LEAST_S = 1.0
_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """What a client waits for, in seconds.

    Attributes:
        connect_s: For a connection.
        first_byte_s: For the reply's first byte when the model may have to be loaded.
        progress_s: Without a byte when it is loaded: before the first one, and between two.
    """

    connect_s: float
    first_byte_s: float
    progress_s: float


def derive_timeouts(*, connecting_s: float, load_s: float, first_token_s: float, token_s: float) -> Timeouts:
    """Return the timeouts for a model; the wait in a queue comes on top.

    Between two tokens a server may evaluate the prompt of somebody else, so that a long prompt's time to
    its first token belongs into both of the later ones.

    Args:
        connecting_s: The longest time to look up, connect and secure.
        load_s: The longest load.
        first_token_s: The longest time to the first token of a loaded model, with a long prompt.
        token_s: The longest time between two tokens.
    """
    progress_s = rounded_up(MARGIN * (first_token_s + token_s))
    return Timeouts(
        connect_s=max(LEAST_CONNECT_S, rounded_up(MARGIN * connecting_s)),
        first_byte_s=rounded_up(MARGIN * load_s + progress_s),
        progress_s=progress_s,
    )


def rounded_up(seconds: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 5, 7, 10, 15 ... seconds."""
    wanted_s = max(seconds, _LEAST_S)
    power = 10.0 ** math.floor(math.log10(wanted_s))
    return next(step * power for step in _STEPS if step * power >= wanted_s * (1 - 1e-9))


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """What was measured of one model.

    Attributes:
        model: Its name.
        size_bytes: Of its file, as the server lists it; None if it does not.
        loads_s: Loads with the file in the page cache, or wherever the server has it.
        disk_loads_s: Loads after the file was dropped from it; none where that cannot be done.
        long: A long prompt to the loaded model; None if it failed.
    """

    model: str
    size_bytes: float | None
    loads_s: tuple[float, ...]
    disk_loads_s: tuple[float, ...]
    long: RequestRecord | None

    def timeouts(self, connecting_s: float) -> Timeouts | None:
        """Return the timeouts that follow; None if the long prompt failed."""
        if self.long is None:
            return None
        first_token_s = ttft_s(self.long)
        if first_token_s is None:
            return None
        return derive_timeouts(
            connecting_s=connecting_s,
            load_s=max(self.loads_s + self.disk_loads_s),
            first_token_s=first_token_s,
            token_s=max(token_gaps_s(self.long), default=0.0),
        )


async def size_up(
    subject: Subject, shape: PromptShape, *, loads: int, file: Path | None, seed: int
) -> Sizing:
    """Load a model again and again, then ask it one long prompt.

    Args:
        subject: The model on a server that unloads it when told to.
        shape: Lengths of the long prompt and its answer.
        loads: How many of each kind, at least 1.
        file: The model's file on this machine; None if it is not known.
        seed: Draws the words.
    """

    async def load_s() -> float:
        return await subject.client.preload(subject.model)

    in_memory: list[float] = []
    from_disk: list[float] = []
    for _ in range(loads):
        await subject.unload()
        in_memory.append(await load_s())
    while file is not None and len(from_disk) < loads:
        await subject.unload()
        if not drop_from_cache(file):
            break  # the system keeps its pages: it would measure the wrong thing
        from_disk.append(await load_s())
    await subject.client.preload(subject.model)
    body = Bodies(subject.model, shape, seed=seed).draw(0)
    asked = await ask(subject.client, body)
    return Sizing(
        model=subject.model,
        size_bytes=await _size_bytes(subject),
        loads_s=tuple(in_memory),
        disk_loads_s=tuple(from_disk),
        long=asked.record if asked.answer else None,
    )


async def size_up_each(
    subject: Subject, models: Iterable[str], shape: PromptShape, *, loads: int, seed: int
) -> list[Sizing]:
    """Return what ``size_up`` finds of each model that the subject's server has, in order.

    Args:
        subject: On a server that unloads models when told to.
        models: Names; one that a server of somebody else lacks is left out.
        shape: Lengths of the long prompt and its answer.
        loads: How many of each kind, at least 1.
        seed: Draws the words.
    """
    target = subject.target
    there = {parse_name(str(model["name"])).key for model in await subject.client.tags()}
    found = []
    for model in models:
        if parse_name(model).key in there:
            file = model_file(target.kind, model)
            async with Subject(target, model, seed=seed) as one:
                found.append(await size_up(one, shape, loads=loads, file=file, seed=seed))
    return found


async def _size_bytes(subject: Subject) -> float | None:
    listed = {str(model["name"]): model.get("size") for model in await subject.client.tags()}
    return listed.get(subject.model)


def derived_for(sizings: Iterable[Sizing], *, connecting_s: float) -> dict[str, Timeouts]:
    """Return the timeouts of each model that has some."""
    found = {sizing.model: sizing.timeouts(connecting_s) for sizing in sizings}
    return {model: timeouts for model, timeouts in found.items() if timeouts}


def timeouts_table(sizings: Iterable[Sizing], *, connecting_s: float) -> Table:
    """Return one row per model: its loads, and the timeouts that follow from them."""
    rows = []
    for sizing in sizings:
        derived = sizing.timeouts(connecting_s)
        rows.append(
            (
                sizing.model,
                None if sizing.size_bytes is None else sizing.size_bytes / 1e6,
                _median(sizing.loads_s),
                _median(sizing.disk_loads_s),
                None if sizing.long is None else ttft_s(sizing.long),
                *(
                    (derived.connect_s, derived.first_byte_s, derived.progress_s)
                    if derived
                    else (None, None, None)
                ),
            )
        )
    return Table.of(
        "timeouts",
        "Timeouts by model",
        [
            Column(name="Model"),
            Column(name="File", unit="MB", format=".0f"),
            Column(name="Load", unit="s", format=".2f"),
            Column(name="Load from disk", unit="s", format=".2f"),
            Column(name="First token", unit="s", format=".2f"),
            Column(name="Connect timeout", unit="s", format="g"),
            Column(name="First-byte timeout", unit="s", format="g"),
            Column(name="Progress timeout", unit="s", format="g"),
        ],
        rows,
        caption=f"Loads: medians. First token: of a long prompt, model loaded. Timeouts are {MARGIN:g} times "
        "the longest that was seen, rounded up; connecting gets at least 4 s, in which Linux sends a lost "
        "SYN twice more. First byte: a load, then what progress allows. n/a: could not be measured.",
    )


def settings_sentence(model: str, timeouts: Timeouts) -> str:
    """Return the timeouts of a model as they are written down for clients and for our gateway."""
    connect, first, progress = (
        f"{value:g}" for value in (timeouts.connect_s, timeouts.first_byte_s, timeouts.progress_s)
    )
    return (
        f"Timeouts for {model}: requests timeout=({connect}, {first}); httpx Timeout({first}, "
        f"connect={connect}); ollamalab serve load_timeout: {first}, request_timeout: {progress}."
    )


# Tried

#: Arms, by what the timeout was derived from.
FROM_WARM = "warm requests"
FROM_LOADS = "measured loads"
ARMS = (FROM_WARM, FROM_LOADS)


def first_requests(subject: Subject, bodies: Bodies, timeout_s: float) -> Visitor:
    """Return the visitor "the first request after an unload, by a client with this timeout"."""

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        await subject.unload()
        async with OllamaClient(subject.target.url, progress_timeout_s=timeout_s) as client:
            asked = await ask(client, bodies.draw(visit.block))
        return [asked.record]

    return visit


def both_waits(warm: Iterable[RequestRecord], derived: Timeouts | None) -> dict[str, float]:
    """Return the seconds that each arm waits for a first byte; none if nothing was derived.

    Args:
        warm: Warm requests, at least one of them completed: the same margin over what these usually take is
            what somebody chooses who never saw a model load.
        derived: From the loads.
    """
    if derived is None:
        return {}
    usual_s = median(value for one in completed(warm) if (value := e2e_final_line_s(one)) is not None)
    return {FROM_WARM: MARGIN * usual_s, FROM_LOADS: derived.first_byte_s}


def tried_table(trials: Trials, timeouts: Mapping[str, float]) -> Table:
    """Return what became of first requests under each timeout."""
    rows: list[list[object]] = []
    for arm in trials.arms:
        share = success_share(trials.of(arm))
        late = sum(record.outcome is Outcome.TIMEOUT for record in trials.of(arm))
        rows.append([arm, timeouts[arm], (share.ratio, share.low, share.high), late, share.of])
    return with_not_run(
        {arm: reason for arm, reason in trials.not_run.items() if arm in ARMS},
        "tried",
        "First requests to a model that is not loaded",
        [
            Column(name="Timeout from"),
            Column(name="Waits for", unit="s", format=".2f"),
            Column(name="Success", format=".0%"),
            Column(name="Given up"),
            Column(name="n"),
        ],
        rows,
        caption="Success with its 95 % Wilson interval. Given up: no byte came within the client's timeout.",
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
