"""One request in the situations that make it slow, with the ledger of its stages.

Terms. A *scenario* is such a situation: the model is not loaded, the slot is busy, the prompt is long ...
Each request of a scenario comes over a new connection, so that connecting is always one of its stages.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from ollamalab.client import Answer, Capture, Lookup, OllamaClient, system_lookup
from ollamalab.compare import Visit
from ollamalab.errors import UpstreamError
from ollamalab.lab.subject import PromptShape, Subject
from ollamalab.lab.tls_front import tls_front, why_no_front
from ollamalab.lab.trials import Visitor
from ollamalab.records import RequestRecord
from ollamalab.workload import WORDS, inference_request

COLD = "model not loaded"
WARM = "warm"
RELOADED = "other num_ctx"
BUSY = "slot busy"
LONG = "long prompt"
CACHED = "long prompt again"
LOOKED_UP = "slow name lookup"
SECURED = "TLS"
WHOLE = "not streamed"

#: Every scenario, the plain one first.
SCENARIOS = (WARM, WHOLE, SECURED, LOOKED_UP, BUSY, LONG, CACHED, RELOADED, COLD)

#: For an address. Ollama answers to names under ".localhost"; the system need not know them.
_NAME = "slow.localhost"

#: Where every request goes.
PATH = "/api/generate"

_NONCE_TOKENS = 9  # digits, each a token in the usual vocabularies


@dataclass(frozen=True, kw_only=True)
class Situations:
    """How far the scenarios go."""

    long_tokens: int = 192  #: of the long prompt
    num_ctx: int = 1024  #: that makes the server load the model again
    busy_tokens: int = 16  #: that each request before ours generates while ours waits
    slots: int = 1  #: of the server: so many requests keep it busy
    lookup_s: float = 0.2  #: that looking the name up takes


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request that was tried.

    Attributes:
        record: What became of it.
        answer: With its ledger; None if it failed.
    """

    record: RequestRecord
    answer: Answer | None


class Bodies:
    """Makes the bodies of short requests to ``/api/generate``.

    They are sent without a template, so that a prompt may have less than the 60 tokens which that costs, and
    begin with a number of their own, so that the server has evaluated none of it.
    """

    def __init__(self, model: str, shape: PromptShape, *, seed: int) -> None:
        """Prepare.

        Args:
            model: As it is sent.
            shape: Lengths, unless a body is to have others.
            seed: Draws the words; the bodies of a block have the same.
        """
        self._model = model
        self._shape = shape
        self._seed = seed
        # Fresh for each run: a server may remember the prompts of the run before.
        self._nonces = random.Random()

    def draw(self, block: int, *, tokens: int | None = None, **options: Any) -> dict[str, Any]:
        """Return a new body.

        Args:
            block: Of the comparison; gives the words.
            tokens: Of the prompt, about, if not as in the shape.
            options: Of Ollama, beside or in place of the usual ones.
        """
        rng = random.Random(f"{self._seed}:{block}")
        count = max(1, (tokens or self._shape.prompt_tokens) - _NONCE_TOKENS)
        words = " ".join(rng.choice(WORDS) for _ in range(count))
        usual = {"num_predict": self._shape.num_predict, "temperature": 0.0}
        return {
            "model": self._model,
            "prompt": f"{self._nonces.randrange(10**9):09d} {words}",
            "raw": True,
            "options": usual | options,
        }


async def ask(client: OllamaClient, body: Mapping[str, Any]) -> Asked:
    """Ask for a generation through the staged client; a failure is a record too.

    Args:
        client: Open.
        body: Of ``/api/generate``.
    """
    start_s = time.perf_counter()
    try:
        answer = await client.generate(**body)
    except UpstreamError as error:
        capture = Capture(request=inference_request(PATH, body), intended_s=start_s, sent_s=start_s)
        capture.failure, capture.end_s = error, time.perf_counter()
        return Asked(record=capture.record(client.url), answer=None)
    return Asked(record=answer.record, answer=answer)


def slow_lookup(host: str, after_s: float) -> Lookup:
    """Return a lookup that knows every name as this host, after a while: a slow name server, injected."""

    async def look_up(_: str, port: int) -> Sequence[str]:
        await asyncio.sleep(after_s)
        return await system_lookup(host, port)

    return look_up


def _name_of(host: str) -> str:
    """Return a name to look up for a host: its own, unless it is an address."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host
    return _NAME


class Scenarios:
    """The scenarios on one server; used with ``async with``, or entered by a ``Lab``.

    Attributes:
        answers: Scenario to its answers so far, in order; failed requests have none.
        not_run: Scenarios that cannot be had here, with the reason.
    """

    def __init__(self, subject: Subject, shape: PromptShape, situations: Situations, *, seed: int) -> None:
        """Prepare; nothing is sent yet.

        Args:
            subject: Server and model.
            shape: Lengths of every prompt but the long one, and of every answer.
            situations: How far they go.
            seed: Draws the words; requests of a block have the same.
        """
        self.answers: dict[str, list[Answer]] = {name: [] for name in SCENARIOS}
        self.not_run: dict[str, str] = {}
        self._subject = subject
        self._situations = situations
        self._bodies = Bodies(subject.model, shape, seed=seed)
        self._trust = ssl.create_default_context()  # made once: it takes longer than many a request
        self._front: tuple[str, ssl.SSLContext] | None = None
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        url = self._subject.target.url
        if reason := await self._subject.why_kept():
            self.not_run[COLD] = reason
        if reason := why_no_front(url):
            self.not_run[SECURED] = reason
        else:
            self._front = await self._opened.enter_async_context(tls_front(url))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    def visitors(self) -> dict[str, Visitor]:
        """Return one visitor per scenario: it brings the situation about, then asks once."""
        steps: dict[str, Callable[[Visit], Awaitable[Asked]]] = {
            WARM: self._warm,
            WHOLE: self._whole,
            SECURED: self._secured,
            LOOKED_UP: self._looked_up,
            BUSY: self._busy,
            LONG: self._long,
            CACHED: self._cached,
            RELOADED: self._reloaded,
            COLD: self._cold,
        }

        def visitor(name: str) -> Visitor:
            async def visit(visit: Visit) -> Sequence[RequestRecord]:
                if name != COLD:
                    await self._subject.client.preload(self._subject.model)
                asked = await steps[name](visit)
                if asked.answer is not None:
                    self.answers[name].append(asked.answer)
                return [asked.record]

            return visit

        return {name: visitor(name) for name in SCENARIOS}

    async def _warm(self, visit: Visit) -> Asked:
        return await self._ask(self._bodies.draw(visit.block))

    async def _whole(self, visit: Visit) -> Asked:
        return await self._ask({**self._bodies.draw(visit.block), "stream": False})

    async def _secured(self, visit: Visit) -> Asked:
        assert self._front is not None
        url, trust = self._front
        return await self._ask(self._bodies.draw(visit.block), url=url, trust=trust)

    async def _looked_up(self, visit: Visit) -> Asked:
        parts = urlsplit(self._subject.target.url)
        lookup = slow_lookup(parts.hostname or "", self._situations.lookup_s)
        url = f"{parts.scheme}://{_name_of(parts.hostname or '')}:{parts.port}"
        return await self._ask(self._bodies.draw(visit.block), url=url, lookup=lookup)

    async def _busy(self, visit: Visit) -> Asked:
        async with self._others(visit):
            return await self._ask(self._bodies.draw(visit.block))

    async def _long(self, visit: Visit) -> Asked:
        return await self._ask(self._bodies.draw(visit.block, tokens=self._situations.long_tokens))

    async def _cached(self, visit: Visit) -> Asked:
        body = self._bodies.draw(visit.block, tokens=self._situations.long_tokens)
        await self._ask(body)
        return await self._ask(body)

    async def _reloaded(self, visit: Visit) -> Asked:
        return await self._ask(self._bodies.draw(visit.block, num_ctx=self._situations.num_ctx))

    async def _cold(self, visit: Visit) -> Asked:
        await self._subject.unload()
        return await self._ask(self._bodies.draw(visit.block))

    @asynccontextmanager
    async def _others(self, visit: Visit) -> AsyncIterator[None]:
        """Keep every slot busy: a request in each, which has begun to answer."""
        async with AsyncExitStack() as stack:
            for _ in range(self._situations.slots):
                body = self._bodies.draw(visit.block, num_predict=self._situations.busy_tokens)
                sent = await self._subject.upstream.send(inference_request(PATH, body))
                reply = await stack.enter_async_context(sent)
                await anext(reply.chunks())
            yield

    async def _ask(
        self,
        body: Mapping[str, Any],
        *,
        url: str = "",
        trust: ssl.SSLContext | None = None,
        lookup: Lookup = system_lookup,
    ) -> Asked:
        """Ask over a new connection."""
        address = url or self._subject.target.url
        async with OllamaClient(address, ssl_context=trust or self._trust, lookup=lookup) as client:
            return await ask(client, body)
