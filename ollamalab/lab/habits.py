"""What a client does round its requests: health checks first, bodies encoded once, many sent at once."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.client import Answer, OllamaClient
from ollamalab.compare import Comparison, Visit
from ollamalab.connection import OllamaConnection
from ollamalab.lab.clients import LIBRARIES, Reuse, calls
from ollamalab.lab.ledgers import mean_parts
from ollamalab.lab.observation import Observation
from ollamalab.lab.pooling import ask as ask_whole
from ollamalab.lab.sentences import plural, result_text
from ollamalab.lab.stages import PATH, Bodies, ask
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Trials, Visitor
from ollamalab.loadgen import LoadGenerator, LoadSettings
from ollamalab.metrics import completed, send_lag_s, stages
from ollamalab.protocol.upstream import Request
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table
from ollamalab.report.tables import number_text
from ollamalab.workload import inference_request

NO_CHECK = "no check"
ROOT_FIRST = "GET / first"
TAGS_FIRST = "GET /api/tags first"

#: What is asked before each request.
CHECKS = {NO_CHECK: None, ROOT_FIRST: "/", TAGS_FIRST: "/api/tags"}

ANEW = "encoded for each request"
ONCE = "encoded once"

ONE_BY_ONE = "one by one"
AT_ONCE = "at once"

_MS = 1e3


# Health checks


def checks(subject: Subject, bodies: Bodies) -> dict[str, Visitor]:
    """Return the visitors "a short generation", after each of ``CHECKS``.

    The check and the generation have a connection of their own each, as where a framework asks and its
    client library sends. Response time counts from the check.
    """
    trust = ssl.create_default_context()  # made once: it takes longer than a check

    def visitor(path: str | None) -> Visitor:
        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            async with OllamaClient(subject.target.url, ssl_context=trust) as client:
                start_s = time.perf_counter()
                if path is not None:
                    await _check(subject.target.url, path)
                record = (await ask(client, bodies.draw(visit.block))).record
            return [replace(record, intended_s=start_s)]

        return visit

    return {name: visitor(path) for name, path in CHECKS.items()}


async def _check(url: str, path: str) -> None:
    request = Request(method="GET", path=path)
    async with OllamaConnection(url) as connection, await connection.send(request) as reply:
        async for _ in reply.chunks():
            pass


def connect_s(records: Sequence[RequestRecord]) -> float | None:
    """Return the time of a visit's request until its connection stood; a statistic of one visit."""
    return stages(records[0]).connect_s if records else None


def observe_checks(
    trials: Trials, added: Comparison, warm: Sequence[Answer], *, arm: str = ROOT_FIRST
) -> Observation:
    """Return whether the time of a health check lies in the connection.

    It does if connecting takes longer by more than half of the check's own time, and does not if by less;
    where the interval has room for both, this cannot tell.

    Args:
        trials: Of ``checks``.
        added: ``connect_s`` of the arm - that without a check, in seconds.
        warm: Warm requests: what the server does before the prompt bounds the checks that it makes itself.
        arm: Which check.
    """
    own_s = before_s(trials, arm)
    if own_s is None or added.low is None or added.high is None or added.estimate is None:
        return Observation(holds=None, evidence=f"{plural(added.pairs, 'pair')} cannot carry an interval")
    holds = False if added.high < own_s / 2 else True if added.low > own_s / 2 else None
    evidence = (
        f"{arm}: the check takes {own_s * _MS:.2f} ms of its own; the connection then stands "
        f"{_signed(added.estimate)} ms later (95 % interval {_signed(added.low)} to {_signed(added.high)}, "
        f"{added.pairs} pairs)"
    )
    if warm:
        parts = mean_parts(warm)
        inside_s = (parts["load"] or 0.0) + (parts["slot_wait"] or 0.0)
        evidence += (
            f"; what the server does before a warm prompt, its own checks of the engine included, takes "
            f"{inside_s * _MS:.1f} ms, after the connection"
        )
    return Observation(holds=holds, evidence=evidence, n=added.pairs)


def before_s(trials: Trials, arm: str) -> float | None:
    """Return the mean time that an arm's completed requests spent before they were sent."""
    lags = [lag for record in completed(trials.of(arm)) if (lag := send_lag_s(record)) is not None]
    return fmean(lags) if lags else None


def _signed(seconds: float) -> str:
    return number_text(seconds * _MS, "+.2f")


def checks_table(found: Iterable[Comparison]) -> Table:
    """Return one row per kind of check: the response with it and without."""
    return _both_ways(
        "checks",
        "A short generation without a health check",
        {item.baseline: item for item in found},
        heads=("Check", "With", "Without"),
        caption="Response from the beginning of the check.",
    )


def check_sentence(spared: Comparison) -> str:
    """Return what a request gains without a health check."""
    return f"A short generation with {spared.arm} against one with {spared.baseline}: {result_text(spared)}."


# Preparation


def preparations(subject: Subject, body: Mapping[str, Any], *, requests: int) -> dict[str, Visitor]:
    """Return the visitors "the same request again and again", its body encoded for each or once.

    The server has evaluated the prompt, so that the rest of the request is as short as it can be. Each visit
    asks once before anything counts.

    Args:
        subject: Server and model.
        body: Of ``/api/generate``.
        requests: In one visit.
    """
    url = subject.target.url
    once = inference_request(PATH, body)

    def anew() -> Request:
        # As most clients do: the standard library, not the faster encoder that we use.
        return Request(method="POST", path=PATH, headers=once.headers, body=json.dumps(body).encode())

    def visitor(request_of: Callable[[], Request]) -> Visitor:
        async def visit(_: Visit) -> Sequence[RequestRecord]:
            records = []
            async with calls(LIBRARIES[0], url, Reuse.KEPT) as send:
                await send(once)
                for place in range(requests):
                    start_s = time.perf_counter()
                    record = await ask_whole(send, request_of(), url, index=place)
                    records.append(replace(record, intended_s=start_s))
            return records

        return visit

    return {ANEW: visitor(anew), ONCE: visitor(lambda: once)}


def preparation_sentence(trials: Trials, spared: Comparison) -> str:
    """Return what encoding takes, and what sparing it does to the response."""
    anew_s, once_s = (before_s(trials, arm) for arm in (ANEW, ONCE))
    took = "n/a" if anew_s is None or once_s is None else f"{(anew_s - once_s) * 1e6:.0f} µs"
    return f"Encoding a long request takes {took}; encoded once: {result_text(spared)}."


# One after the other, or at once


def batches(name: str, subject: Subject, bodies: Bodies, *, requests: int) -> dict[str, Visitor]:
    """Return the visitors "a few requests", one by one and at once, by names that begin with the server's."""
    plans = {
        ONE_BY_ONE: LoadSettings(requests=requests),
        AT_ONCE: LoadSettings(requests=requests, arrivals=Arrivals(pattern=ArrivalPattern.AT_ONCE)),
    }

    def visitor(settings: LoadSettings) -> Visitor:
        async def visit(visit: Visit) -> Iterable[RequestRecord]:
            generator = LoadGenerator(subject.upstream, target=subject.target.url)
            result = await generator.run(
                settings, lambda _: inference_request(PATH, bodies.draw(visit.block))
            )
            subject.health.append(result.health)
            return result.records

        return visit

    return {batch_arm(name, way): visitor(settings) for way, settings in plans.items()}


def batch_arm(server: str, way: str) -> str:
    """Return the name of an arm of ``batches``: "4 slots, at once"."""
    return f"{server}, {way}"


def batches_table(found: Mapping[str, Comparison], *, requests: int) -> Table:
    """Return one row per server: until all requests are answered, one by one and at once."""
    return _both_ways(
        "batches",
        f"Until {requests} requests are answered",
        found,
        heads=("Server", "One by one", "At once"),
        caption="First send to last end. The server with most slots has the primary contrast.",
    )


def batch_sentence(found: Comparison) -> str:
    """Return what sending at once does to the time until all are answered."""
    return f"Until all are answered, {found.arm} against {found.baseline}: {result_text(found)}."


# What both show


def _both_ways(
    name: str, title: str, found: Mapping[str, Comparison], *, heads: tuple[str, str, str], caption: str
) -> Table:
    """Return one row per comparison, each with a baseline of its own."""
    rows = [
        (
            label,
            item.baseline_value,
            item.arm_value,
            item.effect,
            item.pairs,
            item.outcome,
        )
        for label, item in found.items()
    ]
    return Table.of(
        name,
        title,
        [
            Column(name=heads[0]),
            Column(name=heads[1], unit="s", format=".3f"),
            Column(name=heads[2], unit="s", format=".3f"),
            Column(name="Ratio", format=".2f"),
            Column(name="Pairs"),
            Column(name="Verdict"),
        ],
        rows,
        caption=f"{caption} Means of the visits; Hodges–Lehmann ratio with its exact 95 % interval.",
    )
