"""A server that holds models as Ollama does, on a real socket and a clock set by hand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

EPOCH_S = 1_790_000_000.0


class HandClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def unix_s(self) -> float:
        return EPOCH_S + self.now_s


class MemoryServer:
    """The server; it loads, renews and lists models, and generates nothing.

    Attributes:
        url: Where it listens.
        models: Those it has; others get 404.
        embeds: Those of them that only make vectors.
        loaded: Model to the moment when it goes.
        asked: Path and body of each request that loads or renews.
        aborted: How many loads were hung up on.
        load_s: Seconds of each load.
        gate: Loads wait while it is closed.
        refuses: Status of the next loads; None loads them.
        ahead_s: How far its wall clock is ahead of ours.
    """

    def __init__(self, clock: HandClock, *models: str) -> None:
        self.clock = clock
        self.models = models
        self.embeds: frozenset[str] = frozenset()
        self.loaded: dict[str, float] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.aborted = 0
        self.load_s = 30.0
        self.keep_s = 300.0
        self.gate = asyncio.Event()
        self.gate.set()
        self.refuses: int | None = None
        self.ahead_s = 0.0
        self.url = ""
        self._changed = asyncio.Event()

    async def until_asked(self, count: int) -> None:
        """Wait for so many loads and renewals."""
        while len(self.asked) < count:
            await self._change()

    async def until_aborted(self) -> None:
        while not self.aborted:
            await self._change()

    def use(self, model: str) -> None:
        """Let a model's last request end now."""
        self.loaded[model] = self.clock() + self.keep_s

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[MemoryServer]:
        app = web.Application()
        app.router.add_get("/api/ps", self._list)
        app.router.add_post("/api/generate", self._load)
        app.router.add_post("/api/embed", self._load)
        async with TestServer(app, handler_cancellation=True) as server:
            self.url = str(server.make_url("")).rstrip("/")
            yield self

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _list(self, _request: web.Request) -> web.Response:
        self.loaded = {model: end_s for model, end_s in self.loaded.items() if end_s > self.clock()}
        models = [
            {
                "name": f"{model}:latest",
                "size": 2**30,
                "size_vram": 2**30,
                "expires_at": datetime.fromtimestamp(self._wall_s(end_s), UTC).isoformat(),
            }
            for model, end_s in self.loaded.items()
        ]
        return self._reply(200, {"models": models})

    async def _load(self, request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        self.asked.append((request.path, body))
        self._changed.set()
        model = body["model"]
        if model not in self.models:
            return self._reply(404, {"error": f"model '{model}' not found"})
        if self.refuses is not None:
            return self._reply(self.refuses, {"error": "out of memory"})
        if model in self.embeds and request.path == "/api/generate":
            return self._reply(400, {"error": f'"{model}" does not support generate'})
        if model not in self.loaded:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.aborted += 1
                self._changed.set()
                raise
            self.clock.now_s += self.load_s
        self.use(model)
        return self._reply(200, {"model": model, "response": "", "done": True, "done_reason": "load"})

    def _wall_s(self, at_s: float) -> float:
        return EPOCH_S + at_s + self.ahead_s

    def _reply(self, status: int, body: object) -> web.Response:
        date = format_datetime(datetime.fromtimestamp(self._wall_s(self.clock()), UTC), usegmt=True)
        return web.json_response(body, status=status, headers={"Date": date})
