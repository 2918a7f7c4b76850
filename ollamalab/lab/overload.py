"""More than a server can answer, from clients who will not wait for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ollamalab.arrivals import ArrivalPattern, Arrivals
from ollamalab.compare import Visit
from ollamalab.errors import UpstreamError
from ollamalab.lab.fairness import brief_text
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.lab.trials import Visitor
from ollamalab.lab.ways import Way
from ollamalab.loadgen import LoadSettings
from ollamalab.metrics import completed_rps, success_share
from ollamalab.protocol.upstream import Request
from ollamalab.records import RequestRecord
from ollamalab.workload import generate_body, inference_request, text_prompt

#: From which a server's capacity is measured, per slot.
_CAPACITY_REQUESTS = 5


class Asker:
    """Makes requests of one length, each with a number of its own, for the engine's raw completion."""

    def __init__(self, subject: Subject, shape: PromptShape, *, seed: int) -> None:
        """Take what all have in common.

        Args:
            subject: Whose model is asked.
            shape: Lengths.
            seed: Draws the words; the numbers are fresh in each run.
        """
        self._model = subject.model
        self._shape = shape
        self._rng = random.Random(seed)
        self._nonces = random.Random()

    def requests(self, count: int, *, num_predict: int | None = None, **fields: Any) -> list[Request]:
        """Return so many requests.

        Args:
            count: How many.
            num_predict: Tokens asked of each, if not those of the shape.
            fields: Further ones of the body; of options, ``stop`` alone.
        """
        stop = {"stop": fields.pop("stop")} if "stop" in fields else {}
        made = []
        for _ in range(count):
            text = brief_text(self._rng, self._shape.prompt_tokens, self._nonces)
            tokens = num_predict or self._shape.num_predict
            prompt = text_prompt(text, num_predict=tokens, temperature=0.0, **stop)
            body = generate_body(prompt, self._model) | {"raw": True} | fields
            made.append(inference_request("/api/generate", body))
        return made


def at_once(count: int, deadline_s: float) -> LoadSettings:
    """Return a load of so many requests at the same moment."""
    arrivals = Arrivals(pattern=ArrivalPattern.AT_ONCE)
    return LoadSettings(arrivals=arrivals, requests=count, deadline_s=deadline_s)


async def offer(way: Way, asker: Asker, load: LoadSettings) -> tuple[RequestRecord, ...]:
    """Offer a load on a way; what is not over by its deadline is hung up on."""
    requests = asker.requests(load.requests or 0)
    return (await way.generator().run(load, requests.__getitem__)).records


def offers(way: Way, asker: Asker, load: LoadSettings) -> Visitor:
    """Return the visitor "one load"."""

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        return await offer(way, asker, replace(load, seed=load.seed + visit.block))

    return visit


class Overloads:
    """More than a server can answer, from clients who wait only so long.

    How much that is, is measured anew before each block: what else the machine does may change meanwhile.

    Args:
        straight: The way on which the server's capacity is measured.
        asker: Makes the requests.
        places: Requests at once that the server has slots for.
        load: Requests sent / requests that it can answer.
        requests: Of one overload, evenly spaced.
        patience: A client hangs up after so many times the response of a request alone.

    Attributes:
        capacities_rps: What the server could answer, one per block.
    """

    def __init__(
        self, straight: Way, asker: Asker, *, places: int, load: float, requests: int, patience: float
    ) -> None:
        self.capacities_rps: dict[int, float] = {}
        self._straight = straight
        self._asker = asker
        self._places = places
        self._load = load
        self._requests = requests
        self._patience = patience

    def on(self, way: Way) -> Visitor:
        """Return the visitor "one overload on this way"."""

        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            if visit.block not in self.capacities_rps:
                self.capacities_rps[visit.block] = await self._measure()
            return await offer(way, self._asker, self._settings(self.capacities_rps[visit.block]))

        return visit

    async def load_now(self) -> LoadSettings:
        """Return one overload by what the server can answer now."""
        return self._settings(await self._measure())

    def _settings(self, capacity_rps: float) -> LoadSettings:
        rate_rps = self._load * capacity_rps
        return LoadSettings(
            arrivals=Arrivals(pattern=ArrivalPattern.CONSTANT, rate_rps=rate_rps),
            requests=self._requests,
            deadline_s=self._patience * self._places / capacity_rps,
        )

    async def _measure(self) -> float:
        # Twice as many as it has slots for: it never waits for a client to send the next one.
        closed = LoadSettings(clients=2 * self._places, requests=_CAPACITY_REQUESTS * self._places)
        rate = completed_rps(await offer(self._straight, self._asker, closed))
        if not rate:
            raise UpstreamError(f"{self._straight.connection.url} completed none of a few requests")
        return rate


def in_time_ratio(records: Sequence[RequestRecord]) -> float | None:
    """Return which share of the planned requests was answered before the clients' deadline."""
    return success_share(records).ratio if records else None
