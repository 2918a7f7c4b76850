"""Asking one conversation at a time, straight or through a cluster, and what engines evaluated for it."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

from ollamalab.client.capture import Capture
from ollamalab.cluster import Cluster, Member
from ollamalab.errors import UpstreamError
from ollamalab.hosts import Target
from ollamalab.lab.prompt_work import PromptWork, count_engines, work_between
from ollamalab.lab.subject import Subject
from ollamalab.protocol.upstream import Upstream
from ollamalab.records import RequestRecord
from ollamalab.settings import ClusterSettings
from ollamalab.workload import Prompt, chat_body, inference_request

Message = dict[str, str]

#: Members of a cluster are looked at once; while requests are timed nobody else asks the servers.
_STILL = ClusterSettings(probe_interval_s=3600.0)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How requests get to a model.

    Attributes:
        upstream: Who is asked.
        targets: The servers behind it.
        model: Name as it is sent.
        num_predict: Tokens of an answer.
    """

    upstream: Upstream
    targets: tuple[Target, ...]
    model: str
    num_predict: int


def straight_way(subject: Subject, num_predict: int) -> Way:
    """Return the way straight to one server."""
    return Way(
        upstream=subject.upstream, targets=(subject.target,), model=subject.model, num_predict=num_predict
    )


@asynccontextmanager
async def routed_way(
    subjects: Sequence[Subject], route: str, num_predict: int, *, seed: int
) -> AsyncIterator[Way]:
    """Give the way through a cluster of servers with the same model.

    Args:
        subjects: The servers.
        route: One of ``routing.POLICIES``.
        num_predict: Tokens of an answer.
        seed: For draws among equals.
    """
    members = [
        Member(f"server {number}", subject.upstream, url=subject.target.url)
        for number, subject in enumerate(subjects, start=1)
    ]
    rng = random.Random(seed)
    async with Cluster(members, route=route, settings=_STILL, rng=rng) as cluster:
        targets = tuple(subject.target for subject in subjects)
        yield Way(upstream=cluster, targets=targets, model=subjects[0].model, num_predict=num_predict)


@dataclass
class PromptMeter:
    """Asks one question at a time and remembers what the engines evaluated for it.

    Attributes:
        works: Moment of a request's send to what the engines did for it.
    """

    works: dict[float, PromptWork] = field(default_factory=dict)

    async def ask(
        self, way: Way, messages: Sequence[Message], *, index: int = 0, arm: str = ""
    ) -> tuple[RequestRecord, str]:
        """Send one conversation, return its record and the answer's text.

        Nobody else may ask these servers meanwhile: their counters do not tell who it was.

        Args:
            way: To whom.
            messages: In order; the last is the question.
            index: Its place in the visit.
            arm: Its name in a table, outside a comparison.
        """
        options = {"temperature": 0.0}
        prompt = Prompt(messages=tuple(messages), num_predict=way.num_predict, options=options)
        request = inference_request("/api/chat", chat_body(prompt, way.model))
        before = await count_engines(way.targets)
        capture = Capture(request=request, intended_s=time.perf_counter(), index=index)
        capture.sent_s = capture.intended_s
        try:
            async with await way.upstream.send(request) as reply:
                capture.status, capture.headers_s = reply.status, time.perf_counter()
                async for chunk in reply.chunks():
                    capture.reads.append((time.perf_counter(), chunk))
        except UpstreamError as error:
            capture.failure = error
        capture.end_s = time.perf_counter()
        self.works[capture.intended_s] = work_between(before, await count_engines(way.targets))
        reading = capture.read()
        record = capture.record(way.targets[0].url, reading)
        return replace(record, arm=arm), "".join(reading.texts)

    def work(self, record: RequestRecord) -> PromptWork:
        """Return what the engines did for a request; the moment of its send tells which it was."""
        return self.works[record.intended_s]

    def evaluated(self, record: RequestRecord) -> int | None:
        """Return the tokens evaluated for a request; None where the engine does not tell."""
        return self.work(record).evaluated_tokens

    def total_evaluated(self, records: Sequence[RequestRecord]) -> float | None:
        """Return the statistic "prompt tokens evaluated in a visit"; None if one request's are not known."""
        counts = [self.evaluated(record) for record in records]
        known = [count for count in counts if count is not None]
        return float(sum(known)) if known and len(known) == len(counts) else None

    def prefill_tokens_per_s(self, record: RequestRecord) -> float | None:
        """Return evaluated tokens / ``prompt_eval_duration``: the rate with the prompt cache accounted for.

        The time has the first answer token's decode in it, so that the rate of a few tokens is that of a
        decode, not of a prefill.
        """
        evaluated, server = self.evaluated(record), record.server
        if evaluated is None or server is None or not server.prompt_eval_s:
            return None
        return evaluated / server.prompt_eval_s
