"""The cache in front of a real model: what it replays looks as what the server itself would have said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from embedded_server import WEATHER, EmbeddedServer
from held_upstream import body_of, timeless

from ollamalab import ResponseCache
from ollamalab.connection import OllamaConnection
from ollamalab.protocol.upstream import Request

OPTIONS = {"temperature": 0, "seed": 1, "num_predict": 12}
ASKED = [{"role": "user", "content": "What is the weather in Paris?"}]
OPENAI = {"messages": ASKED, "max_tokens": 12, "temperature": 0, "seed": 1}
QUESTIONS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "chat": ("/api/chat", "model", {"messages": ASKED, "options": OPTIONS}),
    "chat with logprobs": (
        "/api/chat",
        "model",
        {"messages": ASKED, "options": OPTIONS, "logprobs": True, "top_logprobs": 2},
    ),
    "thinking chat": ("/api/chat", "thinking", {"messages": ASKED, "options": OPTIONS, "think": True}),
    "chat with tools": ("/api/chat", "tools", {"messages": ASKED, "options": OPTIONS, "tools": [WEATHER]}),
    "generate": ("/api/generate", "model", {"prompt": "Say hello.", "options": OPTIONS}),
    "thinking generate": (
        "/api/generate",
        "thinking",
        {"prompt": "Say hello.", "options": OPTIONS, "think": True},
    ),
    "OpenAI chat": ("/v1/chat/completions", "model", OPENAI),
    "OpenAI chat with logprobs": ("/v1/chat/completions", "model", {**OPENAI, "logprobs": True}),
    "OpenAI thinking chat": (
        "/v1/chat/completions",
        "thinking",
        {**OPENAI, "reasoning_effort": "medium"},
    ),
    "OpenAI completion": (
        "/v1/completions",
        "model",
        {"prompt": "Say hello.", "max_tokens": 12, "temperature": 0, "seed": 1},
    ),
}


@pytest.fixture
async def direct(server: EmbeddedServer) -> AsyncIterator[OllamaConnection]:
    async with OllamaConnection(server.url) as connection:
        yield connection


def shape(value: Any) -> Any:
    """Return names and types without the values; of a list, what its first item looks like."""
    if isinstance(value, dict):
        return {name: shape(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shape(item) for item in value[:1]]
    return type(value)


def text(values: list[Any]) -> dict[str, str]:
    """Return all that was said in lines, events or a whole answer, by the field it was said in."""
    said: dict[str, str] = {}
    for value in values:
        parts = value.get("choices", [value]) if isinstance(value, dict) else []
        for part in parts:
            place = part.get("message") or part.get("delta") or part
            for name in ("content", "response", "text", "thinking", "reasoning"):
                if place.get(name):
                    said[name] = said.get(name, "") + place[name]
    return said


@pytest.mark.parametrize("question", QUESTIONS)
async def test_one_answer_in_both_forms_looks_as_the_servers_own(
    server: EmbeddedServer, direct: OllamaConnection, question: str
) -> None:
    path, model, fields = QUESTIONS[question]

    async def ask(upstream: Any, *, is_stream: bool) -> tuple[str | None, list[Any]]:
        body = {"model": getattr(server, model), **fields, "stream": is_stream}
        reply = await upstream.send(Request(method="POST", path=path, body=json.dumps(body).encode()))
        assert reply.status == 200
        return reply.headers.get("x-ollamalab-cache"), timeless(await body_of(reply))

    _, own_stream = await ask(direct, is_stream=True)
    _, own_whole = await ask(direct, is_stream=False)

    async with ResponseCache(direct) as cache:
        mark, stream = await ask(cache, is_stream=True)
        assert (mark, [shape(value) for value in stream[-2:]]) == (
            "miss",
            [shape(value) for value in own_stream[-2:]],
        )
        mark, again = await ask(cache, is_stream=True)
        assert (mark, again) == ("hit", stream)
        mark, whole = await ask(cache, is_stream=False)
        assert (mark, text(whole)) == ("hit", text(stream))
        assert [shape(value) for value in whole] == [shape(value) for value in own_whole]

    async with ResponseCache(direct) as cache:
        mark, whole = await ask(cache, is_stream=False)
        assert mark == "miss"
        mark, stream = await ask(cache, is_stream=True)
        assert (mark, text(stream)) == ("hit", text(whole))
        # The first line and the last two: in between there is nothing else.
        ends = (0, -2, -1) if path.startswith("/v1") else (0, -1)
        if "thinking" not in question:  # the server's own first line is thinking alone
            assert [shape(stream[end]) for end in ends] == [shape(own_stream[end]) for end in ends]
