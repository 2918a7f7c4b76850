"""The gateway in front of a server: what it passes on, what it refuses, and how it tells."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from gateway_service import HELLO, Reply, gateway
from raw_server import always, raw

from ollamalab.gateway.run import opened
from ollamalab.scripted import Fault, Script, ScriptedServer
from ollamalab.settings.files import gateway_settings

QUICK = Script(first_s=0.0, gap_s=0.0, tokens=6)
NOTHING = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"

#: What a fault before the first byte becomes (DESIGN §3).
REFUSED = 503


async def test_what_a_server_says_passes_unchanged():
    """Bodies are equal to the byte but for what the server itself varies; headers lose their hop only."""
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url) as service:
        async with aiohttp.ClientSession(upstream.url) as direct:
            for path in ("/", "/api/version", "/api/tags", "/api/ps", "/api/nothing"):
                async with direct.get(path) as theirs, service.http.get(path) as ours:
                    assert (ours.status, await ours.read()) == (theirs.status, await theirs.read())
                    assert ours.content_type == theirs.content_type
            body = {"model": "scripted", "messages": HELLO}
            async with direct.post("/api/chat", json=body) as theirs:
                expected = Reply(200, {}, await theirs.read()).lines
        reply = await service.chat()
        assert reply.headers["Content-Type"] == "application/x-ndjson"
        varied = ("created_at", "total_duration", "prompt_eval_duration")
        for line, wanted in zip(reply.lines, expected, strict=True):
            assert {key: line[key] for key in line if key not in varied} == {
                key: wanted[key] for key in wanted if key not in varied
            }


async def test_inference_replies_explain_themselves():
    async with ScriptedServer(QUICK) as upstream, gateway(f"{upstream.url},name=gpu1") as service:
        reply = await service.chat(stream=False)
        assert reply.headers["X-Ollamalab-Cache"] == "off"
        assert reply.headers["X-Ollamalab-Upstream"] == "gpu1"
        assert float(reply.headers["X-Ollamalab-Queue-Ms"]) >= 0
        parts = [part.split(";")[0] for part in reply.headers["Server-Timing"].split(", ")]
        assert parts == ["queue", "route", "total"]


async def test_a_hit_names_no_upstream_and_serves_both_forms():
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url, cache="memory") as service:
        first = await service.chat(stream=True)
        again, whole = await service.chat(stream=True), await service.chat(stream=False)
        outcomes = [reply.headers["X-Ollamalab-Cache"] for reply in (first, again, whole)]
        assert outcomes == ["miss", "hit", "hit"]
        assert "X-Ollamalab-Upstream" not in again.headers
        said = "".join(line["message"]["content"] for line in first.lines)
        assert json.loads(whole.body)["message"]["content"] == said
        assert len(upstream.log) == 1


@pytest.mark.parametrize(
    ("headers", "statuses"),
    [
        ({"Host": "evil.example"}, (403, b"")),
        ({"Origin": "http://evil.example"}, (403, b"")),
        ({"Origin": "http://localhost:3000"}, (200, None)),
        ({"Host": "localhost:11435"}, (200, None)),
    ],
)
async def test_foreign_pages_and_names_do_not_reach_a_loopback_gateway(
    headers: dict[str, str], statuses: tuple[int, bytes | None]
):
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url) as service:
        for path in ("/", "/healthz", "/lab/status", "/metrics", "/api/tags", "/nowhere"):
            async with service.http.get(path, headers=headers) as reply:
                if statuses[0] != 200:
                    assert (reply.status, await reply.read()) == statuses
                else:
                    assert reply.status == (404 if path == "/nowhere" else 200)


async def test_a_page_may_ask_beforehand_and_read_the_answer():
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url) as service:
        origin = {"Origin": "http://localhost:3000"}
        async with service.http.options("/api/chat", headers=origin) as reply:
            assert reply.status == 204
            assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
            assert "POST" in reply.headers["Access-Control-Allow-Methods"]
        reply = await service.chat(headers=origin)
        assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"


async def test_everything_but_health_wants_a_key(tmp_path: Path):
    file = tmp_path / "keys"
    file.write_text("alice secret-of-alice\n")
    file.chmod(0o600)
    async with (
        ScriptedServer(QUICK) as upstream,
        gateway(upstream.url, api_key_file=str(file), cache="memory") as service,
    ):
        async with service.http.get("/healthz") as reply:
            assert reply.status == 200
        for path in ("/", "/api/tags", "/metrics", "/lab/status", "/v1/models"):
            async with service.http.get(path) as reply:
                assert reply.status == 401
        wrong = await service.chat(headers={"Authorization": "Bearer secret-of-bob"})
        assert wrong.status == 401
        assert json.loads(wrong.body) == {"error": "this API key is not known here"}
        origin = {"Origin": "http://localhost:3000"}
        async with service.http.post("/api/chat", data=b"x" * 70_000, headers=origin) as reply:
            assert reply.status == 401
            assert reply.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
            assert reply.headers["Connection"] == "close"
        right = await service.chat(headers={"Authorization": "Bearer secret-of-alice"})
        assert right.status == 200
        async with service.http.get(
            "/lab/status", headers={"Authorization": "Bearer secret-of-alice"}
        ) as reply:
            text = await reply.text()
        assert "alice" in text
        assert "secret-of-alice" not in text


async def test_a_clients_key_and_page_stay_on_its_side():
    """The upstream sees neither the client's secret nor where it came from, and its own name as Host."""
    async with raw(always(NOTHING)) as server:
        async with gateway(server.url) as service:
            headers = {
                "Authorization": "Bearer of-the-client",
                "X-Api-Key": "of-the-client",
                "Cookie": "c=1",
                "Accept-Encoding": "gzip",
                "Origin": "http://localhost:1",
                "X-Ollamalab-Client": "me",
                "X-Request-Id": "42",
                "Cache-Control": "no-cache",
            }
            async with service.http.get("/api/version", headers=headers) as reply:
                assert reply.status == 200
        seen = [request.decode().lower() for request in server.requests]
    head = next(head for head in seen if "x-request-id" in head)  # others are probes
    assert f"host: {server.url.rpartition('/')[2]}" in head
    assert "x-request-id: 42" in head
    for word in ("authorization", "of-the-client", "cookie", "origin", "x-ollamalab", "cache-control"):
        assert word not in head
    assert "accept-encoding" not in head


async def test_an_upstream_gets_the_key_it_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Probes are sent with it too."""
    monkeypatch.setenv("GPU_KEY", "from-environment")
    (tmp_path / "key").write_text("from-file\n")
    places = {
        "from-environment": {"api_key_env": "GPU_KEY"},
        "from-file": {"api_key_file": str(tmp_path / "key")},
    }
    for secret, place in places.items():
        async with raw(always(NOTHING)) as server:
            settings = gateway_settings(options={"upstream": [{"url": server.url, **place}], "port": 0})
            async with (
                opened(settings) as running,
                aiohttp.ClientSession(running.url) as http,
                http.get("/api/version", headers={"Authorization": "Bearer mine"}) as reply,
            ):
                assert reply.status == 200
            assert server.requests
            assert all(f"Bearer {secret}".encode() in request for request in server.requests)
            assert not any(b"mine" in request for request in server.requests)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
        ("POST", "/api/blobs/sha256:00"),
        ("HEAD", "/api/blobs/sha256:00"),
    ],
)
async def test_changing_models_is_for_admins(method: str, path: str):
    async with ScriptedServer(QUICK) as upstream:
        async with gateway(upstream.url) as service, service.http.request(method, path) as reply:
            assert reply.status == 403
        async with gateway(upstream.url, admin=True) as service, service.http.request(method, path) as reply:
            assert reply.status == 404  # it passed: this upstream knows no such path


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/api/chat", 405, "POST"),
        ("POST", "/api/tags", 405, "GET, HEAD"),
        ("POST", "/metrics", 405, "GET, HEAD"),
        ("GET", "/nowhere", 404, None),
        ("GET", "/lab/", 404, None),
        ("POST", "/api/chat/", 307, None),
        ("GET", "/api/tags/", 301, None),
    ],
)
async def test_wrong_verbs_and_paths_are_answered_as_ollama_does(
    method: str, path: str, status: int, allow: str | None
):
    async with (
        ScriptedServer(QUICK) as upstream,
        gateway(upstream.url) as service,
        service.http.request(method, path, allow_redirects=False) as reply,
    ):
        assert reply.status == status
        assert reply.headers.get("Allow") == allow


@pytest.mark.parametrize(
    ("path", "body", "headers", "words"),
    [
        ("/api/chat", b"{", {}, "unexpected EOF"),
        ("/api/chat", b'{"model": 3}', {}, "cannot unmarshal number into Go struct field ChatRequest.model"),
        ("/api/chat", b'{"model":"\xff\xfe"}', {}, "the body is not UTF-8"),
        ("/api/chat", b"[1]", {}, "cannot unmarshal array"),
        ("/v1/chat/completions", b"nonsense", {}, "invalid character 'n'"),
        ("/api/generate", b"{}", {"X-Ollamalab-Priority": "11"}, "x-ollamalab-priority must be"),
        ("/api/generate", b"{}", {"X-Ollamalab-Deadline-Ms": "soon"}, "x-ollamalab-deadline-ms must be"),
    ],
)
async def test_bad_input_is_refused_with_a_reason_and_never_sent_on(
    path: str, body: bytes, headers: dict[str, str], words: str
):
    async with (
        ScriptedServer(QUICK) as upstream,
        gateway(upstream.url) as service,
        service.http.post(path, data=body, headers=headers) as reply,
    ):
        assert reply.status == 400
        error = json.loads(await reply.read())["error"]
        assert words in (error["message"] if path.startswith("/v1") else error)
        assert not upstream.log


async def test_a_body_that_is_too_large_is_refused_before_it_is_read():
    async def endless(sent: list[int]) -> Any:
        for _ in range(1600):
            sent.append(65536)
            yield b"x" * 65536

    sent: list[int] = []
    async with ScriptedServer(QUICK) as upstream, gateway(upstream.url, max_body="1MiB") as service:
        try:
            async with service.http.post("/api/chat", data=endless(sent)) as reply:
                assert reply.status == 413
                assert "body" in json.loads(await reply.read())["error"]
        except aiohttp.ClientOSError:
            pass  # hung up on while it was still sending: refused all the same
        assert sum(sent) < 100 * 2**20
        assert not upstream.log


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("fault", [Fault.BUSY, Fault.RESET, Fault.NOT_HTTP])
async def test_an_upstream_that_fails_before_its_first_byte_is_a_503(fault: Fault, is_stream: bool):
    script = Script(first_s=0.0, gap_s=0.0, tokens=6, faults=dict.fromkeys(range(9), fault))
    async with ScriptedServer(script) as upstream, gateway(upstream.url, cache="memory") as service:
        reply = await service.chat(stream=is_stream)
        assert reply.status == REFUSED
        assert json.loads(reply.body)["error"]
        status = await service.at_rest()
        assert status["cache"]["stored"] == 0


async def test_an_upstream_that_is_not_there_is_a_503_that_says_where():
    async with gateway("http://127.0.0.1:9") as service:
        reply = await service.chat()
        assert reply.status == REFUSED
        assert "http://127.0.0.1:9" in json.loads(reply.body)["error"]
        await service.at_rest()


@pytest.mark.parametrize(
    "fault", [Fault.CUT, Fault.SILENT_END, Fault.ERROR_LINE, Fault.STUCK], ids=lambda fault: fault.value
)
async def test_a_stream_that_fails_ends_with_an_error_line_and_is_not_kept(fault: Fault):
    """Cut, stuck, ended without its final line, or with an error of its own: the client can tell."""
    script = Script(first_s=0.0, gap_s=0.0, tokens=6, faults={0: fault})
    async with (
        ScriptedServer(script) as upstream,
        gateway(upstream.url, cache="memory", request_timeout=0.2) as service,
    ):
        reply = await service.chat()
        assert reply.status == 200
        *begun, last = reply.lines
        assert [line["done"] for line in begun] == [False] * 3
        assert last["error"]
        status = await service.at_rest()
        assert status["cache"]["stored"] == 0
        again = await service.chat()
        assert again.headers["X-Ollamalab-Cache"] == "miss"
        assert again.lines[-1]["done"] is True


async def test_a_line_of_garbage_passes_and_its_answer_is_not_kept():
    script = Script(first_s=0.0, gap_s=0.0, tokens=6, faults={0: Fault.GARBAGE})
    async with ScriptedServer(script) as upstream, gateway(upstream.url, cache="memory") as service:
        assert b"<html>" in (await service.chat()).body
        assert (await service.at_rest())["cache"]["stored"] == 0


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_upstream_that_hangs_is_given_up_after_the_timeout(is_stream: bool):
    script = Script(faults={0: Fault.HANG})
    async with (
        ScriptedServer(script) as upstream,
        gateway(upstream.url, request_timeout=0.2, load_timeout=0.2) as service,
    ):
        reply = await service.chat(stream=is_stream)
        assert reply.status == 504
        await upstream.ended(1)
        await service.at_rest()


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("cache", ["off", "memory"])
async def test_a_client_that_hangs_up_ends_the_upstream_call(cache: str, is_stream: bool):
    """Streaming or not: nobody computes for somebody who has gone."""
    async with (
        ScriptedServer(Script(first_s=0.0, gap_s=3600.0)) as upstream,
        gateway(upstream.url, cache=cache) as service,
    ):
        call = asyncio.create_task(service.chat(stream=is_stream))
        await upstream.received(1)
        call.cancel()
        await upstream.ended(1)
        assert not upstream.log[0].is_complete
        status = await service.at_rest()
        assert status["queue"]["cancelled"] == 1


async def test_a_passed_deadline_is_a_504_and_frees_the_upstream():
    async with (
        ScriptedServer(Script(first_s=3600.0)) as upstream,
        gateway(upstream.url) as service,
    ):
        reply = await service.chat(headers={"X-Ollamalab-Deadline-Ms": "50"})
        assert reply.status == 504
        assert "deadline" in json.loads(reply.body)["error"]
        await upstream.ended(1)
        await service.at_rest()


async def test_a_deadline_that_passes_in_the_middle_ends_the_stream_with_an_error_line():
    async with (
        ScriptedServer(Script(first_s=0.0, gap_s=0.2, tokens=10_000)) as upstream,
        gateway(upstream.url) as service,
    ):
        reply = await service.chat(headers={"X-Ollamalab-Deadline-Ms": "500"})
        assert reply.status == 200
        assert "deadline" in reply.lines[-1]["error"]
        await upstream.ended(1)
        await service.at_rest()


async def test_sixteen_who_ask_the_same_share_one_upstream_call():
    """Every follower has its first line before the leader's answer is complete."""
    async with (
        ScriptedServer(Script(first_s=0.05, gap_s=0.02, tokens=20)) as upstream,
        gateway(upstream.url, cache="memory") as service,
    ):

        async def ask() -> tuple[str, float, bytes]:
            body = {"model": "scripted", "messages": HELLO}
            async with service.http.post("/api/chat", json=body) as reply:
                first = await reply.content.readline()
                is_complete = upstream.log[0].is_complete
                return reply.headers["X-Ollamalab-Cache"], is_complete, first + await reply.content.read()

        answers = await asyncio.gather(*(ask() for _ in range(16)))
        assert len(upstream.log) == 1
        outcomes = [outcome for outcome, _, _ in answers]
        assert sorted(outcomes) == ["coalesced"] * 15 + ["miss"]
        assert not any(is_complete for _, is_complete, _ in answers)
        assert len({body for _, _, body in answers}) == 1


async def test_one_client_with_fifty_requests_does_not_hold_up_another():
    """The other one is served next, however long the first one's line is."""
    async with (
        ScriptedServer(Script(first_s=0.01, gap_s=0.0, tokens=2, slots=1)) as upstream,
        gateway(upstream.url, max_concurrent=1) as service,
    ):

        async def ask(client: str, number: int) -> None:
            messages = [{"role": "user", "content": f"{client} {number}"}]
            reply = await service.chat(messages=messages, headers={"X-Ollamalab-Client": client})
            assert reply.status == 200

        many = [asyncio.create_task(ask("greedy", number)) for number in range(50)]
        await service.until(lambda now: now["queue"]["waiting"] >= 40)
        for number in range(3):
            before = len(upstream.log)
            await ask("modest", number)
            place = next(served.index for served in upstream.log if served.prompt == f"modest {number}")
            assert place <= before + 1  # at most the one that was being served when it came
        await asyncio.gather(*many)
        assert (await service.at_rest())["queue"]["completed"] == 53


async def test_a_full_queue_says_so_in_ollamas_words_with_a_time_to_come_back():
    async with (
        ScriptedServer(Script(first_s=3600.0)) as upstream,
        gateway(upstream.url, max_concurrent=1, max_queue=1) as service,
    ):
        calls = [asyncio.create_task(service.chat())]
        await upstream.received(1)
        calls.append(asyncio.create_task(service.chat()))
        await service.until(lambda now: now["queue"]["waiting"] == 1)
        reply = await service.chat()
        assert reply.status == 503
        body = json.loads(reply.body)
        assert body == {"error": "server busy, please try again.  maximum pending requests exceeded"}
        assert int(reply.headers["Retry-After"]) >= 1
        for call in calls:
            call.cancel()
        await upstream.ended(1)
        await service.at_rest()


@pytest.mark.parametrize("batch", ["off", "4", "20ms", "adaptive"])
async def test_a_grouped_stream_has_the_same_bytes(batch: str):
    async with (
        ScriptedServer(Script(first_s=0.0, gap_s=0.001, tokens=40)) as upstream,
        gateway(upstream.url, batch=batch) as service,
    ):
        lines = (await service.chat()).lines
        said = [line["message"]["content"] for line in lines]
        assert said == [f"{token} " for token in range(40)] + [""]
        assert lines[-1]["done"] is True


async def test_a_stop_lets_streams_finish_and_takes_no_more():
    async with ScriptedServer(Script(first_s=0.0, gap_s=0.02, tokens=20)) as upstream:
        settings = gateway_settings(options={"upstream": [upstream.url], "port": 0, "stop_timeout": 60})
        async with aiohttp.ClientSession() as http:
            async with opened(settings) as running:
                call = asyncio.create_task(
                    _read(http, f"{running.url}/api/chat", {"model": "scripted", "messages": HELLO})
                )
                await upstream.received(1)
                url = running.url
            assert Reply(200, {}, await call).lines[-1]["done"] is True
            with pytest.raises(aiohttp.ClientConnectorError):
                await http.get(url)


async def _read(http: aiohttp.ClientSession, url: str, body: object) -> bytes:
    async with http.post(url, json=body) as reply:
        return await reply.read()


async def test_a_storm_leaves_nothing_behind():
    """Hundreds of clients, some patient, some not, some faults: every count returns to zero."""
    faults = {number: list(Fault)[number % 10] for number in range(0, 300, 7)}
    script = Script(first_s=0.002, gap_s=0.001, tokens=8, slots=4, faults=faults)
    async with (
        ScriptedServer(script) as upstream,
        gateway(
            upstream.url, cache="memory", request_timeout=0.5, load_timeout=0.5, max_queue=200
        ) as service,
    ):

        async def ask(number: int) -> None:
            messages = [{"role": "user", "content": f"question {number % 60}"}]
            stream, headers = number % 3 != 0, {"X-Ollamalab-Client": f"client {number % 9}"}
            patience_s = None if number % 5 else 0.004 * (number % 11)
            try:
                async with asyncio.timeout(patience_s):
                    await service.chat(messages=messages, stream=stream, headers=headers)
            except (TimeoutError, aiohttp.ClientError):
                pass

        await asyncio.gather(*(ask(number) for number in range(300)))
        status = await service.at_rest()
        queue, cache = status["queue"], status["cache"]
        ended = ("completed", "failed", "rejected", "timed_out", "cancelled")
        assert queue["total"] == sum(queue[name] for name in ended)
        counted = cache["hits"] + cache["misses"] + cache["coalesced"] + cache["stale"]
        assert counted == cache["lookups"]
        assert cache["flights"] == 0
