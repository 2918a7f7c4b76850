"""How a server loads, keeps, queues and drops: short scenes, each of which gives facts to compare.

Facts are plain JSON values that no machine's speed changes. The server has one slot per model, as is the
default; ``CROWDED_SCENES`` need a server of ours that holds one model and lets one request wait.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import aiohttp

from ollamalab.settings import ServerSettings

Facts = Mapping[str, Any]

CROWDED = ServerSettings(max_queue=1, max_loaded_models=1)

_SHORT = {"num_predict": 3, "num_ctx": 512}
_ENDLESS = {
    "prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "raw": True,  # a chat might come to an end
    "options": {"num_predict": 100_000, "num_ctx": 512, "temperature": 0},
}
_LOADED_ANEW_S = 0.1  # a warm load_duration is about 1 ms, a load at least a quarter of a second
_POLL_S = 0.02

#: Nothing tells from outside that a request has taken its place in a queue, or that the server has counted
#: one as ended whose last byte is here; this is far more than it takes.
_SETTLED_S = 0.4


@dataclass
class House:
    """A server and two of its models; ``pids`` gives its processes, parents first, if it is ours."""

    http: aiohttp.ClientSession
    model: str
    other: str
    pids: Callable[[], tuple[int, ...]]

    async def post(self, path: str, **body: Any) -> tuple[int, Any]:
        """Return status and JSON of an answer in one piece."""
        async with self.http.post(path, json={"stream": False, **body}) as reply:
            return reply.status, json.loads(await reply.read())

    async def generate(self, **body: Any) -> dict[str, Any]:
        """Return a good answer to a short prompt."""
        asked = {"model": self.model, "prompt": "Say hello.", "options": _SHORT, **body}
        status, answer = await self.post("/api/generate", **asked)
        assert status == 200, answer
        assert isinstance(answer, dict)
        return answer

    async def is_loaded_anew(self, **body: Any) -> bool:
        """Whether a request made the server load its model."""
        return bool((await self.generate(**body))["load_duration"] / 1e9 > _LOADED_ANEW_S)

    @asynccontextmanager
    async def endless(self) -> AsyncIterator[None]:
        """Keep the model busy from its first token until the end of the ``with``, then hang up."""
        async with self.http.post("/api/generate", json={"model": self.model, **_ENDLESS}) as reply:
            assert reply.status == 200
            await reply.content.readline()
            yield
            while line := reply.content.read_nowait():
                assert b'"done":true' not in line, "the answer that should have no end has ended"

    async def ps(self) -> list[dict[str, Any]]:
        """Return what is loaded, now."""
        async with self.http.get("/api/ps") as reply:
            listing = json.loads(await reply.read())["models"]
        assert isinstance(listing, list)
        return listing

    async def names(self) -> list[str]:
        """Return the names of what is loaded once all has settled, with "model" and "other" for the two."""
        await asyncio.sleep(_SETTLED_S)
        known = {self.model: "model", self.other: "other"}
        return [known.get(entry["name"], entry["name"]) for entry in await self.ps()]

    async def expires_in_s(self) -> int | str:
        """Return for how long the first listed model stays, to the nearest 10 s."""
        await asyncio.sleep(_SETTLED_S)
        (entry, *_) = await self.ps()
        left_s = datetime.fromisoformat(entry["expires_at"]).timestamp() - time.time()
        return "for ever" if left_s > 1e9 else round(left_s, -1)

    async def empty(self) -> None:
        """Unload both, and wait until nothing is listed."""
        for model in (self.model, self.other):
            await self.post("/api/generate", model=model, keep_alive=0)
        await self.emptied()

    async def emptied(self) -> None:
        """Wait until nothing is listed."""
        while await self.ps():  # noqa: ASYNC110 - a server elsewhere sends no event
            await asyncio.sleep(_POLL_S)


async def preload_and_unload(house: House) -> Facts:
    """An empty prompt loads, keep_alive 0 unloads at once, and the list follows."""
    before = await house.names()
    _, loaded = await house.post("/api/generate", model=house.model)
    after, stays = await house.names(), await house.expires_in_s()
    (entry,) = await house.ps()
    _, unloaded = await house.post("/api/chat", model=house.model, messages=[], keep_alive=0)
    return {
        "before": before,
        "loading says": loaded["done_reason"],
        "loading tells durations": "load_duration" in loaded,
        "after": after,
        "fields": list(entry),
        "stays_s": stays,
        "unloading says": unloaded["done_reason"],
        "right after": await house.names(),
        "unloading what is not loaded says": (
            await house.post("/api/generate", model=house.model, keep_alive=0)
        )[1]["done_reason"],
    }


async def keep_alive_sticks(house: House) -> Facts:
    """A request's keep_alive stays for those that follow without one."""
    stays = {}
    for asked in (None, "10m", None, 20, -1, None, "1h30m"):
        await house.generate(**({} if asked is None else {"keep_alive": asked}))
        stays[f"{len(stays)}: {asked}"] = await house.expires_in_s()
    return stays


async def keep_alive_ends(house: House) -> Facts:
    """An idle model goes when its time has passed since the end of its last request."""
    await house.generate(keep_alive="2s")
    await asyncio.sleep(_SETTLED_S)
    first = (await house.ps())[0]["expires_at"]
    await house.generate()
    await asyncio.sleep(_SETTLED_S)
    second = (await house.ps())[0]["expires_at"]
    await house.emptied()
    return {
        "each request moves it": first < second,
        "gone not before": datetime.fromisoformat(second).timestamp() <= time.time() + _POLL_S,
        "next loads anew": await house.is_loaded_anew(),
    }


async def one_shot(house: House) -> Facts:
    """keep_alive 0 with a prompt answers it and unloads."""
    answer = await house.generate(keep_alive=0)
    await house.emptied()
    return {"done_reason": answer["done_reason"] in ("stop", "length"), "left": await house.names()}


async def options_that_reload(house: House) -> Facts:
    """Load options cost a load when they change; others do not."""
    await house.generate()
    changes: dict[str, dict[str, Any]] = {
        "the same": {},
        "temperature": {"options": _SHORT | {"temperature": 0.1}},
        "seed": {"options": _SHORT | {"seed": 1}},
        "unknown option": {"options": _SHORT | {"mirostat": 1}},
        "num_keep": {"options": _SHORT | {"num_keep": 5}},
        "num_ctx": {"options": _SHORT | {"num_ctx": 1024}},
        "num_ctx back": {},
        "num_batch": {"options": _SHORT | {"num_batch": 64}},
        "num_batch left out": {},
        "num_thread": {"options": _SHORT | {"num_thread": 1}},
        "num_thread left out": {},
        "shift off": {"shift": False},
        "shift on again": {"shift": True},
        "truncate off": {"truncate": False},
        "name in capitals": {"model": house.model.upper()},
        "chat of the same options": {},
    }
    facts = {change: await house.is_loaded_anew(**body) for change, body in changes.items()}
    return facts | {"context": (await house.ps())[0]["context_length"]}


async def context_in_use(house: House) -> Facts:
    """The list tells the context of a slot, as it is in use."""
    facts = {}
    for asked in (1024, 1):
        await house.post("/api/generate", model=house.model, options={"num_ctx": asked})
        facts[str(asked)] = (await house.ps())[0]["context_length"]
    return facts


async def first_come_first_served(house: House) -> Facts:
    """One slot serves in the order of arrival."""
    done: list[int] = []

    async def one(number: int) -> None:
        await house.generate()
        done.append(number)

    async with AsyncExitStack() as busy, asyncio.TaskGroup() as group:
        await busy.enter_async_context(house.endless())
        for number in range(4):
            group.create_task(one(number))
            await asyncio.sleep(_SETTLED_S)
        await busy.aclose()
    return {"order": done}


async def a_waiting_stream_hears_nothing(house: House) -> Facts:
    """Not even a status line comes before the first token."""
    body = {"model": house.model, "prompt": "x", "options": _SHORT}
    async with house.endless():
        waiting = asyncio.ensure_future(house.http.post("/api/generate", json=body).__aenter__())
        heard, _ = await asyncio.wait([waiting], timeout=_SETTLED_S)
    reply = await waiting
    await reply.read()
    return {"heard while it waited": bool(heard), "status": reply.status}


async def hanging_up_frees_the_slot(house: House) -> Facts:
    """Who goes away in the middle of an endless answer, or while waiting for it, is forgotten."""
    async with house.endless():
        waiting = asyncio.create_task(house.generate(**_ENDLESS))
        await asyncio.sleep(_SETTLED_S)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    return {"next": (await house.generate())["done"], "loaded": await house.names()}


async def hanging_up_while_it_loads(house: House) -> Facts:
    """A load is given up with the last request that wanted it; the next one starts another."""
    loading = asyncio.create_task(house.post("/api/generate", model=house.model))
    await asyncio.sleep(_POLL_S)
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    return {"next loads anew": await house.is_loaded_anew(), "loaded": await house.names()}


async def the_list_while_it_loads(house: House) -> Facts:
    """A model is listed once it has been loaded, not before; the list answers meanwhile."""
    loading = asyncio.create_task(house.post("/api/generate", model=house.model))
    seen: list[list[str]] = []
    while not loading.done():
        names = [entry["name"] for entry in await house.ps()]
        if seen[-1:] != [names]:
            seen.append(names)
        await asyncio.sleep(_POLL_S)
    await loading
    return {"first": seen[0], "last": await house.names(), "then": seen[1:] in ([], [[house.model]])}


async def unloading_a_busy_model(house: House) -> Facts:
    """keep_alive 0 is answered at once, and what runs is finished first."""
    body = {"model": house.model, "prompt": "Count.", "options": {"num_predict": 40, "num_ctx": 512}}
    async with house.http.post("/api/generate", json=body) as reply:
        await reply.content.readline()
        _, answer = await house.post("/api/generate", model=house.model, keep_alive=0)
        last = json.loads((await reply.read()).splitlines()[-1])
    await house.emptied()
    return {"says": answer["done_reason"], "the other finished": last["done"], "left": await house.names()}


async def two_models_by_expiry(house: House) -> Facts:
    """Both stay, and the list begins with the one that stays longest."""
    await house.post("/api/generate", model=house.model, keep_alive="5m")
    await house.post("/api/generate", model=house.other, keep_alive="10m")
    first = await house.names()
    await house.post("/api/generate", model=house.model, keep_alive=-1)
    return {"first": first, "then": await house.names()}


async def one_model_at_a_time(house: House) -> Facts:
    """The second model takes the place of the first, whatever that was promised."""
    await house.post("/api/generate", model=house.model, keep_alive=-1)
    before = await house.names()
    await house.post("/api/generate", model=house.other)
    return {"before": before, "after": await house.names()}


async def a_full_queue(house: House) -> Facts:
    """Of those that need a load behind a busy model two wait, one of them in the queue; others get 503."""
    bodies = {"model": house.other, "prompt": "x", "options": _SHORT}
    async with house.endless():
        waiting = []
        for _ in range(2):
            waiting.append(asyncio.create_task(house.post("/api/generate", **bodies)))
            await asyncio.sleep(_SETTLED_S)
        refused = [
            await house.post("/api/generate", **bodies),
            await house.post("/api/generate", model=house.other),
            await house.post("/api/chat", model=house.other, messages=[{"role": "user", "content": "x"}]),
            await house.post(
                "/v1/chat/completions", model=house.other, messages=[{"role": "user", "content": "x"}]
            ),
        ]
        async with house.http.get("/api/version") as reply:
            alive = reply.status
        waited = [task.done() for task in waiting]
        listed = await house.names()
    served = [status for status, _ in await asyncio.gather(*waiting)]
    return {
        "refused": refused,
        "done while it was busy": waited,
        "version meanwhile": alive,
        "loaded meanwhile": listed,
        "served afterwards": served,
    }


async def an_engine_that_dies(house: House) -> Facts:
    """Whoever waits for it is told, status or no status, and the next request loads anew."""
    await house.generate()
    body = {"model": house.model, **_ENDLESS}
    async with house.http.post("/api/generate", json=body) as streaming:
        await streaming.content.readline()
        os.kill(house.pids()[-1], signal.SIGKILL)
        last = json.loads((await streaming.read()).splitlines()[-1])
    anew = await house.is_loaded_anew()
    in_one_piece = asyncio.create_task(house.post("/api/generate", **body))
    await asyncio.sleep(_SETTLED_S)
    os.kill(house.pids()[-1], signal.SIGKILL)
    status, answer = await in_one_piece
    # After the colon comes how it died: Ollama has "unexpected EOF", the embedded server an account.
    return {
        "fields of the last line": list(last),
        "last line": last["error"].partition(": ")[0],
        "next loads anew": anew,
        "in one piece": [status, answer["error"].partition(": ")[0]],
        "and after that": await house.is_loaded_anew(),
    }


async def the_list_after_an_engine_died(house: House) -> Facts:
    """Whether a model is listed whose engine is dead, before anybody has asked it again."""
    await house.generate()
    os.kill(house.pids()[-1], signal.SIGKILL)
    return {"listed": await house.names()}


Scene = Callable[[House], Awaitable[Facts]]

DEFAULT_SCENES: tuple[Scene, ...] = (
    preload_and_unload,
    keep_alive_sticks,
    keep_alive_ends,
    one_shot,
    options_that_reload,
    context_in_use,
    first_come_first_served,
    a_waiting_stream_hears_nothing,
    hanging_up_frees_the_slot,
    hanging_up_while_it_loads,
    the_list_while_it_loads,
    unloading_a_busy_model,
    two_models_by_expiry,
)
CROWDED_SCENES: tuple[Scene, ...] = (
    one_model_at_a_time,
    a_full_queue,
    an_engine_that_dies,
    the_list_after_an_engine_died,
)
