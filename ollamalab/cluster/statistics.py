"""What a cluster tells of itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from ollamalab.cluster.breaker import BreakerState
from ollamalab.cluster.member import Member
from ollamalab.cluster.verdict import Verdict

#: Kinds of failures, as they are shown.
FAILURES = (Verdict.LATE, Verdict.UNREACHED, Verdict.LOST, Verdict.FAILED)


class MemberState(StrEnum):
    """What becomes of requests at an upstream."""

    UP = "up"
    BUSY = "busy"  #: it said so; for a while it gets nothing
    DOWN = "down"  #: it does not answer
    LEAVING = "leaving"  #: it finishes what is under way, then it is gone


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaStatistics:
    """One model at one upstream.

    Attributes:
        is_resident: Whether it is loaded, as far as is known.
        in_flight: Requests for it under way there.
        places: How many at once it gets, all told; learnt, or set.
        tokens_per_s: Generated for one answer lately, if its prompt were read at the usual ratio of speeds;
            None before the first.
        load_s: What loading it took lately; None if none was seen.
        breaker: Whether it may be asked.
    """

    is_resident: bool
    in_flight: int
    places: int
    tokens_per_s: float | None
    load_s: float | None
    breaker: BreakerState


@dataclass(frozen=True, kw_only=True, slots=True)
class MemberStatistics:
    """One upstream since it joined.

    Attributes:
        name: What it is called.
        url: Where it is; "" if nobody said.
        state: What becomes of requests there.
        weight: Its share under weighted routing.
        requests: Sent there for clients.
        in_flight: Under way there.
        moved: Sent there first, and then to another.
        failures: Requests that got no good answer there: "timeout", "unavailable", "broken" in the middle
            or not HTTP, "status" of 500 or more or 429; each counts once.
        probes: Looks at it.
        failed_probes: Of these, without an answer.
        models: What is known of its models, by key.
    """

    name: str
    url: str
    state: MemberState
    weight: int
    requests: int
    in_flight: int
    moved: int
    failures: Mapping[str, int]
    probes: int
    failed_probes: int
    models: Mapping[str, ReplicaStatistics]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterStatistics:
    """A cluster since its start.

    Attributes:
        route: Which policy decides.
        failovers: Requests sent once more, to another upstream.
        retries_denied: Requests that were not, because too many of late were.
        disagreements: Models whose upstreams list different digests, by key: digest by upstream. Their
            answers are not cached.
        members: In the order of the settings; those that are leaving at the end.
    """

    route: str
    failovers: int
    retries_denied: int
    disagreements: Mapping[str, Mapping[str, str]]
    members: tuple[MemberStatistics, ...]


def member_statistics(member: Member, now_s: float) -> MemberStatistics:
    """Return what is known of a member."""
    return MemberStatistics(
        name=member.name,
        url=member.url,
        state=_state_of(member, now_s),
        weight=member.view.weight,
        requests=member.requests,
        in_flight=member.view.in_flight,
        moved=member.moved,
        failures={kind.value: member.failures[kind.value] for kind in FAILURES},
        probes=member.probes,
        failed_probes=member.failed_probes,
        models={
            key: ReplicaStatistics(
                is_resident=replica.view.is_resident,
                in_flight=replica.view.in_flight,
                places=replica.places,
                tokens_per_s=replica.view.tokens_per_s,
                load_s=replica.view.load_s,
                breaker=replica.breaker.state(now_s),
            )
            for key, replica in member.replicas.items()
            if key in (member.digests or member.replicas) and key
        },
    )


def disagreements(members: Iterable[Member]) -> dict[str, dict[str, str]]:
    """Return the models that are listed with different digests, by key: digest by upstream."""
    found: dict[str, dict[str, str]] = {}
    for member in members:
        for key, digest in (member.digests or {}).items():
            found.setdefault(key, {})[member.name] = digest
    return {key: digests for key, digests in found.items() if len(set(digests.values())) > 1}


def _state_of(member: Member, now_s: float) -> MemberState:
    if member.is_leaving:
        return MemberState.LEAVING
    if not member.health.is_up:
        return MemberState.DOWN
    return MemberState.BUSY if member.health.is_busy(now_s) else MemberState.UP
