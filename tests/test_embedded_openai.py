"""The routes under /v1 answer as Ollama's OpenAI layer does, on real inference."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from embedded_server import EmbeddedServer

HELLO = [{"role": "user", "content": "Say hello."}]


def chat(server: EmbeddedServer, **fields: Any) -> dict[str, Any]:
    return {"model": server.model, "messages": HELLO, "max_tokens": 4, "temperature": 0, "seed": 1, **fields}


async def events(server: EmbeddedServer, path: str, body: object) -> list[Any]:
    async with server.http.post(path, json=body) as reply:
        assert reply.status == 200
        assert reply.headers["Content-Type"] == "text/event-stream"
        payloads = [event.removeprefix(b"data: ") for event in (await reply.read()).split(b"\n\n")[:-1]]
    assert payloads.pop() == b"[DONE]"
    return [json.loads(payload) for payload in payloads]


async def test_a_chat_stream_adds_up_to_the_whole_answer(server: EmbeddedServer) -> None:
    status, whole = await server.post("/v1/chat/completions", chat(server))
    assert status == 200
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = await events(server, "/v1/chat/completions", chat(server, **usage))
    assert last["choices"] == []
    assert last["usage"] == whole["usage"]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["choices"][0]["message"]["content"]
    assert [delta.get("role") for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    assert chunks[-1]["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert whole["usage"]["completion_tokens"] == 4


async def test_the_same_words_come_through_either_api(server: EmbeddedServer) -> None:
    """With temperature 0 the two APIs differ in nothing but form."""
    _, openai = await server.post("/v1/chat/completions", chat(server))
    options = {"num_predict": 4, "temperature": 0, "seed": 1, "top_p": 1.0}
    body = {"model": server.model, "messages": HELLO, "options": options, "stream": False}
    _, ollama = await server.post("/api/chat", body)
    assert openai["choices"][0]["message"]["content"] == ollama["message"]["content"]


async def test_completions_stream_and_answer_whole(server: EmbeddedServer) -> None:
    body = {"model": server.model, "prompt": "Say hello.", "max_tokens": 4, "temperature": 0}
    status, whole = await server.post("/v1/completions", body)
    assert status == 200
    assert (whole["object"], whole["choices"][0]["finish_reason"]) == ("text_completion", "length")
    chunks = await events(server, "/v1/completions", body | {"stream": True})
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
    (loaded,) = await events(server, "/v1/completions", {"model": server.model, "stream": True})
    assert loaded["choices"] == [{"text": "", "index": 0, "finish_reason": "load"}]


async def test_a_schema_holds_the_answer_to_it(server: EmbeddedServer) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    status, reply = await server.post(
        "/v1/chat/completions", chat(server, response_format=wanted, max_tokens=60)
    )
    assert status == 200
    assert json.loads(reply["choices"][0]["message"]["content"]) in ({"a": 1}, {"a": 2})


async def test_log_probabilities_are_in_openai_s_place(server: EmbeddedServer) -> None:
    _, reply = await server.post("/v1/chat/completions", chat(server, logprobs=True, top_logprobs=2))
    listed = reply["choices"][0]["logprobs"]["content"]
    assert len(listed) == 4
    assert all(len(entry["top_logprobs"]) == 2 for entry in listed)


async def test_embeddings_come_as_floats_or_packed(server: EmbeddedServer) -> None:
    body = {"model": server.model, "input": ["a cat", "a dog"], "dimensions": 3}
    status, floats = await server.post("/v1/embeddings", body)
    assert status == 200
    _, packed = await server.post("/v1/embeddings", body | {"encoding_format": "base64"})
    assert [entry["index"] for entry in floats["data"]] == [0, 1]
    for plain, coded in zip(floats["data"], packed["data"], strict=True):
        unpacked = struct.unpack("<3f", base64.b64decode(coded["embedding"]))
        assert plain["embedding"] == pytest.approx(unpacked, abs=1e-6)
    assert floats["usage"]["prompt_tokens"] == floats["usage"]["total_tokens"] > 0


async def test_models_are_listed_and_found(server: EmbeddedServer) -> None:
    listed = await server.get("/v1/models")
    assert {"smollm2:135m", "tools:latest"} <= {model["id"] for model in listed["data"]}
    (found,) = [model for model in listed["data"] if model["id"] == server.model]
    assert await server.get("/v1/models/smollm2:135m") == found
    assert (await server.get("/v1/models/SMOLLM2:135M"))["id"] == "SMOLLM2:135M"


CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
MODEL = {"model": "smollm2:135m"}
THINKING = '"smollm2:135m" does not support thinking'


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (CHAT, MODEL, 400, "[] is too short - 'messages'"),
        (CHAT, {"messages": HELLO}, 400, "model is required"),
        (CHAT, {"model": "nope", "messages": HELLO, "stream": True}, 404, "model 'nope' not found"),
        (CHAT, {**MODEL, "messages": HELLO, "reasoning_effort": "low"}, 400, THINKING),
        (COMPLETIONS, {"prompt": "x"}, 404, "model '' not found"),
        (
            COMPLETIONS,
            {**MODEL, "prompt": "x", "suffix": "y"},
            400,
            "registry.ollama.ai/library/smollm2:135m does not support insert",
        ),
        (EMBEDDINGS, {**MODEL, "input": []}, 400, "invalid input"),
        (EMBEDDINGS, {**MODEL, "input": [1]}, 400, "invalid input type"),
        (EMBEDDINGS, {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
    ],
)
async def test_errors_are_openai_s_objects_with_ollama_s_words(
    server: EmbeddedServer, path: str, body: object, status: int, message: str
) -> None:
    kind = {400: "invalid_request_error", 404: "not_found_error"}[status]
    error = {"message": message, "type": kind, "param": None, "code": None}
    assert await server.post(path, body) == (status, {"error": error})
