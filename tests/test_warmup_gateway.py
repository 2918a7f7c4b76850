"""Warm-up inside ``serve``: off unless asked for; its ledger is in ``/lab/status``."""

from __future__ import annotations

from typing import Any

from embedded_server import EmbeddedServer
from gateway_service import gateway
from memory_server import HandClock, MemoryServer

from ollamalab.settings import GatewaySettings
from ollamalab.settings.files import gateway_settings


def settings_of(*servers: MemoryServer, **options: Any) -> GatewaySettings:
    return gateway_settings(options={"upstream": [server.url for server in servers], **options})


async def test_nothing_is_sent_or_told_unless_asked_for() -> None:
    server = MemoryServer(HandClock(), "a")
    async with server.serving(), gateway(server.url) as service:
        status = await service.at_rest()
        assert status["warmup"] is None
        assert server.asked == []


async def test_wanted_models_are_loaded_at_the_start_on_every_upstream() -> None:
    servers = [MemoryServer(HandClock(), "a", "b"), MemoryServer(HandClock(), "a")]
    async with servers[0].serving(), servers[1].serving():
        names = [f"{server.url},name=gpu{index}" for index, server in enumerate(servers)]
        async with gateway(*names, warm=["a"]) as service:
            status = await service.until(lambda now: now["warmup"]["totals"]["preloads"] == 2)
            assert [server.asked for server in servers] == [[("/api/generate", {"model": "a"})]] * 2
            models = {(model["upstream"], model["model"]) for model in status["warmup"]["models"]}
            assert models == {("gpu0", "a"), ("gpu1", "a")}


async def test_an_upstream_that_joins_gets_them_too() -> None:
    first, second = MemoryServer(HandClock(), "a"), MemoryServer(HandClock(), "a")
    async with first.serving(), second.serving(), gateway(first.url, warm=["a"]) as service:
        await service.until(lambda now: now["warmup"]["totals"]["preloads"] == 1)
        await service.running.pipeline.take(settings_of(first, second, warm=["a"]))
        await service.until(lambda now: now["warmup"]["totals"]["preloads"] == 2)
        assert len(first.asked) == len(second.asked) == 1
        await service.running.pipeline.take(settings_of(second, warm=["a"]))
        status = await service.status()
        assert len(status["warmup"]["models"]) == 1
        assert status["warmup"]["totals"]["preloads"] == 2  # what was done is not forgotten


async def test_other_models_are_kept_warm_from_a_reload_on() -> None:
    """Off at the start, then one model, then another beside it, then off again: each is loaded once."""
    server = MemoryServer(HandClock(), "a", "b")
    async with server.serving(), gateway(server.url) as service:
        pipeline = service.running.pipeline
        await pipeline.take(settings_of(server, warm=["a"]))
        await service.until(lambda now: now["warmup"] and now["warmup"]["totals"]["preloads"] == 1)
        await pipeline.take(settings_of(server, warm=["a", "b"]))
        await service.until(lambda now: now["warmup"]["totals"]["preloads"] == 2)
        assert [body["model"] for _, body in server.asked] == ["a", "b"]
        await pipeline.take(settings_of(server))
        status = await service.at_rest()
        assert status["warmup"]["models"] == []
        assert status["warmup"]["totals"]["preloads"] == 2


async def test_the_ledger_follows_the_traffic(server: EmbeddedServer) -> None:
    await server.post("/api/generate", {"model": server.model, "keep_alive": 0})
    async with gateway(server.url, warm_keep="auto") as service:
        for _ in range(3):
            reply = await service.chat(model=server.model, options={"num_predict": 2})
            assert reply.status == 200
        status = await service.at_rest()
        (model,) = status["warmup"]["models"]
        assert (model["model"], model["is_resident"]) == (server.model, True)
        assert 0 < model["expires_in_s"] <= 300
        totals = status["warmup"]["totals"]
        assert (totals["suffered"], totals["avoided"], totals["renewals"]) == (1, 0, 0)
        assert totals["suffered_s"] == model["load_s"] > 0.1
