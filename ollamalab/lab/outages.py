"""One of several instances is killed under load and comes back: what each balancer makes of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import pandas as pd

from ollamalab.connection import OllamaConnection
from ollamalab.lab.balancers import balancer
from ollamalab.lab.instances import instance_name, kill, place_of
from ollamalab.lab.mixes import Workload
from ollamalab.lab.routes import offer
from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import not_run_text
from ollamalab.loadgen import LoadSettings
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import Column, Table

#: No instance takes so long to start.
_MOST_S = 3600.0


class End(StrEnum):
    """How a request ended while an instance was lost."""

    ANSWERED = "answered"
    CUT = "cut off"  #: after its first token: nobody can continue such a stream
    LOST = "lost"  #: before its first token, when another instance could still have answered


def end_of(record: RequestRecord) -> End:
    """Return how a request ended."""
    if record.outcome in (Outcome.OK, Outcome.EMPTY):
        return End.ANSWERED
    return End.LOST if record.first_token_s is None else End.CUT


@dataclass(frozen=True, kw_only=True)
class Outage:
    """What happened behind one balancer.

    Attributes:
        balancer: Its name.
        records: Of every request that ended; a record's target is who answered.
        victim: Host and port of the instance that was killed.
        began_s: When the load began (``time.perf_counter``, like the rest).
        killed_s: When the instance was killed.
        back_s: When it answered again.
    """

    balancer: str
    records: tuple[RequestRecord, ...]
    victim: str
    began_s: float
    killed_s: float
    back_s: float

    @property
    def labelled(self) -> list[RequestRecord]:
        """The records, with the balancer as their arm."""
        return [replace(record, arm=f"one killed behind {self.balancer}") for record in self.records]

    def count(self, end: End) -> int:
        """Return how many requests ended so."""
        return sum(end_of(record) is end for record in self.records)

    @property
    def returned_after_s(self) -> float | None:
        """Seconds from when the instance answered again to its next first token; None if none came."""
        moments = [
            record.first_token_s
            for record in self.records
            if record.target == self.victim and record.first_token_s is not None
        ]
        return min((moment - self.back_s for moment in moments if moment > self.back_s), default=None)


async def outage(
    name: str,
    instances: Sequence[Subject],
    workload: Workload,
    *,
    clients: int,
    margin_s: float,
    check_s: float,
) -> Outage:
    """Keep clients busy through a balancer while the first instance is killed and started again.

    It comes back with an empty memory, and the balancer has to notice by itself.

    Args:
        name: One of ``BALANCERS``.
        instances: Ours, with ports of their own.
        workload: Whose requests are sent.
        clients: Of a closed loop.
        margin_s: How long they ask after the instance answers again; half of it before it is killed.
        check_s: How often the balancer looks whether a server is there.
    """
    victim = instances[0]
    moments: list[float] = []
    nonces = random.Random()

    def request_of(number: int) -> Request:
        nonce = f"{nonces.randrange(10**9):09d}{number:06d}"
        return workload.request_of(number, number, nonce)

    async def away() -> None:
        await asyncio.sleep(margin_s / 2)
        moments.append(time.perf_counter())
        kill(victim)
        await victim.restart()
        moments.append(time.perf_counter())
        await asyncio.sleep(margin_s)

    urls = [one.target.url for one in instances]
    async with balancer(name, urls, check_s=check_s) as url, OllamaConnection(url) as connection:
        began_s = time.perf_counter()
        records = await offer(
            connection,
            LoadSettings(clients=clients, requests=None, duration_s=_MOST_S),
            request_of,
            name=name,
            by=instances[-1],
            until=away(),
        )
    killed_s, back_s = moments
    return Outage(
        balancer=name,
        records=tuple(record for record in records if record.outcome is not Outcome.CANCELLED),
        victim=place_of(victim),
        began_s=began_s,
        killed_s=killed_s,
        back_s=back_s,
    )


# What is shown


def ends_frame(outages: Sequence[Outage], instances: Sequence[Subject]) -> pd.DataFrame:
    """Return when and how each request ended; see ``plots.ends_over_time``.

    Args:
        outages: One per balancer.
        instances: In order.
    """
    names = {place_of(instance): instance_name(number) for number, instance in enumerate(instances)}
    rows = [
        {
            "row": outage.balancer,
            "at_s": record.end_s - outage.began_s,
            "kind": names.get(record.target, "answered")
            if end_of(record) is End.ANSWERED
            else end_of(record).value,
        }
        for outage in outages
        for record in outage.records
        if record.end_s is not None
    ]
    return pd.DataFrame(rows, columns=["row", "at_s", "kind"])


def marks_frame(outages: Sequence[Outage]) -> pd.DataFrame:
    """Return when the instance was killed and when it answered again; see ``plots.ends_over_time``."""
    rows = [
        {"row": outage.balancer, "at_s": at_s - outage.began_s, "text": text}
        for outage in outages
        for at_s, text in ((outage.killed_s, "killed"), (outage.back_s, "up again"))
    ]
    return pd.DataFrame(rows, columns=["row", "at_s", "text"])


def outages_table(name: str, title: str, outages: Sequence[Outage], not_run: Mapping[str, str]) -> Table:
    """Return a row per balancer: how requests ended, and when the instance had one again."""
    rows: list[tuple[object, ...]] = []
    for outage in outages:
        answered = Counter(
            record.target == outage.victim for record in outage.records if end_of(record) is End.ANSWERED
        )
        rows.append(
            (
                outage.balancer,
                answered[False],
                answered[True],
                outage.count(End.CUT),
                outage.count(End.LOST),
                outage.returned_after_s,
                len(outage.records),
                "",
            )
        )
    rows += [(one, *[None] * 6, not_run_text(reason)) for one, reason in not_run.items()]
    columns = [
        Column(name="Balancer"),
        Column(name="Answered by others"),
        Column(name="By the one killed"),
        Column(name="Cut off"),
        Column(name="Lost"),
        Column(name="Used again after", unit="s", format=".1f"),
        Column(name="n"),
        Column(name="Note"),
    ]
    caption = (
        "Cut off: the stream had begun at the instance that was killed. Lost: no token had come, and the "
        "client got an error although another instance was well. Used again: from the moment it answered "
        "until the first token of its next answer; n/a if none came while requests were sent."
    )
    return Table.of(name, title, columns, rows, caption=caption)


def outage_title(outages: Sequence[Outage]) -> str:
    """Return what each balancer lost."""
    if not outages:
        return "No instance was killed here"
    parts = [f"{outage.balancer} {outage.count(End.LOST)}" for outage in outages]
    return f"Requests lost before their first token when an instance is killed: {', '.join(parts)}"


def outage_sentence(outages: Sequence[Outage]) -> str:
    """Return what each balancer lost and what was cut, of how many."""
    parts = [
        f"{outage.balancer} lost {outage.count(End.LOST)} and had {outage.count(End.CUT)} cut off "
        f"of {len(outage.records)}"
        for outage in outages
    ]
    return f"One instance killed under load: {'; '.join(parts)}."
