"""A server and a model under test, with a warm connection and the visits that can be made to them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from ollamalab.client import OllamaClient
from ollamalab.compare import Visit
from ollamalab.connection import OllamaConnection
from ollamalab.errors import ModelNotFound, TargetError, UpstreamError
from ollamalab.hosts import Target
from ollamalab.lab.trials import Visitor
from ollamalab.loadgen import InstrumentHealth, LoadGenerator, LoadResult, LoadSettings
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.synthetic import is_synthetic, mark_synthetic
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.records import RequestRecord
from ollamalab.workload import chat_body, draw_prompt, inference_request, with_nonce

#: A visit of one request.
ONE_REQUEST = LoadSettings(requests=1)

_UNLOAD_DEADLINE_S = 30.0
_POLL_S = 0.01


@dataclass(frozen=True, kw_only=True)
class PromptShape:
    """How long prompts and answers are, in tokens."""

    prompt_tokens: int = 64  #: with template and nonce
    num_predict: int = 16  #: tokens asked of the answer


class Subject:
    """One server and model under test; used with ``async with``, or opened by a ``Lab``.

    Attributes:
        target: The server.
        model: Name of the model as it is sent.
        client: For single calls; another one after ``restart``.
        health: How the client fared in each load, in order.
        options: Ollama options sent with every request, such as load-time ones; usually none.
        is_synthetic: Whether the model's weights are random; False where the server does not tell.
    """

    def __init__(self, target: Target, model: str, *, seed: int) -> None:
        """Prepare; nothing is sent yet.

        Args:
            target: An open target.
            model: A model that it has.
            seed: Of prompts and arrivals: equal for all arms of a comparison.
        """
        self.target = target
        self.model = model
        self.health: list[InstrumentHealth] = []
        self.options: Mapping[str, Any] = {}
        self.is_synthetic = False
        self._seed = seed
        # Fresh for each run: a server may remember the prompts of the run before.
        self._nonces = random.Random()

    async def __aenter__(self) -> Self:
        await self._open()
        self.is_synthetic = bool(await synthetic_models(self.client, [self.model]))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.__aexit__(kind, error, trace)
        await self._connection.__aexit__(kind, error, trace)

    @property
    def name(self) -> str:
        """What it was measured on, for tables: "smollm2:135m on embedded"; random weights are said."""
        kind = self.target.url if self.target.kind == "url" else self.target.kind
        return f"{mark_synthetic(self.model) if self.is_synthetic else self.model} on {kind}"

    @property
    def slots(self) -> int | None:
        """Parallel slots that the server was started with; None if somebody else started it."""
        return None if self.target.settings is None else self.target.settings.num_parallel

    @property
    def upstream(self) -> Upstream:
        """The warm connection, for parts that stand in front of the server; another one after ``restart``."""
        return self._connection

    async def _open(self) -> None:
        self._connection = await OllamaConnection(self.target.url).__aenter__()
        self.client = await OllamaClient(self.target.url).__aenter__()
        self._generator = LoadGenerator(self._connection, target=self.target.url)

    async def restart(self) -> None:
        """Give the subject a fresh server with the same settings, and connections to it."""
        await self.__aexit__(None, None, None)
        await self.target.restart()
        await self._open()

    async def offer(self, settings: LoadSettings, shape: PromptShape, *, stream: str = "") -> LoadResult:
        """Offer a load whose prompts have new nonces and words drawn from the seed.

        Args:
            settings: How it is offered.
            shape: Lengths.
            stream: Names the sequence of prompts: equal names give equal words.
        """

        def request_of(number: int) -> Request:
            rng = random.Random(f"{self._seed}:{stream}:{number}")
            drawn = draw_prompt(rng, prompt_tokens=shape.prompt_tokens, num_predict=shape.num_predict)
            prompt = replace(drawn, options={**drawn.options, **self.options})
            return inference_request("/api/chat", chat_body(with_nonce(prompt, self._nonces), self.model))

        result = await self._generator.run(settings, request_of)
        self.health.append(result.health)
        return result

    def loads(self, settings: LoadSettings, shape: PromptShape) -> Visitor:
        """Return the visitor "a short load": its prompts and arrivals depend on the block alone."""

        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            seeded = replace(settings, seed=settings.seed + visit.block)
            return (await self.offer(seeded, shape, stream=f"block {visit.block}")).records

        return visit

    def first_request(self, shape: PromptShape, *, is_preloaded: bool) -> Visitor:
        """Return the visitor "the first request after the model was unloaded".

        Args:
            shape: Lengths.
            is_preloaded: Whether the model is loaded again by an empty request before it.
        """

        async def visit(visit: Visit) -> Sequence[RequestRecord]:
            await self.unload()
            if is_preloaded:
                await self.load()
            return (await self.offer(ONE_REQUEST, shape, stream=f"block {visit.block}")).records

        return visit

    async def load(self) -> None:
        """Load the model with the options of its requests, without generating anything."""
        await self.client.preload(self.model, options=self.options)

    async def unload(self) -> None:
        """Unload the model and wait until the server no longer lists it.

        Raises:
            TargetError: It is still there after half a minute.
        """
        await self.client.unload(self.model)
        deadline_s = time.perf_counter() + _UNLOAD_DEADLINE_S
        while await self.is_loaded():
            if time.perf_counter() > deadline_s:
                raise TargetError(
                    f"{self.target.url} still has {self.model!r} loaded {_UNLOAD_DEADLINE_S:g} s after it "
                    "was told to unload it; does another client use it?"
                )
            await asyncio.sleep(_POLL_S)

    async def why_kept(self) -> str | None:
        """Return why the server keeps the model although it was told to unload it; None if it obeys.

        A server of ours does; another one is tried, which costs a load.
        """
        if self.target.changeable:
            return None
        try:
            await self.load()
            await self.unload()
        except (TargetError, UpstreamError) as error:
            return str(error)
        return None

    async def is_loaded(self) -> bool:
        """Whether the server lists the model as loaded."""
        return await self.listing() is not None

    async def listing(self) -> Mapping[str, Any] | None:
        """Return what ``/api/ps`` says of the model; None if it is not loaded."""
        key = parse_name(self.model).key
        loaded = await self.loaded()
        return next((entry for name, entry in loaded.items() if parse_name(name).key == key), None)

    async def loaded(self) -> Mapping[str, Any]:
        """Return the loaded models by name, each as ``/api/ps`` describes it."""
        return {model["name"]: model for model in await self.client.ps()}


async def synthetic_models(client: OllamaClient, models: Iterable[str]) -> set[str]:
    """Return which of these models have random weights, as their server shows them.

    A server need not show its models, or not have all of them; such models count as others.
    """
    found = set()
    for model in models:
        with suppress(UpstreamError, ModelNotFound):
            if is_synthetic(await client.show(model)):
                found.add(model)
    return found


async def preload(subjects: Iterable[Subject]) -> None:
    """Load the model of each, side by side."""
    await asyncio.gather(*(subject.load() for subject in subjects))
