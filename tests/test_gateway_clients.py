"""The official clients work through the gateway unchanged: hit and miss, stream and not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import ollama
import openai
import pytest
from cluster_nodes import listed
from embedded_server import EmbeddedServer
from gateway_service import Service, gateway

SHORT = {"num_predict": 6, "temperature": 0}


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
async def service(server: EmbeddedServer) -> AsyncIterator[Service]:
    async with gateway(server.url, cache="memory", max_concurrent=2) as running:
        await listed(running.running.pipeline.cluster)  # a busy machine reads its models for a while
        yield running


@pytest.fixture(scope="module")
async def client(service: Service) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(service.url) as found:
        yield found


@pytest.fixture(scope="module")
async def oai(service: Service) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


async def hits(service: Service) -> int:
    """Return how many answers came from the cache so far."""
    return (await service.status())["cache"]["hits"]


async def test_ollama_lists_shows_and_sees_what_is_loaded(
    client: ollama.AsyncClient, server: EmbeddedServer
) -> None:
    assert server.model in [model.model for model in (await client.list()).models]
    assert (await client.show(server.model)).details
    await client.generate(server.model, keep_alive="30m")
    assert server.model in [model.model for model in (await client.ps()).models]


@pytest.mark.parametrize("first", [True, False], ids=["stored-from-stream", "stored-whole"])
async def test_ollama_chats_alike_from_server_and_cache(
    client: ollama.AsyncClient, server: EmbeddedServer, service: Service, first: bool
) -> None:
    messages = question(f"Name a colour. {first}")

    async def streamed() -> tuple[str, dict[str, Any]]:
        parts = [part async for part in await client.chat(server.model, messages, options=SHORT, stream=True)]
        return "".join(part.message.content or "" for part in parts), parts[-1].model_dump()

    async def whole() -> tuple[str, dict[str, Any]]:
        reply = await client.chat(server.model, messages, options=SHORT)
        return reply.message.content or "", reply.model_dump()

    asks = [streamed, whole] if first else [whole, streamed]
    before = await hits(service)
    missed, final = await asks[0]()
    replies = [await ask() for ask in (*asks, *asks)]
    assert await hits(service) == before + 4
    assert missed
    assert {text for text, _ in replies} == {missed}
    kept = ("done", "done_reason", "total_duration", "eval_count", "eval_duration", "prompt_eval_count")
    assert all(
        {name: last[name] for name in kept} == {name: final[name] for name in kept} for _, last in replies
    )


async def test_ollama_generates_alike_from_server_and_cache(
    client: ollama.AsyncClient, server: EmbeddedServer, service: Service
) -> None:
    before = await hits(service)
    replies = [await client.generate(server.model, "Say hello.", options=SHORT) for _ in range(3)]
    parts = [
        part async for part in await client.generate(server.model, "Say hello.", options=SHORT, stream=True)
    ]
    assert len({reply.response for reply in replies}) == 1
    assert "".join(part.response for part in parts) == replies[0].response
    assert parts[-1].context == replies[0].context
    assert await hits(service) == before + 3


async def test_ollama_embeds_and_raises_the_servers_errors(
    client: ollama.AsyncClient, server: EmbeddedServer
) -> None:
    assert len((await client.embed(server.model, ["a", "b"])).embeddings) == 2
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        await client.chat("nope", question("?"))
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not let clients change models") as refused:
        await client.delete(server.model)
    assert refused.value.status_code == 403


async def test_openai_chats_alike_from_server_and_cache(
    oai: openai.AsyncOpenAI, server: EmbeddedServer, service: Service
) -> None:
    asked: dict[str, Any] = {
        "model": server.model,
        "messages": question("Name a fruit."),
        "max_tokens": 6,
        "temperature": 0,
    }
    before = await hits(service)
    wholes = [await oai.chat.completions.create(**asked) for _ in range(2)]
    texts, usages = [], []
    for options in ({}, {"stream_options": {"include_usage": True}}):
        text, usage = "", None
        async for chunk in await oai.chat.completions.create(**asked, stream=True, **options):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            usage = chunk.usage or usage
        texts.append(text)
        usages.append(usage)
    assert [whole.choices[0].message.content for whole in wholes] == texts
    assert usages == [None, wholes[0].usage]
    assert await hits(service) == before + 3


async def test_openai_completes_embeds_lists_and_raises(
    oai: openai.AsyncOpenAI, server: EmbeddedServer, service: Service
) -> None:
    before = await hits(service)
    for _ in range(2):
        done = await oai.completions.create(
            model=server.model, prompt="One, two,", max_tokens=4, temperature=0
        )
        assert done.choices[0].finish_reason == "length"
    assert await hits(service) == before + 1
    assert len((await oai.embeddings.create(model=server.model, input=["a"])).data) == 1
    assert server.model in [model.id async for model in oai.models.list()]
    assert (await oai.models.retrieve(server.model)).id == server.model
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        await oai.chat.completions.create(model="nope", messages=question("?"))  # type: ignore[arg-type]


async def test_another_num_ctx_or_format_is_another_question(
    client: ollama.AsyncClient, server: EmbeddedServer, service: Service
) -> None:
    """The two wrong hits of other gateways, on a real engine."""
    before = await hits(service)
    messages = question("Name an animal.")
    await client.chat(server.model, messages, options=SHORT)
    await client.chat(server.model, messages, options={**SHORT, "num_ctx": 2048})
    red = await client.chat(
        server.model, messages, options={**SHORT, "num_predict": 60}, format={"enum": ["red"]}
    )
    assert red.message.content == '"red"'
    await client.chat(server.model, messages, options={**SHORT, "num_ctx": 4096})
    assert await hits(service) == before
