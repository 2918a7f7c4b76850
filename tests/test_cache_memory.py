"""The memory store: bounds, order of eviction, sweep. What every store promises: ``test_cache_stores``."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from ollamalab.cache import Answer, MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def answer(clock: Clock, *, ttl_s: float = 10.0, stale_s: float = 5.0, body: bytes = b"x") -> Answer:
    return Answer(
        status=200,
        headers={},
        pieces=(body,),
        offsets_s=(0.0,),
        is_stream=False,
        is_openai=False,
        stored_s=clock.now_s,
        ttl_s=ttl_s,
        stale_s=stale_s,
        upstream_s=1.0,
        model_key="m",
        digest="d",
    )


def store(clock: Clock, entries: int = 3, size_bytes: int = 1_000_000) -> MemoryStore:
    return MemoryStore(max_entries=entries, max_bytes=size_bytes, clock=clock)


async def present(kept: MemoryStore, keys: bytes) -> bytes:
    return bytes([key for key in keys if await kept.get(bytes([key]))])


async def test_the_least_recently_used_goes_first() -> None:
    clock = Clock()
    kept = store(clock)
    for key in (b"a", b"b", b"c"):
        await kept.put(key, answer(clock))
    await kept.get(b"a")
    await kept.put(b"d", answer(clock))
    assert await present(kept, b"abcd") == b"acd"
    assert kept.statistics().evicted == 1


async def test_one_that_is_no_longer_fresh_goes_before_any_that_is() -> None:
    clock = Clock()
    kept = store(clock)
    await kept.put(b"old", answer(clock, ttl_s=100.0))
    await kept.put(b"short", answer(clock, ttl_s=1.0, stale_s=1_000.0))
    await kept.put(b"new", answer(clock, ttl_s=100.0))
    clock.now_s += 2.0
    assert await kept.get(b"short") is not None  # most recently used, and still of use if the upstream fails
    await kept.put(b"next", answer(clock))
    assert await kept.get(b"short") is None
    assert await kept.get(b"old") is not None


async def test_bytes_are_bounded_and_the_sum_is_right() -> None:
    clock = Clock()
    size = answer(clock, body=b"x" * 10_000).size_bytes
    kept = store(clock, entries=100, size_bytes=3 * size + 10)
    for number in range(10):
        await kept.put(b"%d" % number, answer(clock, body=b"x" * 10_000))
    assert (kept.statistics().entries, kept.statistics().bytes) == (3, 3 * size)
    await kept.put(b"huge", answer(clock, body=b"x" * 100_000))
    assert await kept.get(b"huge") is None
    assert kept.statistics().entries == 3


async def test_sweep_removes_what_not_even_a_failure_would_bring_back_and_lets_others_run() -> None:
    clock = Clock()
    kept = store(clock, entries=10_000, size_bytes=10**9)
    for number in range(5_000):
        await kept.put(b"%d" % number, answer(clock, ttl_s=1.0, stale_s=1.0))
    await kept.put(b"fresh", answer(clock, ttl_s=100.0))
    await kept.put(b"stale", answer(clock, ttl_s=1.0, stale_s=100.0))
    clock.now_s += 3.0
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    assert await kept.sweep() == 5_000
    running.cancel()
    assert turns >= 10
    assert (kept.statistics().entries, kept.statistics().expired) == (2, 5_000)


async def test_replacing_one_answer_for_ever_does_not_grow() -> None:
    """What was replaced stays in the heaps only until there is more of it than of answers."""
    clock = Clock()
    kept = store(clock)
    for _ in range(20_000):
        clock.now_s += 0.001
        await kept.put(b"a", answer(clock))
    assert len(kept._expiring) + len(kept._stale) < 2_000
    assert kept.statistics().entries == 1


steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "get", "delete", "sweep", "wait"]), st.integers(0, 5), st.integers(1, 30)
    ),
    max_size=60,
)


@given(steps)
def test_it_never_holds_more_than_it_may_and_its_counts_add_up(done: list[tuple[str, int, int]]) -> None:
    async def run() -> None:
        clock = Clock()
        kept = store(clock, entries=3, size_bytes=3 * answer(clock).size_bytes)
        put = 0
        for what, number, amount in done:
            key = b"%d" % number
            match what:
                case "put":
                    put += 1
                    await kept.put(key, answer(clock, ttl_s=float(amount)))
                    assert await kept.get(key) is not None
                case "get":
                    found = await kept.get(key)
                    assert found is None or found.worthless_s > clock.now_s
                case "delete":
                    await kept.delete(key)
                case "sweep":
                    await kept.sweep()
                case "wait":
                    clock.now_s += amount
            told = kept.statistics()
            entries, size = told.entries or 0, told.bytes or 0
            assert entries <= 3
            assert size == entries * answer(clock).size_bytes
            assert entries + (told.evicted or 0) + (told.expired or 0) <= put

    asyncio.run(run())
