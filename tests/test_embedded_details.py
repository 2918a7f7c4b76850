"""The ten details that an Ollama-like server most easily gets wrong, each against real inference.

The list and what is right: how Ollama 0.33 was seen to behave.
"""

from __future__ import annotations

import asyncio
import json
import re
from datetime import datetime
from typing import Any

import pytest
from embedded_server import EmbeddedServer

HELLO = [{"role": "user", "content": "Say hello."}]
SHORT = {"num_predict": 4, "temperature": 0, "seed": 1}
METRICS = [
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
]


async def raw_exchange(server: EmbeddedServer, path: str, body: object) -> tuple[bytes, list[bytes]]:
    """Return the head of an answer and the HTTP chunks of its body, as they were framed."""
    host, port = server.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    data = json.dumps(body).encode()
    writer.write(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b"
        % (path.encode(), len(data), data)
    )
    head = await reader.readuntil(b"\r\n\r\n")
    chunks = []
    while size := int(await reader.readline(), 16):
        chunks.append(await reader.readexactly(size))
        assert await reader.readexactly(2) == b"\r\n"
    writer.close()
    await writer.wait_closed()
    return head, chunks


async def test_1_a_stream_is_the_default_and_each_line_travels_alone(server: EmbeddedServer) -> None:
    """NDJSON, one object per line and chunk, never a blank line; no newline ends a whole answer."""
    head, chunks = await raw_exchange(
        server, "/api/generate", {"model": server.model, "prompt": "Say hello.", "options": SHORT}
    )
    assert b"Content-Type: application/x-ndjson\r\n" in head
    assert b"Transfer-Encoding: chunked\r\n" in head
    assert len(chunks) == 5
    for chunk in chunks:
        assert chunk.endswith(b"}\n")
        assert chunk.count(b"\n") == 1
        json.loads(chunk)
    async with server.http.post(
        "/api/chat", json={"model": server.model, "messages": HELLO, "options": SHORT, "stream": False}
    ) as reply:
        assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
        body = await reply.read()
        assert body.startswith(b"{")
        assert body.endswith(b"}")
    async with server.http.post(
        "/v1/chat/completions", json={"model": server.model, "messages": HELLO, "max_tokens": 2}
    ) as reply:
        assert reply.headers["Content-Type"] == "application/json"


async def test_2_the_final_line_has_reason_and_six_metrics(server: EmbeddedServer) -> None:
    *pieces, final = await server.lines(
        "/api/chat", {"model": server.model, "messages": HELLO, "options": SHORT}
    )
    assert all(piece["message"]["role"] == "assistant" and piece["done"] is False for piece in pieces)
    assert final["message"] == {"role": "assistant", "content": ""}
    assert (final["done"], final["done_reason"], final["eval_count"]) == (True, "length", 4)
    assert [key for key in final if key in METRICS] == METRICS
    assert all(type(final[name]) is int and final[name] > 0 for name in METRICS)
    parts = final["load_duration"] + final["prompt_eval_duration"] + final["eval_duration"]
    assert parts <= final["total_duration"]
    *_, final = await server.lines(
        "/api/generate", {"model": server.model, "prompt": "Say hello.", "options": SHORT}
    )
    assert (final["response"], final["done_reason"]) == ("", "length")
    assert [key for key in final if key in METRICS] == METRICS


async def test_3_what_is_empty_is_left_out_and_never_null(server: EmbeddedServer) -> None:
    *pieces, _ = await server.lines("/api/chat", {"model": server.model, "messages": HELLO, "options": SHORT})
    assert {tuple(piece) for piece in pieces} == {("model", "created_at", "message", "done")}
    for running in (await server.get("/api/ps"))["models"]:
        await server.post("/api/generate", {"model": running["model"], "keep_alive": 0})
    await server.until(lambda: nothing_runs(server))
    assert await server.get("/api/ps") == {"models": []}
    assert (await server.post("/api/embed", {"model": server.model, "input": []}))[1] == {
        "model": server.model,
        "embeddings": [],
    }


async def nothing_runs(server: EmbeddedServer) -> bool:
    return (await server.get("/api/ps"))["models"] == []


@pytest.mark.parametrize(
    ("path", "body", "status", "error"),
    [
        ("/api/generate", {"model": "nope", "prompt": "x"}, 404, "model 'nope' not found"),
        ("/api/chat", {"model": "nope", "messages": HELLO}, 404, "model 'nope' not found"),
        ("/api/show", {"model": "nope"}, 404, "model 'nope:latest' not found"),
        ("/api/embed", {"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/embeddings", {"model": "nope"}, 404, 'model "nope" not found, try pulling it first'),
        ("/api/generate", {}, 404, "model '' not found"),
        ("/api/embed", {}, 404, "model '' not found"),
        ("/api/chat", {}, 400, "model is required"),
        ("/api/embeddings", {}, 400, "model is required"),
        ("/api/show", {}, 400, "model is required"),
        ("/api/chat", {"model": "a b"}, 400, "invalid model name"),
        ("/api/generate", {"model": "../../x"}, 400, "invalid model name"),
    ],
)
async def test_4_an_error_before_the_first_byte_has_a_status_and_ollama_s_words(
    server: EmbeddedServer, path: str, body: object, status: int, error: str
) -> None:
    """After the first byte: see the killed engine in test_embedded_faults."""
    assert await server.post(path, body) == (status, {"error": error})


async def test_4_an_error_under_v1_is_openai_s(server: EmbeddedServer) -> None:
    status, body = await server.post("/v1/chat/completions", {"model": "nope", "messages": HELLO})
    error = {
        "message": "model 'nope' not found",
        "type": "not_found_error",
        "param": None,
        "code": None,
    }
    assert (status, body) == (404, {"error": error})


async def test_5_names_match_in_any_spelling_and_are_echoed(server: EmbeddedServer) -> None:
    for spelling in (
        "smollm2:135m",
        "SmolLM2:135M",
        "library/smollm2:135m",
        "registry.ollama.ai/library/smollm2:135m",
    ):
        status, body = await server.post(
            "/api/chat", {"model": spelling, "messages": HELLO, "options": SHORT, "stream": False}
        )
        assert (status, body["model"]) == (200, spelling)
    running = (await server.get("/api/ps"))["models"]
    assert [model["name"] for model in running] == ["smollm2:135m"]
    assert "tools:latest" in [model["name"] for model in (await server.get("/api/tags"))["models"]]
    status, _ = await server.post("/api/show", {"model": "tools"})
    assert status == 200


async def test_6_an_empty_request_loads_and_keep_alive_zero_unloads(server: EmbeddedServer) -> None:
    """One object even if a stream was asked for, without metrics; keep-alive sticks."""
    for path, text in (
        ("/api/generate", {"response": ""}),
        ("/api/chat", {"message": {"role": "assistant", "content": ""}}),
    ):
        for keep_alive, reason in (("90m", "load"), (0, "unload")):
            async with server.http.post(
                path, json={"model": server.model, "stream": True, "keep_alive": keep_alive}
            ) as reply:
                assert reply.headers["Content-Type"] == "application/json; charset=utf-8"
                body = json.loads(await reply.read())
            created_at = body.pop("created_at")
            assert body == {"model": server.model, **text, "done": True, "done_reason": reason}
            assert created_at.endswith("Z")
        await server.until(lambda: nothing_runs(server))


@pytest.mark.parametrize(
    ("keep_alive", "seconds"), [(600, 600), (1.5e3, 1500), ("20m", 1200), ("1h30m", 5400), (None, 300)]
)
async def test_6_every_form_of_keep_alive_is_kept(
    server: EmbeddedServer, keep_alive: object, seconds: float
) -> None:
    await server.post("/api/generate", {"model": server.model, "keep_alive": 0})
    await server.until(lambda: nothing_runs(server))
    await server.post("/api/generate", {"model": server.model, "keep_alive": keep_alive})
    first = expiry(await server.get("/api/ps"))
    left = (first - datetime.now(first.tzinfo)).total_seconds()
    assert seconds - 60 < left <= seconds
    # What was said sticks: a request that says nothing starts the same time anew.
    await server.post("/api/generate", {"model": server.model})
    second = expiry(await server.get("/api/ps"))
    assert 0 < (second - first).total_seconds() < 60


@pytest.mark.parametrize("keep_alive", [-1, "-1m"])
async def test_6_a_negative_keep_alive_is_for_ever(server: EmbeddedServer, keep_alive: object) -> None:
    await server.post("/api/generate", {"model": server.model, "keep_alive": keep_alive})
    assert expiry(await server.get("/api/ps")).year > 2300
    await server.post("/api/generate", {"model": server.model, "keep_alive": "5m"})


def expiry(ps: dict[str, Any]) -> datetime:
    return datetime.fromisoformat(re.sub(r"\.(\d{6})\d*", r".\1", ps["models"][0]["expires_at"]))


async def test_7_another_num_ctx_costs_a_reload_and_unknown_options_nothing(server: EmbeddedServer) -> None:
    async def engine_after(options: dict[str, Any]) -> tuple[int, int]:
        status, _ = await server.post("/api/generate", {"model": server.model, "options": options})
        assert status == 200
        (engine,) = await server.get("/lab/engines")
        (running,) = (await server.get("/api/ps"))["models"]
        return engine["pid"], running["context_length"]

    first, tokens = await engine_after({})
    assert tokens == 1024
    assert await engine_after({"temperature": 1, "mirostat": 2, "foo": {}}) == (first, 1024)
    other, tokens = await engine_after({"num_ctx": 512})
    assert other != first
    assert tokens == 512
    assert await engine_after({"num_ctx": 999_999}) != (other, 512)
    assert (await engine_after({"num_ctx": 999_999}))[1] == 8192
    assert await server.post("/api/generate", {"model": server.model, "options": {"num_ctx": "x"}}) == (
        500,
        {"error": 'option "num_ctx" must be of type integer'},
    )
    await engine_after({})


async def test_8_stamps_and_digests_have_ollama_s_forms(server: EmbeddedServer) -> None:
    answer = await server.lines("/api/chat", {"model": server.model, "messages": HELLO, "options": SHORT})
    utc = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z")
    local = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?(Z|[+-]\d\d:\d\d)")
    stamps = [line["created_at"] for line in answer]
    assert all(utc.fullmatch(stamp) for stamp in stamps)
    assert stamps == sorted(stamps)
    (running,) = (await server.get("/api/ps"))["models"]
    assert local.fullmatch(running["expires_at"])
    for model in [running, *(await server.get("/api/tags"))["models"]]:
        assert re.fullmatch("[0-9a-f]{64}", model["digest"])
    assert all(local.fullmatch(model["modified_at"]) for model in (await server.get("/api/tags"))["models"])


@pytest.mark.parametrize(
    ("method", "path", "status", "text", "allowed"),
    [
        ("GET", "/", 200, "Ollama is running", None),
        ("HEAD", "/", 200, "", None),
        ("HEAD", "/api/version", 200, "", None),
        ("HEAD", "/api/tags", 200, "", None),
        ("HEAD", "/api/ps", 405, "", "GET"),
        ("GET", "/api/nothing", 404, "404 page not found", None),
        ("POST", "/nothing", 404, "404 page not found", None),
        ("GET", "/API/tags", 404, "404 page not found", None),
        ("GET", "/api/generate", 405, "405 method not allowed", "POST"),
        ("POST", "/api/tags", 405, "405 method not allowed", "HEAD, GET"),
        ("POST", "/api/delete", 405, "405 method not allowed", "DELETE"),
        ("OPTIONS", "/api/chat", 405, "405 method not allowed", "POST"),
        ("GET", "/api/tags/", 301, '<a href="/api/tags">Moved Permanently</a>.\n\n', None),
        ("POST", "/api/chat/", 307, "", None),
    ],
)
async def test_9_small_routes_answer_as_ollama_s(
    server: EmbeddedServer, method: str, path: str, status: int, text: str, allowed: str | None
) -> None:
    async with server.http.request(method, path, allow_redirects=False) as reply:
        assert (reply.status, await reply.text()) == (status, text)
        assert reply.headers.get("Allow") == allowed
        assert "Server" not in reply.headers
        if status in (404, 405):
            assert reply.headers["Content-Type"] == "text/plain"


async def test_9_the_content_type_of_a_request_does_not_matter(server: EmbeddedServer) -> None:
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "nonsense"):
        async with server.http.post(
            "/api/show", data=b'{"model": "smollm2:135m"}', headers={"Content-Type": content_type}
        ) as reply:
            assert reply.status == 200


async def test_9_foreign_hosts_and_pages_get_an_empty_403(server: EmbeddedServer) -> None:
    for headers in ({"Host": "example.com"}, {"Origin": "http://evil.example"}):
        for method, path in (("GET", "/api/version"), ("POST", "/api/show"), ("GET", "/nope")):
            async with server.http.request(method, path, headers=headers) as reply:
                assert (reply.status, await reply.read()) == (403, b"")
                assert "Content-Type" not in reply.headers
    page = {"Origin": "http://localhost:3000"}
    async with server.http.get("/api/version", headers=page) as reply:
        assert reply.headers["Access-Control-Allow-Origin"] == page["Origin"]
    preflight = {**page, "Access-Control-Request-Method": "POST"}
    async with server.http.options("/api/chat", headers=preflight) as reply:
        assert reply.status == 204
        assert "Content-Type" in reply.headers["Access-Control-Allow-Headers"]
    chat = {"model": server.model, "messages": HELLO, "options": SHORT}
    async with server.http.post("/api/chat", json=chat, headers=page) as reply:
        assert reply.headers["Access-Control-Allow-Origin"] == page["Origin"]
        await reply.read()


async def test_10_cached_tokens_count_and_thinking_is_on_where_it_can_be(server: EmbeddedServer) -> None:
    """Cancelling is in test_embedded_faults; tool arguments in test_embedded_api."""
    body = {"model": server.model, "messages": HELLO, "options": SHORT, "stream": False}
    _, first = await server.post("/api/chat", body)
    _, again = await server.post("/api/chat", body)
    assert again["prompt_eval_count"] == first["prompt_eval_count"]
    assert again["message"] == first["message"]
    status, thought = await server.post("/api/chat", body | {"model": server.thinking})
    assert (status, thought["message"]["content"]) == (200, "")
    assert thought["message"]["thinking"]
    poem = [{"role": "user", "content": "Write a short poem about the sea."}]
    _, plain = await server.post(
        "/api/chat", body | {"model": server.thinking, "messages": poem, "think": False}
    )
    assert "thinking" not in plain["message"]
    assert plain["message"]["content"]
