"""What every store promises, asked of each; and how a store is named."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from answers import Clock, make_answer
from redis_server import RedisServer, redis_server

from ollamalab.cache import Answer, MemoryStore, Store
from ollamalab.cache.disk import DiskStore
from ollamalab.cache.redis import RedisStore
from ollamalab.cache.stores import open_store
from ollamalab.errors import SettingsError
from ollamalab.settings import CacheSettings

KEY = bytes(range(32))
MAX_ENTRIES, MAX_BYTES = 1_000, 64 * 1024 * 1024


class StoreContract:
    """Inherited by each store's class, which brings the fixtures ``store`` and ``clock``."""

    async def test_what_was_put_is_got_whole(self, store: Store) -> None:
        answer = make_answer(pieces=(b'{"a":1}\n', b'{"b":2}\n', b""))
        await store.put(KEY, answer)
        assert await store.get(KEY) == answer

    async def test_an_unknown_key_is_none(self, store: Store) -> None:
        assert await store.get(KEY) is None

    async def test_keys_and_bodies_are_any_bytes(self, store: Store) -> None:
        """Nulls, line ends, glob and format characters, invalid UTF-8; keys that begin alike differ."""
        keys = (
            b"",
            b"\0",
            b"\0\0",
            b"*",
            b"a\r\nb",
            b"%s{}",
            b"\xff\xfe",
            bytes(256 - n for n in range(1, 257)),
        )
        for key in keys:
            await store.put(key, make_answer(pieces=(key, b"\0" + key)))
        for key in keys:
            kept = await store.get(key)
            assert kept is not None
            assert kept.pieces == (key, b"\0" + key)
        assert await store.clear() == len(keys)

    async def test_a_second_answer_takes_the_place_of_the_first(self, store: Store) -> None:
        await store.put(KEY, make_answer(body=b"first, and longer"))
        await store.put(KEY, make_answer(body=b"second"))
        kept = await store.get(KEY)
        assert kept is not None
        assert kept.pieces == (b"second",)
        assert await store.clear() == 1

    async def test_deleted_is_gone_and_deleting_nothing_is_well(self, store: Store) -> None:
        await store.put(KEY, make_answer())
        await store.put(b"other", make_answer())
        await store.delete(KEY)
        await store.delete(KEY)
        assert await store.get(KEY) is None
        assert await store.get(b"other") is not None

    async def test_clear_removes_and_counts_all(self, store: Store) -> None:
        for number in range(25):
            await store.put(b"%d" % number, make_answer())
        assert await store.clear() == 25
        assert await store.clear() == 0
        assert await store.get(b"7") is None

    async def test_a_large_answer_of_many_pieces(self, store: Store) -> None:
        """5 MB in 5,000 lines."""
        source = random.Random(1)
        answer = make_answer(pieces=tuple(source.randbytes(1_000) for _ in range(5_000)))
        await store.put(KEY, answer)
        assert await store.get(KEY) == answer

    async def test_stale_answers_are_given_and_worthless_ones_are_not(
        self, store: Store, clock: Clock
    ) -> None:
        """Whether a stale one is of use is the cache's decision."""
        now_s = clock()
        stale = make_answer(stored_s=now_s - 20.0, ttl_s=10.0, stale_s=300.0)
        await store.put(b"stale", stale)
        await store.put(b"worthless", make_answer(stored_s=now_s - 20.0, ttl_s=10.0, stale_s=10.0))
        assert await store.get(b"stale") == stale
        assert await store.get(b"worthless") is None

    async def test_many_at_once_get_each_its_own(self, store: Store) -> None:
        """Readers and writers of ten keys, of which each has one answer of its own."""
        answers = {b"%d" % n: make_answer(body=b"%d" % n * 1_000) for n in range(10)}
        seen = 0

        async def use(source: random.Random) -> None:
            nonlocal seen
            for _ in range(20):
                key = source.choice(list(answers))
                if source.random() < 0.3:
                    await store.put(key, answers[key])
                elif kept := await store.get(key):
                    assert kept == answers[key]
                    seen += 1

        async with asyncio.TaskGroup() as group:
            for seed in range(40):
                group.create_task(use(random.Random(seed)))
        assert seen
        assert store.statistics().errors == 0

    async def test_an_abandoned_get_spoils_no_later_one(self, store: Store) -> None:
        """Clients hang up at any moment; nobody then gets what another has asked for."""
        for number in range(10):
            await store.put(b"%d" % number, make_answer(body=b"%d" % number))
        for turn in range(100):
            abandoned = asyncio.ensure_future(store.get(b"%d" % (turn % 7)))
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            abandoned.cancel()
            kept = await store.get(b"%d" % (turn % 10))
            assert kept is not None
            assert kept.pieces == (b"%d" % (turn % 10),)
            await asyncio.gather(abandoned, return_exceptions=True)
        assert store.statistics().errors == 0

    async def test_closing_twice_is_well(self, store: Store) -> None:
        await store.close()
        await store.close()


class BoundedStoreContract(StoreContract):
    """Of the stores that keep the bounds and the time themselves."""

    def make(self, folder: Path, clock: Clock, *, entries: int, size_bytes: int) -> Store:
        raise NotImplementedError

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    async def store(self, tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
        store = self.make(tmp_path, clock, entries=MAX_ENTRIES, size_bytes=MAX_BYTES)
        yield store
        await store.close()

    @pytest.fixture
    async def three(self, tmp_path: Path, clock: Clock) -> AsyncIterator[Store]:
        """Room for three answers."""
        (tmp_path / "three").mkdir()
        store = self.make(tmp_path / "three", clock, entries=3, size_bytes=MAX_BYTES)
        yield store
        await store.close()

    async def present(self, store: Store, keys: bytes) -> bytes:
        return bytes([key for key in keys if await store.get(bytes([key])) is not None])

    async def test_the_least_recently_used_goes_first(self, three: Store) -> None:
        for key in (b"a", b"b", b"c"):
            await three.put(key, make_answer())
        await three.get(b"b")
        await three.get(b"a")
        await three.put(b"d", make_answer())
        await three.put(b"e", make_answer())
        assert await self.present(three, b"abcde") == b"ade"
        assert three.statistics().evicted == 2

    async def test_one_no_longer_fresh_goes_before_any_that_is(self, three: Store, clock: Clock) -> None:
        await three.put(b"a", make_answer())
        await three.put(b"b", make_answer(ttl_s=1.0))
        await three.put(b"c", make_answer())
        clock.now_s += 2.0
        assert await three.get(b"b") is not None
        await three.put(b"d", make_answer())
        assert await self.present(three, b"abcd") == b"acd"

    async def test_bytes_are_bounded(self, tmp_path: Path, clock: Clock) -> None:
        store = self.make(tmp_path, clock, entries=MAX_ENTRIES, size_bytes=100_000)
        source = random.Random(1)
        for number in range(300):
            await store.put(
                b"%d" % (number % 50), make_answer(body=source.randbytes(source.randrange(10_000)))
            )
            assert (store.statistics().bytes or 0) <= 100_000
        assert store.statistics().entries == await store.clear() > 3
        assert store.statistics().bytes == 0
        await store.close()

    async def test_what_exceeds_the_bound_alone_is_not_kept_nor_what_it_replaces(
        self, tmp_path: Path, clock: Clock
    ) -> None:
        store = self.make(tmp_path, clock, entries=MAX_ENTRIES, size_bytes=10_000)
        await store.put(KEY, make_answer())
        await store.put(b"other", make_answer())
        await store.put(KEY, make_answer(body=bytes(20_000)))
        assert await store.get(KEY) is None
        assert await store.get(b"other") is not None
        await store.close()

    async def test_sweeping_removes_what_is_worthless_and_only_that(self, store: Store, clock: Clock) -> None:
        for number in range(500):
            await store.put(b"%d" % number, make_answer(ttl_s=1.0, stale_s=1.0))
        await store.put(b"stale", make_answer(ttl_s=1.0, stale_s=10.0))
        await store.put(b"fresh", make_answer())
        clock.now_s += 2.0
        assert await store.sweep() == 500
        assert await store.sweep() == 0
        assert await store.get(b"stale") is not None
        assert await store.get(b"fresh") is not None
        told = store.statistics()
        assert (told.entries, told.expired, told.evicted) == (2, 500, 0)

    async def test_statistics_follow_what_is_there(self, store: Store) -> None:
        told = store.statistics()
        assert (told.entries, told.bytes, told.evicted, told.expired, told.errors) == (0, 0, 0, 0, 0)
        sizes = []
        for number in range(3):
            await store.put(b"%d" % number, make_answer(body=bytes(1_000)))
            sizes.append(store.statistics().bytes)
        assert sizes[0] is not None
        assert sizes[0] > 1_000
        assert sizes == [sizes[0], 2 * sizes[0], 3 * sizes[0]]
        await store.put(b"0", make_answer(body=bytes(1_000)))
        assert store.statistics().bytes == 3 * sizes[0]
        await store.delete(b"0")
        assert (store.statistics().entries, store.statistics().bytes) == (2, 2 * sizes[0])


class TestMemory(BoundedStoreContract):
    def make(self, folder: Path, clock: Clock, *, entries: int, size_bytes: int) -> Store:
        return MemoryStore(max_entries=entries, max_bytes=size_bytes, clock=clock)


class TestDisk(BoundedStoreContract):
    def make(self, folder: Path, clock: Clock, *, entries: int, size_bytes: int) -> Store:
        return DiskStore(folder / "cache.db", max_entries=entries, max_bytes=size_bytes, clock=clock)


@pytest.fixture(scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RedisServer]:
    async with redis_server(tmp_path_factory.mktemp("redis")) as running:
        yield running


class TestRedis(StoreContract):
    """Bounds are the server's own, and so is the time: what it is told is looked at."""

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    async def store(
        self, running: RedisServer, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> AsyncIterator[Store]:
        monkeypatch.setattr("ollamalab.cache.redis._PATIENCE_S", 60.0)  # a busy machine is no fault of ours
        async with running.client() as client:
            await client.flushall()
        store = RedisStore(running.url, max_answer_bytes=MAX_BYTES, clock=clock)
        yield store
        await store.close()

    async def test_redis_removes_an_answer_when_it_is_worthless(
        self, store: Store, clock: Clock, running: RedisServer
    ) -> None:
        """Neither earlier nor later: it is given the seconds that are left, the stale ones included."""
        await store.put(KEY, make_answer(stored_s=clock() - 100.0, ttl_s=300.0, stale_s=600.0))
        async with running.client() as client:
            (key,) = await client.keys()
            left_ms = await client.pttl(key)
        assert 790_000 < left_ms <= 800_000
        await store.put(KEY, make_answer(stored_s=clock(), ttl_s=0.05, stale_s=0.0))
        while await store.get(KEY) is not None:
            pass
        async with running.client() as client:
            while await client.dbsize():
                pass

    async def test_it_cannot_tell_what_redis_knows(self, store: Store) -> None:
        told = store.statistics()
        assert (told.entries, told.bytes, told.evicted, told.expired) == (None, None, None, None)
        assert await store.sweep() == 0


def test_off_is_no_store() -> None:
    assert open_store("off", CacheSettings()) is None


async def test_the_bounds_of_the_settings_hold(tmp_path: Path) -> None:
    settings = CacheSettings(max_entries=2)
    for where in ("memory", f"disk:{tmp_path}/cache.db"):
        store = open_store(where, settings)
        assert store is not None
        for number in range(5):
            await store.put(b"%d" % number, make_answer(stored_s=time.time()))
        assert store.statistics().entries == 2
        await store.close()


async def test_a_redis_need_not_be_there_when_opened() -> None:
    store = open_store("redis://127.0.0.1:1", CacheSettings())
    assert store is not None
    await store.close()


@pytest.mark.parametrize("where", ["", "Memory", "disk", "disk:", "file:/x", "/var/cache.db", "redis:6379"])
def test_what_is_no_store_is_named_with_what_would_be(where: str) -> None:
    with pytest.raises(SettingsError, match=r"off, memory, disk:PATH or redis://HOST.*got ") as caught:
        open_store(where, CacheSettings())
    assert repr(where) in str(caught.value)


@pytest.mark.parametrize(
    "where",
    [
        "redis://:hunter2/x@host",
        "redis://:hunter2?x@host",
        "redis://:hunter2#x@host",
        "redis://user:12hunter2@",
        "redis://:hunter2@host:port",
        "redis://host?password=hunter2",
        "redis://:hunter2@host/zero",
        "rediss://:hunter2@host?ssl_cert_reqs=none",
        "redis://:hunter2@" + "h" * 64,
        "redis:/:hunter2@host",
        "Redis://:hunter2@host",
    ],
)
def test_an_unreadable_redis_address_is_refused_without_its_password(where: str) -> None:
    with pytest.raises(SettingsError, match=r"rediss?://") as caught:
        open_store(where, CacheSettings())
    assert "hunter2" not in str(caught.value)


def test_without_its_package_a_redis_is_refused_with_what_to_install() -> None:
    code = """
import sys
sys.modules["redis"] = None
from ollamalab.cache.stores import open_store
from ollamalab.settings import CacheSettings
try:
    open_store("redis://127.0.0.1", CacheSettings())
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SettingsError ")
    assert "pip install 'ollamalab[redis]'" in done.stdout


def test_answers_are_equal_by_value() -> None:
    """What the contract compares."""
    assert make_answer() == make_answer()
    assert isinstance(make_answer(), Answer)
    assert make_answer() != make_answer(body=b"x")
