"""The Redis store: lost, slow, refusing and damaged servers; secrets; TLS; what it writes and clears."""

from __future__ import annotations

import asyncio
import logging
import ssl
import subprocess
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from answers import Clock, make_answer
from redis_server import RedisServer, redis_server

from ollamalab.cache import Answer
from ollamalab.cache.redis import RedisStore
from ollamalab.errors import StoreError

KEY = bytes(range(32))


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path) as running:
        yield running


@asynccontextmanager
async def opened(url: str, **options: Any) -> AsyncIterator[RedisStore]:
    store = RedisStore(url, **{"max_answer_bytes": 1_000_000, "clock": Clock(), **options})
    try:
        yield store
    finally:
        await store.close()


def one_warning(caplog: pytest.LogCaptureFixture) -> str:
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return record.getMessage()


async def test_a_killed_redis_means_misses_and_a_restarted_one_works_again(
    running: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning, whatever the number of calls; after the pause the first call finds it back."""
    timer = Clock(0.0)
    async with opened(running.url, timer=timer) as store:
        await store.put(KEY, make_answer())
        running.kill()
        for _ in range(20):
            assert await store.get(KEY) is None
            await store.put(KEY, make_answer())
            await store.delete(KEY)
        assert store.statistics().errors == 1  # the others were spared the try
        timer.now_s += 6.0
        assert await store.get(KEY) is None
        assert store.statistics().errors == 2
        assert "redis lost: address=redis://127.0.0.1:" in one_warning(caplog)

        await running.start()
        assert await store.get(KEY) is None
        timer.now_s += 6.0
        assert await store.get(KEY) is None  # Redis has forgotten
        await store.put(KEY, make_answer())
        assert await store.get(KEY) == make_answer()
        assert store.statistics().errors == 2


@pytest.mark.parametrize(
    ("options", "is_warned"),
    [
        (("--maxmemory", "50mb", "--maxmemory-policy", "noeviction"), True),
        (("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru"), False),
        (("--maxmemory", "0", "--maxmemory-policy", "noeviction"), False),
    ],
)
async def test_a_redis_that_would_take_no_new_answers_once_full_is_told_of_at_the_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: tuple[str, ...], is_warned: bool
) -> None:
    async with redis_server(tmp_path, *options) as running, opened(running.url) as store:
        for _ in range(2):
            await store.sweep()
    if is_warned:
        assert "set maxmemory-policy to allkeys-lru or volatile-lru" in one_warning(caplog)
    else:
        assert not caplog.records


async def test_a_redis_that_is_away_at_the_start_is_looked_at_when_it_is_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_server(tmp_path, "--maxmemory", "50mb") as running, opened(running.url) as store:
        running.kill()
        await store.sweep()
        assert not caplog.records
        await running.start()
        await store.sweep()
        assert "maxmemory_policy=noeviction" in one_warning(caplog)


async def test_a_redis_that_does_not_tell_its_memory_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        redis_server(tmp_path, "--rename-command", "INFO", "") as running,
        opened(running.url) as store,
    ):
        await store.sweep()
        running.kill()
        await store.sweep()
        assert not caplog.records
        assert store.statistics().errors == 0


async def test_a_restart_between_two_calls_is_not_noticed(
    running: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(running.url) as store:
        await store.put(KEY, make_answer())
        running.kill()
        await running.start()
        assert await store.get(KEY) is None
        await store.put(KEY, make_answer())
        assert await store.get(KEY) == make_answer()
        assert store.statistics().errors == 0
    assert not caplog.records


async def test_a_hanging_redis_costs_one_wait_and_then_none(
    running: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Fifty at once all wait the same half second; later ones ask nobody until the pause is over."""
    timer = Clock(0.0)
    async with opened(running.url, timer=timer) as store:
        await store.put(KEY, make_answer())
        running.suspend()
        assert await gather(store.get(KEY) for _ in range(50)) == [None] * 50
        failed = store.statistics().errors or 0
        assert 1 <= failed <= 50
        for _ in range(100):
            assert await store.get(KEY) is None
        assert store.statistics().errors == failed
        timer.now_s += 6.0
        assert await gather(store.get(KEY) for _ in range(50)) == [None] * 50
        assert store.statistics().errors == failed + 1  # one tries for all
        one_warning(caplog)

        running.resume()
        timer.now_s += 6.0
        assert await store.get(KEY) == make_answer()


async def gather(calls: Any) -> list[Answer | None]:
    coroutines: list[Coroutine[Any, Any, Answer | None]] = list(calls)
    return await asyncio.gather(*coroutines)


async def test_a_full_redis_keeps_nothing_more_and_serves_what_it_has(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with redis_server(tmp_path, "--maxmemory", "20mb") as running, opened(running.url) as store:
        await store.put(KEY, make_answer())
        for number in range(100):
            await store.put(b"%d" % number, make_answer(body=bytes(500_000)))
        assert (store.statistics().errors or 0) > 10
        assert await store.get(KEY) == make_answer()
        assert "redis refuses" in one_warning(caplog)
        assert "OutOfMemoryError" in caplog.text


async def test_a_redis_with_a_policy_of_its_own_bounds_the_answers(tmp_path: Path) -> None:
    """As the documentation advises: room is made, and nothing fails."""
    options = ("--maxmemory", "20mb", "--maxmemory-policy", "allkeys-lru")
    async with redis_server(tmp_path, *options) as running, opened(running.url) as store:
        for number in range(100):
            await store.put(b"%d" % number, make_answer(body=bytes(500_000)))
        assert store.statistics().errors == 0
        assert await store.get(b"99") is not None
        assert 0 < await store.clear() < 50


async def test_a_long_answer_is_not_kept_nor_what_it_replaces(running: RedisServer) -> None:
    async with opened(running.url, max_answer_bytes=10_000) as store:
        await store.put(KEY, make_answer())
        await store.put(KEY, make_answer(body=bytes(20_000)))
        assert await store.get(KEY) is None


async def test_a_damaged_answer_is_a_miss_once_and_then_gone(
    running: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that is whole but another question's, and what is no answer at all."""
    async with opened(running.url) as store, running.client() as client:
        await store.put(KEY, make_answer())
        (name,) = await client.keys()
        sealed = await client.get(name)
        await client.set(name + b"other", sealed)
        await client.set(name, sealed[:-1] + bytes([sealed[-1] ^ 1]))
        assert await store.get(KEY) is None
        assert await store.get(KEY + b"other") is None
        assert store.statistics().errors == 2
        assert await client.dbsize() == 0
        await client.rpush(name, b"a list")
        assert await store.get(KEY) is None
        assert store.statistics().errors == 3
        assert len(caplog.records) == 2


async def test_clearing_leaves_what_is_not_ours(running: RedisServer) -> None:
    """Answers of other layouts are ours too."""
    async with opened(running.url) as store, running.client() as client:
        async with client.pipeline() as pipeline:
            for number in range(3_000):
                pipeline.set(f"theirs:{number}", "x").set(f"ollamalab:{number}", "x")
            await pipeline.execute()
        for number in range(500):
            await store.put(b"%d" % number, make_answer())
        await client.set("ollamalab:answers:0:old", "x")
        assert await store.clear() == 501
        assert await client.dbsize() == 6_000


async def test_a_lost_redis_cannot_be_emptied_and_that_is_said() -> None:
    async with opened("redis://:hunter2@127.0.0.1:1") as store:
        with pytest.raises(
            StoreError, match=r"redis://127.0.0.1:1 cannot be emptied \(ConnectionError: "
        ) as caught:
            await store.clear()
    assert "hunter2" not in str(caught.value)


async def test_a_wrong_password_is_a_lost_redis_and_is_not_told(
    running: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened(f"redis://me:hunter2@127.0.0.1:{running.port}") as store:
        assert await store.get(KEY) is None
        assert await store.get(KEY) is None
        with pytest.raises(StoreError) as caught:
            await store.clear()
        shown = one_warning(caplog) + str(caught.value) + repr(store) + repr(store.statistics())
    assert "AuthenticationError" in shown
    assert "hunter2" not in shown


async def test_what_is_no_redis_means_misses(caplog: pytest.LogCaptureFixture) -> None:
    """A web server, as it answers what it cannot read."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(refuse, "127.0.0.1", 0) as web:
        port = web.sockets[0].getsockname()[1]
        async with opened(f"redis://127.0.0.1:{port}") as store:
            for _ in range(5):
                await store.put(KEY, make_answer())
                assert await store.get(KEY) is None
            assert (store.statistics().errors or 0) >= 1
    one_warning(caplog)


async def test_rediss_speaks_tls_to_a_server_whose_certificate_fits(
    running: RedisServer, tmp_path: Path
) -> None:
    """A TLS end in front of the server; without its authority's certificate it is not trusted."""
    certificate, private_key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject]
    files = ["-out", str(certificate), "-keyout", str(private_key)]
    subprocess.run([*command, *files], check=True, capture_output=True)  # noqa: ASYNC221
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, private_key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, forth = await asyncio.open_connection("127.0.0.1", running.port)
        await asyncio.gather(pump(reader, forth), pump(back, writer))

    async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as secure:
        port = secure.sockets[0].getsockname()[1]
        url = running.url.replace("redis:", "rediss:").replace(str(running.port), str(port))
        async with opened(f"{url}?ssl_ca_certs={certificate}") as store:
            await store.put(KEY, make_answer())
            assert await store.get(KEY) == make_answer()
        async with opened(url) as store:
            assert await store.get(KEY) is None
            assert store.statistics().errors == 1
