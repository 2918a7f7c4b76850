"""Which digest a model has, read from the upstream's list."""

from __future__ import annotations

import asyncio

import pytest
from held_upstream import DIGEST, MODEL, HeldUpstream, ReadyReply

from ollamalab.cache import UpstreamDigests
from ollamalab.errors import UpstreamUnavailable
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.upstream import Reply, Request

KEY = parse_name(MODEL).key


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_names_are_compared_whole_and_in_any_case() -> None:
    upstream = HeldUpstream()
    upstream.digests = {"Tiny": "1" * 64, "hf.co/Org/Model:Q4": "2" * 64, "bad name": "3" * 64}
    digests = UpstreamDigests(upstream)
    for name, digest in (("tiny:latest", "1"), ("library/TINY", "1"), ("HF.co/org/model:q4", "2")):
        assert await digests.digest_of(parse_name(name).key) == digest * 64
    assert await digests.digest_of(parse_name("tiny:other").key) is None


async def test_the_list_is_looked_at_again_on_use_when_it_is_two_seconds_old() -> None:
    upstream, clock = HeldUpstream(), Clock()
    digests = UpstreamDigests(upstream, clock=clock)
    await asyncio.gather(*(digests.digest_of(KEY) for _ in range(10)))
    upstream.digests[MODEL] = "b" * 64
    clock.now_s = 1.9
    assert await digests.digest_of(KEY) == DIGEST
    assert upstream.lists_served == 1
    clock.now_s = 2.0
    assert await digests.digest_of(KEY) == "b" * 64
    assert upstream.lists_served == 2


async def test_what_was_known_stays_in_use_while_the_upstream_is_down() -> None:
    upstream, clock = HeldUpstream(), Clock()
    digests = UpstreamDigests(upstream, clock=clock)
    await digests.digest_of(KEY)
    upstream.lists_failing = UpstreamUnavailable("refused")
    for now_s in (2.0, 3.0, 6.9):  # tried once, then left alone for five seconds
        clock.now_s = now_s
        assert await digests.digest_of(KEY) == DIGEST
    assert upstream.lists_served == 2
    upstream.lists_failing = None
    clock.now_s = 7.0
    assert await digests.digest_of(KEY) == DIGEST
    assert upstream.lists_served == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [(503, b'{"models":[]}'), (200, b"<html>"), (200, b'{"models":5}'), (200, b"")],
)
async def test_a_list_that_is_none_changes_nothing(status: int, body: bytes) -> None:
    class Odd(HeldUpstream):
        is_odd = False

        async def send(self, request: Request) -> Reply:
            return ReadyReply(body, status) if self.is_odd else await super().send(request)

    upstream, clock = Odd(), Clock()
    digests = UpstreamDigests(upstream, clock=clock)
    await digests.digest_of(KEY)
    upstream.is_odd, clock.now_s = True, 2.0
    assert await digests.digest_of(KEY) == DIGEST
