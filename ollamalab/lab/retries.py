"""Sending again what a busy server refused: what it rescues, and how often the server is asked for it.

The server is scripted: it refuses by a plan, because a real engine is not flaky on demand. Every way
meets the same plan, request by request.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from ollamalab.cluster import Cluster
from ollamalab.compare import Visit
from ollamalab.connection import OllamaConnection
from ollamalab.lab.clients import LIBRARIES, Answered, Send, requests_session
from ollamalab.lab.pooling import ask, short_generations
from ollamalab.lab.trials import not_run_text
from ollamalab.metrics import completed, e2e_final_line_s
from ollamalab.protocol.upstream import Request
from ollamalab.report import Column, Table
from ollamalab.scripted import Fault, Script, ScriptedServer

NO_RETRY = "no retry"
PUBLISHED = "S4's adapter"
FOR_POST = "the same, for POST too"
CLUSTER = "ollamalab, a second server"

#: S4's own: ``Retry(total=3, backoff_factor=0.5, status_forcelist=[502, 503, 504])``.
_PUBLISHED: Mapping[str, Any] = {"total": 3, "backoff_factor": 0.5, "status_forcelist": [502, 503, 504]}

_TOKENS = 2
_MODEL = "scripted"
_ATTEMPTS = 4  # at most, of one request


@dataclass(frozen=True, kw_only=True, slots=True)
class Retried:
    """What became of requests to a server that refuses some.

    Attributes:
        trouble: How it refuses.
        way: What is done about it.
        offered: Requests.
        ok: Those that were answered in the end.
        attempts: What arrived at the server, and at the second one where there is one.
        mean_s: Of those that were answered; None without any.
        not_run: Why it could not be tried; None if it was.
    """

    trouble: str
    way: str
    offered: int
    ok: int = 0
    attempts: int = 0
    mean_s: float | None = None
    not_run: str | None = None


async def try_retries(*, requests: int, busy_ratio: float, pause_s: float, seed: int) -> list[Retried]:
    """Try every way while a share of attempts is refused with 503, and while all are.

    Args:
        requests: Offered to each way, one after the other.
        busy_ratio: Share of attempts that are refused now and then.
        pause_s: Back-off factor of ``FOR_POST``, in place of S4's half second.
        seed: Draws which attempts are refused.
    """
    rng = random.Random(seed)
    troubles = {
        f"{busy_ratio:.0%} busy": [rng.random() < busy_ratio for _ in range(_ATTEMPTS * requests)],
        "all busy": [True] * (_ATTEMPTS * requests),
    }
    return [
        await _try(way, open_way, trouble, refused, requests=requests)
        for trouble, refused in troubles.items()
        for way, open_way in _ways(pause_s).items()
    ]


def _ways(pause_s: float) -> dict[str, Callable[[str, str], AbstractAsyncContextManager[Send]]]:
    """Return openers of calls by way; each takes the URL of the flaky server and of one that is well."""
    for_post = {**_PUBLISHED, "backoff_factor": pause_s, "allowed_methods": None}
    return {
        NO_RETRY: lambda flaky, _well: LIBRARIES[0].open(flaky, True),
        PUBLISHED: lambda flaky, _well: requests_session(flaky, True, retry=_PUBLISHED),
        FOR_POST: lambda flaky, _well: requests_session(flaky, True, retry=for_post),
        CLUSTER: _cluster,
    }


@asynccontextmanager
async def _cluster(flaky: str, well: str) -> AsyncIterator[Send]:
    """Give calls through a cluster of both, which sends on what one refuses, within its retry budget."""
    async with OllamaConnection(flaky) as one, OllamaConnection(well) as other, Cluster([one, other]) as both:

        async def send(request: Request) -> Answered:
            async with await both.send(request) as reply:
                return Answered(status=reply.status, body=b"".join([chunk async for chunk in reply.chunks()]))

        yield send


async def _try(
    way: str,
    open_way: Callable[[str, str], AbstractAsyncContextManager[Send]],
    trouble: str,
    refused: Sequence[bool],
    *,
    requests: int,
) -> Retried:
    result = partial(Retried, trouble=trouble, way=way, offered=requests)
    library = next(library for library in LIBRARIES if library.name == "requests")
    if way in (PUBLISHED, FOR_POST) and library.why_absent:
        return result(not_run=library.why_absent)
    faults = {index: Fault.BUSY for index, is_refused in enumerate(refused) if is_refused}
    draw = short_generations(_MODEL, prompt_tokens=12, num_predict=_TOKENS, seed=0)
    async with (
        ScriptedServer(Script(first_s=0.0, gap_s=0.0, tokens=_TOKENS, faults=faults)) as flaky,
        ScriptedServer(Script(first_s=0.0, gap_s=0.0, tokens=_TOKENS)) as well,
        open_way(flaky.url, well.url) as send,
    ):
        records = [
            await ask(send, draw(Visit(index=0, block=0, arm=way), place), flaky.url, index=place)
            for place in range(requests)
        ]
        times = [taken for record in completed(records) if (taken := e2e_final_line_s(record)) is not None]
        return result(
            ok=len(times),
            attempts=len(flaky.log) + len(well.log),
            mean_s=fmean(times) if times else None,
        )


def retries_table(tried: Iterable[Retried], *, pause_s: float) -> Table:
    """Return one row per trouble and way: what was answered, and for how many attempts."""
    rows = [
        (
            one.trouble,
            one.way,
            None if one.not_run else one.ok / one.offered,
            None if one.not_run else one.attempts / one.offered,
            None if one.mean_s is None else one.mean_s * 1e3,
            one.offered,
            not_run_text(one.not_run) if one.not_run else "",
        )
        for one in tried
    ]
    return Table.of(
        "retries",
        "Retries against a server that refuses by a script",
        [
            Column(name="Server"),
            Column(name="Retries"),
            Column(name="Answered", format=".0%"),
            Column(name="Attempts per request", format=".2f"),
            Column(name="Mean", unit="ms", format=".1f"),
            Column(name="n"),
            Column(name="Note"),
        ],
        rows,
        caption=f"A scripted server answers 503 by one plan for every way; back-off factor {pause_s:g} s "
        "where S4 has 0.5 s. Mean: of what was answered, the pauses included. Attempts at the second server "
        "count too; it is well.",
    )


def retries_sentence(tried: Iterable[Retried]) -> str:
    """Return whether the published adapter sends anything again."""
    of_it = [one for one in tried if one.way == PUBLISHED]
    if reason := next((one.not_run for one in of_it if one.not_run), None):
        return f"S4's retry adapter: {not_run_text(reason)}."
    attempts, offered = sum(one.attempts for one in of_it), sum(one.offered for one in of_it)
    refused = offered - sum(one.ok for one in of_it)
    return (
        f"S4's retry adapter: {attempts} attempts for {offered} generations, of which {refused} were refused."
    )
