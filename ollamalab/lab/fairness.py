"""Two clients who want one server: one sends bursts, the other a request now and then.

- ``Rush``: what they send in one visit, and at how many times the server's capacity
- ``way_to``, ``rushes``: whatever stands before the server, and the visitor that sends a rush through it
- ``learn``: what a queue finds out by itself about a server's slots
- tables and titles

A *period* is one burst and the single requests after it. It is so long that the server could answer
``load`` times less in it than is sent: at 2× half of what is sent is over when the next burst is due.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.cluster.reply import MadeReply
from ollamalab.compare import Comparison, Visit
from ollamalab.errors import OllamaLabError, UpstreamError
from ollamalab.gateway.failures import failure_of
from ollamalab.lab.frames import sweep_points
from ollamalab.lab.sentences import listed, result_text
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.lab.trials import Statistic, Trials, Visitor, mean_of
from ollamalab.loadgen import LoadGenerator, LoadResult, LoadSettings
from ollamalab.metrics import Slo, completed_rps, goodput, response_s, summarise_requests
from ollamalab.protocol.calls import CLIENT_HEADER
from ollamalab.protocol.upstream import Reply, Request, Upstream
from ollamalab.queueing import RequestQueue
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import Column, Table
from ollamalab.settings import QueueSettings
from ollamalab.workload import WORDS, generate_body, inference_request, text_prompt

BURSTS, SINGLES = "bursts", "now and then"  #: the two clients
EVERYBODY = "everybody"  #: the one name that all have before a FIFO queue

#: Tokens of a prompt besides its words: a nonce and the beginning of a story.
_OVERHEAD_TOKENS = 15


@dataclass(frozen=True, kw_only=True)
class Rush:
    """What the two clients send in one visit: one period.

    Attributes:
        burst: Requests that the one sends at once.
        singles: Requests that the other sends, evenly spaced over the period, the first soon after the burst.
        load: Requests sent / requests that the server can answer in a period.
        capacity_rps: Requests/s that the server can answer.
    """

    burst: int
    singles: int
    load: float
    capacity_rps: float

    @property
    def period_s(self) -> float:
        """How long a period lasts."""
        return (self.burst + self.singles) / (self.load * self.capacity_rps)

    @property
    def gap_s(self) -> float:
        """Seconds from one single request to the next."""
        return self.period_s / self.singles

    @property
    def first_single_s(self) -> float:
        """Seconds from the burst to the first single request."""
        return self.gap_s / 4

    def of(self, client: str, records: Iterable[RequestRecord]) -> list[RequestRecord]:
        """Return the records of one client: those of the burst are numbered first."""
        return [record for record in records if (record.index < self.burst) == (client == BURSTS)]

    def mean_response(self, client: str) -> Statistic:
        """Return the statistic "mean response of a client's completed requests", in seconds."""
        mean = mean_of(response_s)
        return lambda records: mean(self.of(client, records))


def wait_s(record: RequestRecord) -> float | None:
    """Return how long a request waited: its response without the work that the server reports.

    It is the same sum wherever the request waited, in a queue of ours or inside the server.
    """
    response, server = response_s(record), record.server
    if response is None or server is None or server.eval_s is None:
        return None
    return max(0.0, response - (server.prompt_eval_s or 0.0) - server.eval_s)


def fair_shares(amount: float, demands: Sequence[float]) -> list[float]:
    """Return who gets how much if nobody gets more than he wants and the least is as much as possible.

    Source: max-min fairness, as in Bertsekas and Gallager, "Data Networks", section 6.5.2.
    """
    shares = [0.0] * len(demands)
    left = amount
    for place, index in enumerate(sorted(range(len(demands)), key=demands.__getitem__)):
        shares[index] = min(demands[index], left / (len(demands) - place))
        left -= shares[index]
    return shares


def jain_index(values: Sequence[float]) -> float | None:
    """Return Jain's index: 1 if all values are equal, 1/n if one has everything; None if all are 0.

    Source: Jain, Chiu and Hawe, DEC-TR-301 (1984).
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else None


def fairness(records: Iterable[RequestRecord], rush: Rush) -> float | None:
    """Return Jain's index of what both clients got within the periods, each by its max-min fair share.

    A request is got within the period if its first token came before the next burst would have. None if
    nobody got anything.
    """
    visits: defaultdict[int | None, list[RequestRecord]] = defaultdict(list)
    for record in records:
        visits[record.visit].append(record)
    got = dict.fromkeys((BURSTS, SINGLES), 0)
    for visit in visits.values():
        end_s = min(record.intended_s for record in visit) + rush.period_s
        for client in got:
            moments = (record.first_token_s for record in rush.of(client, visit))
            got[client] += sum(moment is not None and moment <= end_s for moment in moments)
    demands = [len(visits) * rush.burst, len(visits) * rush.singles]
    due = fair_shares(sum(got.values()), demands)
    return jain_index([part / share if share else 0.0 for part, share in zip(got.values(), due, strict=True)])


# What stands in front of a server


def way_to(subject: Subject, settings: QueueSettings | None = None) -> Upstream:
    """Return the way to a server: straight, or through a queue of ours, whose refusals are answers."""
    if settings is None:
        return subject.upstream
    return _Answering(RequestQueue(settings).in_front_of(subject.upstream))


class _Answering:
    """An upstream whose refusals are replies with a status, as the gateway sends them."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    async def send(self, request: Request) -> Reply:
        """Send one request; return an answer unless the server itself failed."""
        try:
            return await self._upstream.send(request)
        except UpstreamError:
            raise
        except OllamaLabError as error:
            failure = failure_of(error, is_openai=False)
            refusal = MadeReply(failure.status, failure.headers["content-type"], failure.body)
            refusal.headers |= failure.headers
            return refusal


# Sending


def rushes(subject: Subject, upstream: Upstream, rush: Rush, shape: PromptShape, *, is_fair: bool) -> Visitor:
    """Return the visitor "one rush".

    Args:
        subject: The server and model that answer.
        upstream: The way to it, from ``way_to``.
        rush: What is sent.
        shape: Lengths of prompts and answers.
        is_fair: Whether each client sends its own name; else all have the same one.
    """
    singles = Arrivals(pattern=ArrivalPattern.CONSTANT, rate_rps=1 / rush.gap_s)

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        async def send(client: str, load: LoadSettings, first: int, after_s: float) -> list[RequestRecord]:
            await asyncio.sleep(after_s)
            name = client if is_fair else EVERYBODY
            words = f"block {visit.block} {client}"
            result = await _offer(subject, upstream, load, shape, client=name, stream=words)
            return [replace(record, index=first + record.index) for record in result.records]

        at_once = LoadSettings(arrivals=Arrivals(pattern=ArrivalPattern.AT_ONCE), requests=rush.burst)
        spaced = LoadSettings(arrivals=singles, requests=rush.singles)
        sent = await asyncio.gather(
            send(BURSTS, at_once, 0, 0.0), send(SINGLES, spaced, rush.burst, rush.first_single_s)
        )
        return [record for records in sent for record in records]

    return visit


async def capacity_rps(subject: Subject, shape: PromptShape, *, places: int, requests: int) -> float:
    """Return how many requests/s a server answers that always has as many as it has places for.

    Args:
        subject: The server and model.
        shape: Lengths of prompts and answers.
        places: How many at once.
        requests: How many in all.
    """
    load = LoadSettings(clients=places, requests=requests)
    result = await _offer(subject, subject.upstream, load, shape, client="", stream="capacity")
    rate = completed_rps(result.records)
    if not rate:
        error = next((record.error for record in result.records if record.error), "no answer")
        raise UpstreamError(f"{subject.target.url} completed none of {requests} requests: {error}")
    return rate


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """What a queue found out about a server.

    Attributes:
        places: How many at once it now sends.
        most_at_once: How many it sent at once while it tried.
        requests: How many it learnt from.
    """

    places: int
    most_at_once: int
    requests: int


async def learn(subject: Subject, shape: PromptShape, *, clients: int, requests: int) -> Learnt:
    """Let a queue that knows nothing learn a server's places from the answers to a closed loop."""
    queue = RequestQueue(QueueSettings())
    load = LoadSettings(clients=clients, requests=requests)
    upstream = _Answering(queue.in_front_of(subject.upstream))
    await _offer(subject, upstream, load, shape, client=EVERYBODY, stream="learn")
    seen = queue.statistics()
    return Learnt(
        places=max(seen.limits.values(), default=1), most_at_once=seen.peak_active, requests=seen.completed
    )


async def _offer(
    subject: Subject,
    upstream: Upstream,
    load: LoadSettings,
    shape: PromptShape,
    *,
    client: str,
    stream: str,
) -> LoadResult:
    nonces = random.Random()

    def request_of(number: int) -> Request:
        text = brief_text(random.Random(f"{stream}:{number}"), shape.prompt_tokens, nonces)
        prompt = text_prompt(text, num_predict=shape.num_predict, temperature=0.0)
        request = inference_request("/api/generate", generate_body(prompt, subject.model) | {"raw": True})
        return Request(
            method=request.method,
            path=request.path,
            headers={**request.headers, CLIENT_HEADER: client},
            body=request.body,
        )

    result = await LoadGenerator(upstream, target=subject.target.url).run(load, request_of)
    subject.health.append(result.health)
    return result


def brief_text(rng: random.Random, prompt_tokens: int, nonces: random.Random) -> str:
    """Return a beginning of about so many tokens, at least 16, for a model to go on with.

    It is sent without the model's template: waiting is the subject here, so a request may be short, and the
    nonce stands before everything that two requests could share.
    """
    words = " ".join(rng.choice(WORDS) for _ in range(max(1, prompt_tokens - _OVERHEAD_TOKENS)))
    return f"{nonces.randrange(10**9):09d} Once upon a time, {words}"


# What is shown


def clients_table(
    name: str, title: str, trials: Trials, rushes_by_arm: Mapping[str, Rush], slo: Slo
) -> Table:
    """Return a row per arm and client: wait, response, what was in time, and refusals."""
    rows = []
    for arm, rush in rushes_by_arm.items():
        for client in (BURSTS, SINGLES):
            records = rush.of(client, trials.of(arm))
            good = goodput(records, slo).share
            waits, responses = (summarise_requests(records, metric) for metric in (wait_s, response_s))
            refused = sum(record.outcome is Outcome.HTTP_ERROR for record in records)
            rows.append(
                (
                    arm,
                    client,
                    waits.mean,
                    responses.mean,
                    max((value for value in map(response_s, records) if value is not None), default=None),
                    (good.ratio, good.low, good.high),
                    refused,
                    len(records),
                )
            )
    columns = [
        Column(name="Arm"),
        Column(name="Client"),
        Column(name="Mean wait", unit="s", format=".2f"),
        Column(name="Mean response", unit="s", format=".2f"),
        Column(name="Longest", unit="s", format=".2f"),
        Column(name="In time", format=".0%"),
        Column(name="Refused"),
        Column(name="n"),
    ]
    limit = "" if slo.response_s is None else f" within {slo.response_s:.2f} s"
    caption = (
        "Response from the planned send, of completed requests; wait: the response without the work that "
        f"the server reports. In time: completed{limit}, of those sent, with its 95 % Wilson interval."
    )
    return Table.of(name, title, columns, rows, caption=caption)


def fairness_table(
    name: str, title: str, trials: Trials, rushes_by_arm: Mapping[str, Rush], slo: Slo
) -> Table:
    """Return a row per arm: goodput over both clients, refusals and Jain's index."""
    rows = []
    for arm, rush in rushes_by_arm.items():
        records = trials.of(arm)
        visits = {record.visit for record in records}
        good = goodput(records, slo).share
        seconds = len(visits) * rush.period_s
        refused = sum(record.outcome is Outcome.HTTP_ERROR for record in records)
        in_time = sum(map(slo.is_met, records))
        rows.append(
            (
                arm,
                rush.load,
                good.ratio,
                in_time / seconds if seconds else None,
                refused,
                fairness(records, rush),
                len(visits),
            )
        )
    columns = [
        Column(name="Arm"),
        Column(name="Load", unit="of capacity", format=".1f"),
        Column(name="In time", format=".0%"),
        Column(name="Goodput", unit="requests/s", format=".2f"),
        Column(name="Refused"),
        Column(name="Jain index", format=".2f"),
        Column(name="Visits"),
    ]
    caption = (
        "Goodput: answers in time per second of the periods. Jain's index of what each client got before "
        "the next burst was due, divided by its max-min fair share: 1 is fair, 0.5 is one client alone."
    )
    return Table.of(name, title, columns, rows, caption=caption)


def learnt_table(name: str, title: str, learnt: Mapping[str, Learnt]) -> Table:
    """Return a row per server: what a queue learnt of it."""
    rows = [(server, found.places, found.most_at_once, found.requests) for server, found in learnt.items()]
    columns = [
        Column(name="Server"),
        Column(name="Learnt"),
        Column(name="Most tried"),
        Column(name="From requests"),
    ]
    caption = "Requests at once that the queue lets through, and the most that it let through while it tried."
    return Table.of(name, title, columns, rows, caption=caption)


def load_points(trials: Trials, rushes_by_way: Mapping[str, Mapping[str, Rush]], client: str) -> pd.DataFrame:
    """Return a client's mean response by load, one line per way to the server; see ``plots.sweep_lines``.

    Args:
        trials: One arm per way and load.
        rushes_by_way: Way to its arms, each with what was sent.
        client: Whose responses.
    """
    lines = [
        sweep_points(trials, {arm: rush.load}, rush.mean_response(client)).assign(series=way)
        for way, arms in rushes_by_way.items()
        for arm, rush in arms.items()
    ]
    return pd.concat(lines, ignore_index=True)


def fairness_title(comparison: Comparison) -> str:
    """Return what fairness does to the response of whoever sends now and then."""
    if comparison.estimate is None or comparison.high is None or comparison.high >= 1:
        return "Responses to the client who sends now and then"
    return f"Fair order cuts the response beside bursts to {comparison.estimate:.0%} of that in FIFO order"


def fairness_sentence(comparison: Comparison) -> str:
    """Return the result for whoever sends now and then."""
    return (
        f"Response to a client who sends now and then beside one who sends bursts, {comparison.arm} against "
        f"{comparison.baseline}: {result_text(comparison)}."
    )


def learnt_sentence(learnt: Mapping[str, Learnt]) -> str:
    """Return how many places a queue learnt of each server."""
    return (
        f"Places that a queue learnt by itself: {listed({name: one.places for name, one in learnt.items()})}."
    )
