"""The embedded target with a real model: what reaches it, what can be seen of it, and how it ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest

from ollamalab.embedded.fetch import DEFAULT_MODEL, ensure_model
from ollamalab.embedded.models import ModelStore
from ollamalab.errors import TargetError
from ollamalab.host import ProcessSampler
from ollamalab.hosts import SlotSampler, Target, open_target
from ollamalab.hosts.local import LLAMA_SERVER_VARIABLE
from ollamalab.settings import ServerSettings

SETTINGS = ServerSettings(num_parallel=2, context_length=512, num_threads=1)


@pytest.fixture(scope="module")
def model() -> str:
    return ensure_model(DEFAULT_MODEL, ModelStore()).name.short


async def preload(target: Target, model: str) -> None:
    """Load a model by an empty prompt."""
    body = json.dumps({"model": model}).encode()
    with await asyncio.to_thread(urllib.request.urlopen, f"{target.url}/api/generate", body) as reply:
        assert json.load(reply)["done_reason"] == "load"


def processes(pids: Sequence[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids]


def assert_gone(ended: Sequence[psutil.Process]) -> None:
    _, left = psutil.wait_procs(ended, timeout=60)
    assert not left


async def test_settings_reach_the_engine_and_its_slots_and_processes_are_seen(model: str) -> None:
    """Slots per model, before and after a restart with more of them; nothing is left at the end."""
    async with open_target("embedded", SETTINGS, models=[model]) as target:
        server = processes(target.pids())
        assert "--threads 1" in " ".join(server[0].cmdline())
        slots, usage = SlotSampler(target.slots), ProcessSampler(target.pids)
        assert await asyncio.to_thread(slots.read) == {}
        await preload(target, model)
        first = processes(target.pids())
        assert len(first) > len(server)
        assert usage.read()["server"]["processes"] == len(first)
        idle = {"slots": 2, "busy": 0, "decoding": 0}
        assert await asyncio.to_thread(slots.read) == {f"slots:{model}": idle}
        await target.restart(ServerSettings(num_parallel=3, context_length=512, num_threads=1))
        assert_gone(first)
        await preload(target, model)
        assert await asyncio.to_thread(slots.read) == {f"slots:{model}": idle | {"slots": 3}}
        second = processes(target.pids())
        assert (await target.describe())["settings"]["num_parallel"] == 3
    assert_gone(second)


async def test_a_killed_server_takes_its_engine_along(model: str) -> None:
    async with open_target("embedded", SETTINGS, models=[model]) as target:
        await preload(target, model)
        family = processes(target.pids())
        family[0].kill()
        assert_gone(family)
        assert target.pids() == ()


def test_no_engine_outlives_a_killed_kernel(model: str) -> None:
    """``kill -9`` of the process that opened the target, with a model loaded."""
    code = (
        "import asyncio, sys, test_hosts_embedded as tests\n"
        "async def main():\n"
        "    async with tests.open_target('embedded', tests.SETTINGS) as target:\n"
        "        await tests.preload(target, sys.argv[1])\n"
        "        print(*target.pids(), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, model], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent
    ) as kernel:
        assert kernel.stdout
        family = processes([int(pid) for pid in kernel.stdout.readline().split()])
        assert len(family) > 1
        kernel.kill()
        assert_gone(family)


async def test_a_llama_server_that_cannot_be_run_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LLAMA_SERVER_VARIABLE, "/no/llama-server")
    with pytest.raises(TargetError, match="/no/llama-server is not a program that can be run"):
        async with open_target("embedded"):
            pass


async def test_a_model_that_is_not_there_is_named_with_the_next_step() -> None:
    with pytest.raises(TargetError, match=r"no model 'no-such-model'; it has .*`ollamalab models fetch`"):
        async with open_target("embedded", models=["no-such-model"]):
            pass
