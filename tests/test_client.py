"""The staged client: every stage has its time, and the parts add up."""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from ollamalab.client import Answer, Moments, OllamaClient, stage_ledger
from ollamalab.client.transport import error_type
from ollamalab.errors import (
    BadReply,
    ModelNotFound,
    SettingsError,
    UpstreamError,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from ollamalab.metrics import Stages
from ollamalab.protocol.lines import encode_line
from ollamalab.records import Outcome
from ollamalab.scripted import Fault, Script, ScriptedServer

QUICK = Script(first_s=0.01, gap_s=0.002, tokens=6)


@asynccontextmanager
async def linked(
    script: Script = QUICK, *, name: str = "127.0.0.1", progress_timeout_s: float = 60.0
) -> AsyncIterator[tuple[ScriptedServer, OllamaClient]]:
    """A scripted server and a client of it, which calls it by this name."""
    async with ScriptedServer(script) as server:
        url = server.url.replace("127.0.0.1", name)
        async with OllamaClient(url, progress_timeout_s=progress_timeout_s) as client:
            yield server, client


@asynccontextmanager
async def answering(body: bytes, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """A server that gives one fixed answer; its address."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"{'https' if tls else 'http'}://localhost:{server.sockets[0].getsockname()[1]}"


def assert_adds_up(answer: Answer) -> None:
    assert math.isclose(sum(answer.stages.parts().values()), answer.stages.e2e_s, abs_tol=1e-9)
    assert list(answer.stages.parts())[-1] == "residual"


async def test_a_chat_is_its_text_its_record_and_its_stages() -> None:
    async with linked() as (server, client):
        answer = await client.chat("scripted", "hello", options={"num_predict": 6})
    assert answer.text == "0 1 2 3 4 5 "
    assert answer.final["done_reason"] == "length"
    assert answer.record.outcome is Outcome.OK
    assert len(answer.line_times_s) == 7
    assert answer.record.token_times_s == answer.line_times_s[:-1]
    written_s = server.log[0].written_s
    assert all(seen > wrote for seen, wrote in zip(answer.record.token_times_s, written_s, strict=True))
    assert_adds_up(answer)


async def test_the_servers_durations_are_in_the_ledger_as_it_knows_them() -> None:
    async with linked() as (_, client):
        stages = (await client.generate("scripted", "hello")).stages
    assert stages.prompt_eval_s == pytest.approx(0.01, abs=1e-6)
    assert stages.eval_s == pytest.approx(0.01, abs=1e-6)
    assert stages.slot_wait_s == pytest.approx(0.0, abs=1e-6)


async def test_the_wait_for_a_slot_is_what_the_servers_parts_leave_of_its_total() -> None:
    async with linked(Script(first_s=0.01, gap_s=0.002, tokens=6, slots=1)) as (server, client):
        answers = await asyncio.gather(*(client.chat("scripted", f"{number}") for number in range(3)))
    for answer, served in zip(answers, server.log, strict=True):
        waited_s = (served.started_s or 0.0) - served.arrived_s
        assert answer.stages.slot_wait_s == pytest.approx(waited_s, abs=1e-6)
        assert_adds_up(answer)


async def test_a_name_is_looked_up_and_a_connection_made_once() -> None:
    async with linked(name="localhost") as (_, client):
        first, second = [await client.chat("scripted", "hello") for _ in range(2)]
    assert first.stages.dns_s is not None
    assert first.stages.connect_s is not None
    assert (second.stages.dns_s, second.stages.connect_s) == (None, None)
    assert first.record.connected_s is not None
    assert second.record.connected_s is None
    for answer in (first, second):
        assert answer.stages.tls_s is None
        assert_adds_up(answer)


async def test_an_address_needs_no_lookup() -> None:
    async with linked() as (_, client):
        stages = (await client.chat("scripted", "hello")).stages
    assert stages.dns_s is None
    assert stages.connect_s is not None


async def test_a_lookup_of_ones_own_knows_names_that_the_system_does_not() -> None:
    """The name of RFC 6761 that never exists; the lookup is a stage of the ledger like the system's."""
    asked = []

    async def lookup(host: str, port: int) -> list[str]:
        asked.append((host, port))
        return ["127.0.0.1"]

    async with ScriptedServer(QUICK) as server:
        url = server.url.replace("127.0.0.1", "ollama.invalid")
        async with OllamaClient(url, lookup=lookup) as client:
            answer = await client.chat("scripted", "hello")
    assert asked == [("ollama.invalid", int(server.url.rpartition(":")[2]))]
    assert answer.stages.dns_s is not None
    assert_adds_up(answer)


async def test_tls_has_a_stage_of_its_own(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    trust = ssl.create_default_context(cafile=certificate)
    line = encode_line({"message": {"role": "assistant", "content": "hi"}, "done": True})
    async with answering(line, tls) as url:
        async with OllamaClient(url, ssl_context=trust) as client:
            answer = await client.chat("any", "hello")
        async with OllamaClient(url) as distrustful:
            with pytest.raises(UpstreamUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await distrustful.chat("any", "hello")
    assert answer.stages.tls_s is not None
    assert answer.stages.load_s is None
    assert_adds_up(answer)


async def test_without_the_servers_durations_the_residual_holds_the_rest() -> None:
    line = encode_line({"response": "hi", "done": True})
    async with answering(line) as url, OllamaClient(url) as client:
        answer = await client.generate("any", "hello", stream=False)
    assert (answer.stages.load_s, answer.stages.network_s) == (None, None)
    assert answer.stages.residual_s > 0
    assert_adds_up(answer)


def test_the_ledger_of_a_request_worked_by_hand() -> None:
    moments = Moments(
        called_s=0.0,
        prepared_s=1.0,
        lookup_s=2.0,
        resolved_s=4.0,
        connected_s=7.0,
        tls_s=7.0,
        secured_s=12.0,
        send_s=13.0,
        sent_end_s=14.0,
        headers_s=30.0,
        final_s=80.0,
        body_end_s=81.0,
        parsed_s=84.0,
    )
    server = Stages(
        connect_s=None, load_s=10.0, slot_wait_s=20.0, prompt_eval_s=5.0, eval_s=25.0, network_s=None
    )
    assert stage_ledger(moments, server).parts() == {
        "prepare": 1.0,
        "dns": 2.0,
        "connect": 3.0,
        "tls": 5.0,
        "send": 1.0,
        "load": 10.0,
        "slot_wait": 20.0,
        "prompt_eval": 5.0,
        "eval": 25.0,
        "network": 6.0,
        "parse": 3.0,
        "residual": 3.0,
    }


async def test_the_small_calls() -> None:
    async with linked() as (server, client):
        assert await client.version() == "0.0.0-scripted"
        assert [model["name"] for model in await client.tags()] == ["scripted:latest"]
        assert [model["name"] for model in await client.ps()] == ["scripted:latest"]
        assert "model_info" in await client.show("scripted")
        assert await client.preload("scripted", options={"num_ctx": 2048}, keep_alive="5m") > 0
        await client.unload("scripted")
    assert server.log == []


async def test_a_missing_model_names_those_there() -> None:
    async with linked() as (_, client):
        for call in (client.chat("absent", "hello"), client.show("absent"), client.preload("absent")):
            with pytest.raises(ModelNotFound, match=r"'absent' not found; it has scripted:latest"):
                await call


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        (Fault.BUSY, UpstreamRejected, "answered 503 to /api/chat: server busy"),
        (Fault.RESET, BadReply, "broke off"),
        (Fault.NOT_HTTP, BadReply, "not HTTP"),
        (Fault.CUT, BadReply, "broke off"),
        (Fault.SILENT_END, BadReply, "without done"),
        (Fault.ERROR_LINE, BadReply, "unexpectedly stopped"),
        (Fault.GARBAGE, BadReply, "not a JSON object"),
    ],
)
async def test_each_fault_is_one_of_our_exceptions(
    fault: Fault, kind: type[UpstreamError], words: str
) -> None:
    async with linked(Script(first_s=0.0, gap_s=0.0, tokens=4, faults={0: fault})) as (server, client):
        with pytest.raises(kind, match=words) as caught:
            await client.chat("scripted", "hello")
        assert caught.value.url == server.url
        assert (await client.chat("scripted", "again")).text


@pytest.mark.parametrize("fault", [Fault.HANG, Fault.STUCK])
async def test_silence_is_a_timeout_and_hangs_up(fault: Fault) -> None:
    script = Script(first_s=0.0, gap_s=0.0, faults={0: fault})
    async with linked(script, progress_timeout_s=0.2) as (server, client):
        with pytest.raises(UpstreamTimeout) as caught:
            await client.chat("scripted", "hello")
        await server.ended(1)
    assert caught.value.after_s == 0.2


async def test_nothing_listening_is_unavailable_with_the_next_step() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        for host in ("127.0.0.1", "localhost"):
            async with OllamaClient(f"{host}:{port}") as client:
                with pytest.raises(UpstreamUnavailable, match=r"ollama serve"):
                    await client.version()


async def test_another_kind_of_server_is_a_bad_reply() -> None:
    for body in (b"<html></html>", b"[]", b'{"other": 1}'):
        async with answering(body) as url, OllamaClient(url) as client:
            with pytest.raises(BadReply, match="is it an Ollama server"):
                await client.version()


def test_a_bad_address_is_refused_before_anything_is_sent() -> None:
    with pytest.raises(SettingsError):
        OllamaClient("ftp://gpu2")


def subclasses(of: type[BaseException]) -> Iterator[type[BaseException]]:
    yield of
    for kind in of.__subclasses__():
        yield from subclasses(kind)


def test_every_exception_of_httpx_has_one_of_ours() -> None:
    """``StreamError`` and ``CookieConflict`` tell of wrong use by us, so they are left as they are."""
    abstract = {httpx.HTTPError, httpx.RequestError, httpx.TransportError}
    kinds = {*subclasses(httpx.HTTPError), httpx.InvalidURL} - abstract
    assert len(kinds) > 15
    assert [kind for kind in kinds if error_type(kind) is None] == []
    assert error_type(httpx.ConnectTimeout) is UpstreamUnavailable
    assert error_type(httpx.ReadTimeout) is UpstreamTimeout
    assert error_type(httpx.RemoteProtocolError) is BadReply
