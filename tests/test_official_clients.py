"""The official Python clients of Ollama and OpenAI work with the embedded server unchanged."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import ollama
import openai
import pytest
from embedded_server import WEATHER, EmbeddedServer
from test_embedded_api import weather_talk

HELLO = [{"role": "user", "content": "Say hello."}]
SHORT = {"num_predict": 4, "temperature": 0}


@pytest.fixture(scope="module")
async def client(server: EmbeddedServer) -> AsyncIterator[ollama.AsyncClient]:
    async with ollama.AsyncClient(server.url) as found:
        yield found


@pytest.fixture(scope="module")
async def oai(server: EmbeddedServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0) as found:
        yield found


async def test_ollama_lists_and_shows(client: ollama.AsyncClient, server: EmbeddedServer) -> None:
    models = {model.model: model for model in (await client.list()).models}
    found = models[server.model]
    assert found.size == 98_362_432
    assert isinstance(found.modified_at, datetime)
    assert found.details
    assert found.details.quantization_level == "Q4_1"
    shown = await client.show(server.model)
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.template


async def test_ollama_generates_and_streams(client: ollama.AsyncClient, server: EmbeddedServer) -> None:
    whole = await client.generate(server.model, "Say hello.", options=SHORT)
    assert (whole.done_reason, whole.eval_count) == ("length", 4)
    assert whole.context
    parts = [
        part async for part in await client.generate(server.model, "Say hello.", options=SHORT, stream=True)
    ]
    assert "".join(part.response for part in parts) == whole.response
    assert parts[-1].done
    assert parts[-1].total_duration


async def test_ollama_chats_and_streams(client: ollama.AsyncClient, server: EmbeddedServer) -> None:
    whole = await client.chat(server.model, HELLO, options=SHORT)
    assert whole.message.role == "assistant"
    parts = [part async for part in await client.chat(server.model, HELLO, options=SHORT, stream=True)]
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].prompt_eval_count == whole.prompt_eval_count


async def test_ollama_gets_logprobs_formats_and_tool_calls(
    client: ollama.AsyncClient, server: EmbeddedServer
) -> None:
    likely = await client.chat(server.model, HELLO, options=SHORT, logprobs=True, top_logprobs=2)
    assert likely.logprobs
    assert len(likely.logprobs) == 4
    options = {"temperature": 0, "num_predict": 60}
    red = await client.chat(server.model, HELLO, format={"enum": ["red"]}, options=options)
    assert red.message.content == '"red"'
    called = await client.chat(
        server.tools, weather_talk("Rome", "Oslo", "Lima"), tools=[WEATHER], options=options
    )
    assert called.message.tool_calls
    assert called.message.tool_calls[0].function.arguments == {"city": "Paris"}


async def test_ollama_embeds(client: ollama.AsyncClient, server: EmbeddedServer) -> None:
    both = await client.embed(server.model, ["a", "b"], dimensions=4)
    assert [len(vector) for vector in both.embeddings] == [4, 4]
    assert both.prompt_eval_count
    legacy = await client.embeddings(server.model, "a")
    assert len(legacy.embedding) == 576


async def test_ollama_sees_what_is_loaded_and_unloads_it(
    client: ollama.AsyncClient, server: EmbeddedServer
) -> None:
    loaded = await client.generate(server.model, keep_alive="30m")
    assert loaded.done_reason == "load"
    running = {model.model: model for model in (await client.ps()).models}[server.model]
    assert running.expires_at
    assert (running.expires_at - datetime.now(running.expires_at.tzinfo)).total_seconds() > 1700
    assert running.size_vram == 0
    assert (await client.generate(server.model, keep_alive=0)).done_reason == "unload"

    async def is_unloaded() -> bool:
        return server.model not in [model.model for model in (await client.ps()).models]

    await server.until(is_unloaded)


async def test_ollama_raises_our_errors(client: ollama.AsyncClient, server: EmbeddedServer) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        await client.chat("nope", HELLO)
    assert caught.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="does not support tools"):
        await client.chat(server.model, HELLO, tools=[WEATHER])
    with pytest.raises(ollama.ResponseError, match="does not change models"):
        await client.delete(server.model)
    pulled = await client.pull(server.model)
    assert pulled.status == "success"


async def test_openai_chats_and_streams(oai: openai.AsyncOpenAI, server: EmbeddedServer) -> None:
    asked = {"model": server.model, "messages": HELLO, "max_tokens": 4, "temperature": 0}
    whole = await oai.chat.completions.create(**asked)
    assert whole.usage
    assert whole.usage.completion_tokens == 4
    text = ""
    usage = None
    async for chunk in await oai.chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage == whole.usage


def in_openai_s_form(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with texts for tool arguments and an id that joins a call to its result."""
    if calls := message.get("tool_calls"):
        function = {**calls[0]["function"], "arguments": json.dumps(calls[0]["function"]["arguments"])}
        return {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]}
    if message["role"] == "tool":
        return {"role": "tool", "tool_call_id": "c", "content": message["content"]}
    return message


async def test_openai_calls_tools(oai: openai.AsyncOpenAI, server: EmbeddedServer) -> None:
    talk = [in_openai_s_form(message) for message in weather_talk("Rome", "Oslo", "Lima")]
    whole = await oai.chat.completions.create(
        model=server.tools, messages=talk, tools=[WEATHER], temperature=0, max_tokens=60
    )
    (choice,) = whole.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    assert choice.message.tool_calls[0].function.arguments == '{"city":"Paris"}'


async def test_openai_completes_embeds_and_lists(oai: openai.AsyncOpenAI, server: EmbeddedServer) -> None:
    done = await oai.completions.create(model=server.model, prompt="Say hello.", max_tokens=4, temperature=0)
    assert done.choices[0].finish_reason == "length"
    # This client asks for base64 unless told otherwise, and unpacks it itself.
    vectors = await oai.embeddings.create(model=server.model, input=["a", "b"], dimensions=4)
    assert [len(entry.embedding) for entry in vectors.data] == [4, 4]
    assert server.model in [model.id async for model in oai.models.list()]
    assert (await oai.models.retrieve(server.model)).owned_by == "library"


async def test_openai_raises_our_errors(oai: openai.AsyncOpenAI, server: EmbeddedServer) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        await oai.chat.completions.create(model="nope", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="does not support tools"):
        await oai.chat.completions.create(model=server.model, messages=HELLO, tools=[WEATHER])
