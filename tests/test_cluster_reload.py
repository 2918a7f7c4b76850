"""A running ``serve`` takes other upstreams from its file at SIGHUP, and nobody's request is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
from cluster_nodes import MODEL, Node, running

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}


class Gateway:
    """A ``serve`` process with a settings file."""

    def __init__(self, url: str, process: asyncio.subprocess.Process, file: Path, log: Path) -> None:
        self.url = url
        self.process = process
        self.http = aiohttp.ClientSession(url)
        self._file = file
        self._log = log

    async def take(self, *upstreams: tuple[str, Node], also: str = "") -> None:
        """Write the file anew and have it read."""
        self._file.write_text(settings_of(*upstreams) + also)
        await self.reload()

    async def reload(self, text: str | None = None) -> None:
        """Have the file read, with other text if given; return once it has been."""
        if text is not None:
            self._file.write_text(text)
        before = self._reloads()
        self.process.send_signal(signal.SIGHUP)
        while self._reloads() == before:  # noqa: ASYNC110 - a log sends no event
            await asyncio.sleep(0.005)

    async def upstreams(self) -> dict[str, dict[str, Any]]:
        """Return what ``/lab/status`` says of each."""
        async with self.http.get("/lab/status") as reply:
            return {entry["name"]: entry for entry in (await reply.json())["upstreams"]}

    async def chat(self) -> tuple[str, dict[str, Any]]:
        """Return who answered, and the last line."""
        async with self.http.post("/api/chat", json=CHAT) as reply:
            assert reply.status == 200, await reply.text()
            lines = (await reply.read()).splitlines()
            return reply.headers["x-ollamalab-upstream"], json.loads(lines[-1])

    def log(self) -> str:
        return self._log.read_text()

    def _reloads(self) -> int:
        return self.log().count("event=reload")


def settings_of(*upstreams: tuple[str, Node]) -> str:
    entries = [{"name": name, "url": node.url} for name, node in upstreams]
    return f"upstream: {json.dumps(entries)}\nprobe_interval: 0.05\nstop_timeout: 0\n"


@asynccontextmanager
async def gateway(folder: Path, *upstreams: tuple[str, Node], also: str = "") -> AsyncIterator[Gateway]:
    file, log = folder / "gateway.yaml", folder / "log"
    file.write_text(settings_of(*upstreams) + also)
    command = [sys.executable, "-m", "ollamalab", "serve", "--port", "0", "--config", str(file)]
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=output)
        assert process.stdout is not None
        first = (await process.stdout.readline()).decode()
        serving = Gateway(first.removeprefix("listening on ").strip(), process, file, log)
        try:
            yield serving
        finally:
            await serving.http.close()
            process.kill()
            await process.communicate()


async def test_upstreams_come_and_go_under_load_and_no_request_is_lost(tmp_path: Path) -> None:
    a, b, c = Node(), Node(), Node()
    async with running(a, b, c), gateway(tmp_path, ("a", a), ("b", b)) as serving:
        found: Counter[str] = Counter()
        is_over = False

        async def client() -> None:
            while not is_over:
                name, last = await serving.chat()
                assert last["done"]
                found[name] += 1

        async with asyncio.TaskGroup() as clients:
            for _ in range(8):
                clients.create_task(client())
            for wanted in (("a", "b", "c"), ("b", "c"), ("c",), ("a", "c"), ("a", "b", "c"), ("b",)):
                nodes = {"a": a, "b": b, "c": c}
                await serving.take(*((name, nodes[name]) for name in wanted))
                before = {name: found[name] for name in wanted}
                while any(found[name] < count + 5 for name, count in before.items()):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            is_over = True
        statuses = await serving.upstreams()
        while set(statuses) != {"b"}:
            statuses = await serving.upstreams()
        assert (statuses["b"]["state"], statuses["b"]["in_flight"]) == ("up", 0)
        assert found.total() == sum(len(node.asked) for node in (a, b, c))  # each was sent once


async def test_one_that_leaves_finishes_its_stream_first(tmp_path: Path) -> None:
    a, b = Node(), Node()
    a.gate.clear()
    async with running(a, b), gateway(tmp_path, ("a", a)) as serving:
        held = asyncio.create_task(serving.chat())
        await a.called(1)
        await serving.take(("b", b))
        assert (await serving.chat())[0] == "b"
        assert (await serving.upstreams())["a"]["state"] == "leaving"
        a.gate.set()
        assert (await held)[1]["done"]
        while "a" in await serving.upstreams():
            pass


async def test_a_bad_file_changes_nothing_and_says_why(tmp_path: Path) -> None:
    a, b = Node(), Node()
    async with running(a, b), gateway(tmp_path, ("a", a)) as serving:
        for text, words in (
            ("upstream: [", "not YAML"),
            ("upstream: []\n", "no upstream is given"),
            (settings_of(("b", b), ("b", a)), "two upstreams have the name b"),
            (f"upstream: {{url: '{b.url}', api_key_file: /nope}}\n", "cannot read /nope"),
        ):
            await serving.reload(text)
            assert words in serving.log().splitlines()[-1]
            assert "event=reload_failed" in serving.log().splitlines()[-1]
            assert (await serving.chat())[0] == "a"


async def test_what_needs_a_restart_is_said(tmp_path: Path) -> None:
    a, b = Node(), Node()
    async with running(a, b), gateway(tmp_path, ("a", a)) as serving:
        await serving.take(("a", a), ("b", b), also="max_queue: 7\ncache: memory\nport: 0\n")
        said = "event=reload_incomplete restart_needed_for=cache,max_queue"
        while said not in serving.log():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert "event=reloaded changed=upstream\n" in serving.log()
        assert set(await serving.upstreams()) == {"a", "b"}


async def test_warm_models_are_taken_too_and_no_request_is_lost(tmp_path: Path) -> None:
    """The models to be loaded change under load; the nodes count a load as a request like any other."""
    a, b = Node(), Node()
    async with running(a, b), gateway(tmp_path, ("a", a), ("b", b)) as serving:
        answered, is_over = 0, False

        async def client() -> None:
            nonlocal answered
            while not is_over:
                assert (await serving.chat())[1]["done"]
                answered += 1

        async with asyncio.TaskGroup() as clients:
            for _ in range(4):
                clients.create_task(client())
            for also in ("warm: [m]\n", "warm_keep: auto\n", ""):
                await serving.take(("a", a), ("b", b), also=also)
                seen = answered
                while answered < seen + 20:  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
            is_over = True
        log = serving.log()
        assert "event=reloaded changed=warm\n" in log
        assert log.count("event=reloaded changed=warm,warm_keep\n") == 1
        assert "event=reloaded changed=warm_keep\n" in log
        assert "event=reload_incomplete" not in log
        assert "Traceback" not in log


async def test_another_address_under_the_same_name_is_another_server(tmp_path: Path) -> None:
    a, b = Node(), Node()
    async with running(a, b), gateway(tmp_path, ("gpu", a)) as serving:
        await serving.chat()
        await serving.take(("gpu", b))
        await serving.chat()
        assert (len(a.asked), len(b.asked)) == (1, 1)


async def test_another_key_in_the_same_file_is_sent_from_then_on(tmp_path: Path) -> None:
    a, key = Node(), tmp_path / "key"
    async with running(a), gateway(tmp_path, ("a", a)) as serving:
        key.write_text("first-secret\n")
        upstream = {"name": "a", "url": a.url, "api_key_file": str(key)}
        await serving.reload(f"upstream: {json.dumps(upstream)}\nprobe_interval: 60\n")
        await serving.chat()
        assert a.keys[-1] == "first-secret"
        key.write_text("second-secret\n")
        await serving.reload()
        await serving.chat()
        assert a.keys[-1] == "second-secret"
        key.write_text("two words\n")
        await serving.reload()
        assert "must hold one key" in serving.log().splitlines()[-1]
        await serving.chat()
        assert a.keys[-1] == "second-secret"


async def test_clients_come_and_go_with_their_keys(tmp_path: Path) -> None:
    a, keys = Node(), tmp_path / "keys"
    keys.write_text("alice secret-of-alice\n")
    async with running(a), gateway(tmp_path, ("a", a), also=f"api_key_file: {keys}\n") as serving:

        async def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            async with serving.http.post("/api/chat", json=CHAT, headers=headers) as reply:
                await reply.read()
                return reply.status

        assert [await status("secret-of-alice"), await status("secret-of-bob")] == [200, 401]
        keys.write_text("bob secret-of-bob\n")
        await serving.reload()
        assert [await status("secret-of-alice"), await status("secret-of-bob")] == [401, 200]
        keys.unlink()
        await serving.reload()
        assert "event=reload_failed error=cannot read the key file" in serving.log().splitlines()[-1]
        assert [await status("secret-of-alice"), await status("secret-of-bob")] == [401, 200]
