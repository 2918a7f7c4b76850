"""Answers for tests of stores."""

from __future__ import annotations

import random
import time

from ollamalab.cache import Answer

#: A moment in 2026.
NOW_S = 1_780_000_000.0


class Clock:
    """Wall clock that stands until it is moved."""

    def __init__(self, now_s: float = NOW_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


def make_answer(
    *,
    body: bytes = b"{}\n",
    pieces: tuple[bytes, ...] | None = None,
    stored_s: float = NOW_S,
    ttl_s: float = 300.0,
    stale_s: float = 600.0,
) -> Answer:
    """Return an answer; one piece unless ``pieces`` says otherwise."""
    pieces = (body,) if pieces is None else pieces
    return Answer(
        status=200,
        headers={"content-type": "application/x-ndjson"},
        pieces=pieces,
        offsets_s=tuple(0.01 * place for place in range(len(pieces))),
        is_stream=True,
        is_openai=False,
        stored_s=stored_s,
        ttl_s=ttl_s,
        stale_s=stale_s,
        upstream_s=1.5,
        model_key="registry.ollama.ai/library/m:latest",
        digest="0" * 64,
    )


def vouched(key: bytes, number: int) -> Answer:
    """Return an answer up to 30 KB long that shows itself whether it is whole, and its key's."""
    source = random.Random(f"{key.hex()} {number}")
    lines = (source.randbytes(source.randrange(3_000)) for _ in range(source.randrange(1, 20)))
    return make_answer(pieces=(b"%d" % number, *lines), stored_s=time.time())


def number_of(key: bytes, answer: Answer) -> int:
    """Return which of a key's answers this is, having checked every byte."""
    number = int(answer.pieces[0])
    assert answer.pieces == vouched(key, number).pieces
    return number
