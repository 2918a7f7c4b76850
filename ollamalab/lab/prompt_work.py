"""How many tokens of a prompt an engine worked on, by the engine's own counters.

*Sent* are all tokens of a prompt: Ollama's ``prompt_eval_count`` counts them, cached or not. *Evaluated* are
those that the engine worked on. Ollama has no field for them; llama.cpp's server, which is its engine, counts
them (``/metrics``), and it tells which slot had which task last (``/slots``).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ollamalab.connection import OllamaConnection
from ollamalab.errors import SamplerUnavailable
from ollamalab.hosts import Target
from ollamalab.protocol.upstream import Request

_OK = 200
_EVALUATED = re.compile(r"^llamacpp:prompt_tokens_total (\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class EngineCount:
    """What one engine has done so far.

    Attributes:
        evaluated_tokens: Of all prompts; None if it does not count.
        tasks: Slot to the number of the task that it had last, -1 before the first.
    """

    evaluated_tokens: int | None
    tasks: Mapping[int, int]


@dataclass(frozen=True, kw_only=True)
class PromptWork:
    """What became of one prompt.

    Attributes:
        evaluated_tokens: Those that an engine worked on; None where it does not tell.
        slot: Number of the slot that took it; None where the engine does not tell.
    """

    evaluated_tokens: int | None
    slot: int | None


def parse_engine(metrics: str, slots: Sequence[Mapping[str, Any]]) -> EngineCount:
    """Return what llama.cpp's ``/metrics`` and ``/slots`` say; "" and none where they are off."""
    found = _EVALUATED.search(metrics)
    return EngineCount(
        evaluated_tokens=round(float(found[1])) if found else None,
        tasks={slot["id"]: slot.get("id_task", -1) for slot in slots},
    )


def work_between(before: Mapping[str, EngineCount], after: Mapping[str, EngineCount]) -> PromptWork:
    """Return what one request made the engines do.

    Args:
        before: Engine, by its address, to what it had done; one that the request loaded is missing.
        after: The same, afterwards. None at all: nothing is known.
    """
    unborn = EngineCount(evaluated_tokens=0, tasks={})
    tokens: list[int | None] = []
    slot = None
    for url, count in after.items():
        earlier = before.get(url, unborn)
        if count.evaluated_tokens is None or earlier.evaluated_tokens is None:
            tokens.append(None)
        else:
            tokens.append(count.evaluated_tokens - earlier.evaluated_tokens)
        for number, task in count.tasks.items():
            if task != earlier.tasks.get(number, -1):
                slot = number
    known = [each for each in tokens if each is not None]
    is_known = bool(tokens) and len(known) == len(tokens)
    return PromptWork(evaluated_tokens=sum(known) if is_known else None, slot=slot)


def tokens_between(before: Mapping[str, EngineCount], after: Mapping[str, EngineCount]) -> int | None:
    """Return how many prompt tokens engines evaluated between two counts.

    None if one of them does not tell, or one has gone: nobody knows what it had done by then.
    """
    return work_between(before, after).evaluated_tokens if before.keys() <= after.keys() else None


async def count_engines(targets: Iterable[Target]) -> dict[str, EngineCount]:
    """Return what the engines of servers have done so far, by address.

    A server whose engines cannot be asked stands for them, with nothing told: what others tell is not all.

    Raises:
        UpstreamError: A server or an engine does not answer.
    """
    counts = {}
    for target in targets:
        try:
            engines = await asyncio.to_thread(target.engines)
        except SamplerUnavailable:
            counts[target.url] = EngineCount(evaluated_tokens=None, tasks={})
            continue
        for engine in engines:
            async with OllamaConnection(engine.url) as connection:
                metrics = await _get(connection, "/metrics")
                slots = msgspec.json.decode(await _get(connection, "/slots") or b"[]")
            counts[engine.url] = parse_engine(metrics.decode(), slots)
    return counts


async def _get(connection: OllamaConnection, path: str) -> bytes:
    """Return a body; nothing for another status than 200."""
    async with await connection.send(Request(method="GET", path=path)) as reply:
        body = b"".join([chunk async for chunk in reply.chunks()])
        return body if reply.status == _OK else b""
