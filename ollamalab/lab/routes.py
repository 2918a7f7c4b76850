"""How work gets to several instances, by a policy of ours or another balancer, and who answered.

- ``Routes``: visitors that send a workload through a fresh cluster of instances, or past it
- tables, titles and sentences

A record's ``target`` is the instance that answered, by host and port; where none did, who refused.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from ollamalab.cluster import Cluster, Member
from ollamalab.compare import Comparison, Visit
from ollamalab.errors import TargetError
from ollamalab.lab.instances import place_of
from ollamalab.lab.mixes import IN_ARM, Workload
from ollamalab.lab.prompt_work import count_engines, tokens_between
from ollamalab.lab.sentences import plural, result_text
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Statistic, Trials, Visitor, mean_of, not_run_text
from ollamalab.loadgen import LoadGenerator, LoadSettings
from ollamalab.metrics import completed, completed_rps, response_s
from ollamalab.protocol.calls import UPSTREAM_HEADER
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.records import RequestRecord
from ollamalab.report import Column, Table
from ollamalab.settings import ClusterSettings

ROUND_ROBIN = "round-robin"

#: A shorter ``load_duration`` is no load: servers report some milliseconds for a model that is there.
LOAD_S = 0.2


_READY_S = 10.0
_POLL_S = 0.002
_STILL = ClusterSettings(probe_interval_s=3600.0)  # a visit is short; its cluster looks once, at its start


# Sending


class Answerers:
    """An upstream that notes who answered each request.

    Args:
        upstream: A balancer or cluster that says so in a header.

    Attributes:
        by_body: Body of each request that got a reply to who gave it.
    """

    def __init__(self, upstream: Upstream) -> None:
        self.by_body: dict[bytes, str] = {}
        self._upstream = upstream

    async def send(self, request: Request) -> Reply:
        """Send a request as it is; return the reply as it came."""
        reply = await self._upstream.send(request)
        # nginx lists all that it has tried, the last of which answered.
        if name := reply.headers.get(UPSTREAM_HEADER, "").rpartition(",")[2].strip():
            self.by_body[request.body] = name
        return reply


async def offer(
    upstream: Upstream,
    load: LoadSettings,
    request_of: Callable[[int], Request],
    *,
    name: str,
    by: Subject,
    until: Awaitable[object] | None = None,
) -> list[RequestRecord]:
    """Offer a load and return its records, each with who answered as its target.

    Args:
        upstream: The way to the instances.
        load: How.
        request_of: Request 0, 1, 2 ...; no two have the same body.
        name: Target of those that nobody answered.
        by: Where the client's own health is noted.
        until: Ends the load, with what is under way, if it has not ended by itself.
    """
    answerers = Answerers(upstream)
    bodies: dict[int, bytes] = {}

    def noted(number: int) -> Request:
        request = request_of(number)
        bodies[number] = request.body
        return request

    generator = LoadGenerator(answerers, target=name)
    running = asyncio.create_task(generator.run(load, noted))
    try:
        if until is not None:
            await until
            generator.stop()
        result = await running
    except BaseException:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        raise
    by.health.append(result.health)
    return [
        replace(record, target=answerers.by_body.get(bodies[record.index], name)) for record in result.records
    ]


@asynccontextmanager
async def routed(
    instances: Sequence[Subject], route: str, *, seed: int, weights: Sequence[int] = ()
) -> AsyncIterator[Cluster]:
    """Give a cluster that has just come up in front of instances, and knows what they have and hold.

    Args:
        instances: Its members.
        route: One of ``routing.POLICIES``.
        seed: Of its draws.
        weights: Of each instance; empty: all have 1.

    Raises:
        TargetError: It did not learn it within a while.
    """
    members = [
        Member(place_of(one), one.upstream, url=one.target.url, weight=weight)
        for one, weight in zip(instances, weights or [1] * len(instances), strict=True)
    ]
    async with Cluster(members, route=route, settings=_STILL, rng=random.Random(seed)) as cluster:
        loaded = await asyncio.gather(*(one.loaded() for one in instances))
        wanted = [{parse_name(name).key for name in models} for models in loaded]
        try:
            async with asyncio.timeout(_READY_S):
                while [_known(member) for member in members] != wanted:  # noqa: ASYNC110 - a look sends no event
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise TargetError(
                f"a gateway did not learn within {_READY_S:g} s what {', '.join(map(place_of, instances))} "
                "have in memory; does another client use them?"
            ) from error
        yield cluster


def _known(member: Member) -> set[str] | None:
    """Return the models that a member is known to hold; None before it has said what it has."""
    if member.digests is None:
        return None
    return {key for key, replica in member.replicas.items() if replica.view.is_resident}


@dataclass(kw_only=True)
class Routes:
    """The ways to instances, with visitors for them.

    Attributes:
        instances: At least one.
        weights: Of each under weighted routing; empty: all have 1.
        fronts: Further ways by name, such as another balancer's connection.
        seed: Of the clusters' draws.
        evaluated: Arm and index of each visit to the prompt tokens that the engines evaluated in it.
    """

    instances: Sequence[Subject]
    weights: Sequence[int] = ()
    fronts: Mapping[str, Upstream] = field(default_factory=dict)
    seed: int = 0
    evaluated: dict[tuple[str, int], int] = field(default_factory=dict)
    _nonces: random.Random = field(default_factory=random.Random, init=False, repr=False)

    def visitor(self, workload: Workload, way: str, *, instances: Sequence[Subject] = ()) -> Visitor:
        """Return the visitor "a workload by this way".

        Args:
            workload: What is sent.
            way: A policy, whose cluster is new for each visit, or one of ``fronts``.
            instances: Those behind the cluster; default all.
        """
        behind = instances or self.instances

        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            requests = workload.requests(visit.block, self._nonces)
            load = replace(workload.load, seed=workload.load.seed + visit.block)
            targets = [instance.target for instance in behind] if workload.counts_tokens else []
            before = await count_engines(targets)
            async with self._way(way, behind, visit) as upstream, _neighbours(workload, behind[-1]):
                records = await offer(upstream, load, requests.__getitem__, name=way, by=behind[0])
            if (tokens := tokens_between(before, await count_engines(targets))) is not None:
                self.evaluated[visit.arm, visit.index] = tokens
            return records

        return visit

    @asynccontextmanager
    async def _way(self, way: str, behind: Sequence[Subject], visit: Visit) -> AsyncIterator[Upstream]:
        if way in self.fronts:
            yield self.fronts[way]
            return
        weights = self.weights if len(self.weights) == len(behind) else ()
        async with routed(behind, way, seed=self.seed + visit.block, weights=weights) as cluster:
            yield cluster


@asynccontextmanager
async def _neighbours(workload: Workload, instance: Subject) -> AsyncIterator[None]:
    """Keep clients busy at an instance, past whatever stands before it."""
    if not workload.neighbours:
        yield
        return
    generator = LoadGenerator(instance.upstream, target=instance.target.url)
    nonces = random.Random()

    def request_of(number: int) -> Request:
        return workload.request_of(number, -1, f"{nonces.randrange(10**9):09d}")

    forever = LoadSettings(clients=workload.neighbours, requests=None, duration_s=3600.0)
    task = asyncio.create_task(generator.run(forever, request_of))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# What is shown


def loads(records: Iterable[RequestRecord]) -> int:
    """Return how many requests waited for a load of their model, as their server reports."""
    times = (record.server.load_s for record in records if record.server is not None)
    return sum(time is not None and time >= LOAD_S for time in times)


def largest_share(records: Iterable[RequestRecord]) -> float | None:
    """Return the share of the completed requests that the busiest instance answered."""
    counts = Counter(record.target for record in completed(records))
    return max(counts.values()) / counts.total() if counts else None


def routes_table(name: str, title: str, trials: Trials, evaluated: Mapping[tuple[str, int], int]) -> Table:
    """Return a row per workload and way: response, loads, and how requests were shared out.

    Args:
        name: Of the table.
        title: Of the table.
        trials: Of one or several workloads.
        evaluated: As ``Routes`` has it.
    """
    mean = mean_of(response_s)
    rows: list[tuple[object, ...]] = []
    for arm in trials.arms:
        records = trials.of(arm)
        way, _, workload = arm.partition(IN_ARM)
        visits = {record.visit for record in records}
        known = [count for (of, visit), count in evaluated.items() if of == arm and visit in visits]
        done = completed(records)
        rows.append(
            (
                workload,
                way,
                mean(records),
                loads(records) / len(visits) if visits else None,
                largest_share(records),
                len(done),
                len(records),
                sum(known) / len(known) if known else None,
                "",
            )
        )
    for arm, reason in trials.not_run.items():
        way, _, workload = arm.partition(IN_ARM)
        if workload:  # else an arm of something else
            rows.append((workload, way, *[None] * 6, not_run_text(reason)))
    columns = [
        Column(name="Workload"),
        Column(name="Way"),
        Column(name="Mean response", unit="s", format=".2f"),
        Column(name="Loads", unit="per visit", format=".2f"),
        Column(name="Busiest instance", format=".0%"),
        Column(name="Completed"),
        Column(name="n"),
        Column(name="Evaluated", unit="prompt tokens", format=".0f"),
        Column(name="Note"),
    ]
    caption = (
        "Response from the planned send. Loads: requests whose server reports that it loaded their model "
        f"for {LOAD_S:g} s or more. Busiest instance: its share of the completed requests."
    )
    told = " Evaluated: prompt tokens per visit by the engines' own count, where they are asked and tell."
    kept = [
        place
        for place, column in enumerate(columns)
        if column.name not in ("Evaluated", "Note") or any(row[place] not in (None, "") for row in rows)
    ]
    columns, rows = [columns[place] for place in kept], [tuple(row[place] for place in kept) for row in rows]
    return Table.of(name, title, columns, rows, caption=caption + told * bool(evaluated))


def route_title(workload: Workload, comparison: Comparison) -> str:
    """Return what a policy does to a workload's responses."""
    if comparison.estimate is None or comparison.high is None or comparison.high >= 1:
        return f"Responses by way, {workload.name}"
    share = f"{comparison.estimate:.0%} of that by turns"
    return f"{workload.route.capitalize()} routing cuts the mean response to {share}"


def route_sentence(workload: Workload, comparison: Comparison) -> str:
    """Return what a policy does for a workload, with its interval."""
    return (
        f"{workload.name.capitalize()}, {workload.route} against {ROUND_ROBIN}, {comparison.metric.name}: "
        f"{result_text(comparison)}."
    )


def instances_title(comparison: Comparison) -> str:
    """Return how instances compare with slots."""
    if comparison.estimate is None or comparison.low is None or comparison.high is None:
        return "Instances and parallel slots at the same offered load"
    if comparison.low > 1:
        return f"{comparison.arm} answer more slowly than {comparison.baseline} on the same hardware"
    if comparison.high < 1:
        return f"{comparison.arm} answer faster than {comparison.baseline} on the same hardware"
    return f"{comparison.arm} are not shown to beat {comparison.baseline} on the same hardware"


def instances_sentence(trials: Trials, comparison: Comparison) -> str:
    """Return how instances compare with slots, and what each way completed."""
    rates = ", ".join(
        f"{arm}: {sum(found) / len(found):.1f}"
        for arm in trials.arms
        if (found := trials.per_visit(arm, completed_rps))
    )
    return (
        f"Mean response at the same offered load, {comparison.arm} against {comparison.baseline}: "
        f"{result_text(comparison)}. Completed requests/s: {rates}."
    )


def evaluated_per_visit(evaluated: Mapping[tuple[str, int], int]) -> Statistic:
    """Return the statistic "prompt tokens that the engines evaluated in a visit"; None if not told.

    Args:
        evaluated: As ``Routes`` has it.
    """

    def statistic(records: Sequence[RequestRecord]) -> float | None:
        first = next(iter(records), None)
        return None if first is None or first.visit is None else evaluated.get((first.arm, first.visit))

    return statistic


def instances_text(count: int) -> str:
    """Return "1 instance", "2 instances"."""
    return plural(count, "instance")
