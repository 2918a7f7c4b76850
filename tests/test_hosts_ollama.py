"""The target ``ollama`` with a real Ollama: run where ``ollama`` is on PATH, CI has none."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from ollama_standin import free_url

from ollamalab.client import OllamaClient
from ollamalab.errors import TargetError
from ollamalab.hosts import SlotSampler, models_folder, open_target, weights_file
from ollamalab.hosts.local import LLAMA_SERVER_VARIABLE
from ollamalab.settings import ServerSettings
from ollamalab.settings.variables import NAMED_AT_START

pytestmark = [
    pytest.mark.ollama,
    pytest.mark.skipif(shutil.which("ollama") is None, reason="no `ollama` on PATH"),
]


def alive(pids: Sequence[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids]


def assert_gone(processes: Sequence[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=30)
    assert not left


@pytest.fixture
def llama_server() -> Path:
    """The engine that came with it."""
    program = Path(shutil.which("ollama") or "").resolve().parent.parent / "lib" / "ollama" / "llama-server"
    if not program.exists():
        pytest.skip(f"no engine at {program}")
    return program


async def test_it_is_started_and_ended() -> None:
    async with open_target("ollama", ServerSettings(num_parallel=2)) as target:
        processes = alive(target.pids())
        assert processes[0].name() == "ollama"
        assert (await target.describe())["version"] == target.version
        assert "server config" in target.log_tail(1000)
    assert_gone(processes)


async def test_every_setting_of_ours_is_known_to_it() -> None:
    """Of this very version: the settings and the variables that the table lists."""
    every = ServerSettings(
        num_parallel=2,
        max_loaded_models=2,
        max_queue=7,
        keep_alive_s=60,
        load_timeout_s=60,
        context_length=512,
        flash_attention=True,
        kv_cache_type="q8_0",
        num_threads=1,
    )
    others = NAMED_AT_START - every.environment().keys() - {"OLLAMA_HOST", "OLLAMA_MODELS"}
    async with open_target("ollama", every, environment=dict.fromkeys(others, "")) as target:
        assert not target.ignored.keys() & others


async def test_a_variable_that_it_no_longer_knows_is_refused_and_the_process_gone() -> None:
    before = set(psutil.Process().children())
    with pytest.raises(TargetError, match="OLLAMA_NEW_ENGINE=1 would do nothing on ollama"):
        async with open_target("ollama", environment={"OLLAMA_NEW_ENGINE": "1"}):
            pass
    assert set(psutil.Process().children()) <= before


async def test_it_may_have_a_folder_of_models_of_its_own(tmp_path: Path) -> None:
    own = {"OLLAMA_MODELS": str(tmp_path / "models")}
    async with open_target("ollama", environment=own) as target:
        assert (await target.describe())["models"] == []
    with pytest.raises(TargetError, match="has no model 'smollm2:135m'; it has none"):
        async with open_target("ollama", models=["smollm2:135m"], environment=own):
            pass


async def test_it_takes_a_chosen_port_and_two_run_side_by_side() -> None:
    port = int(free_url().rpartition(":")[2])
    async with open_target("ollama", port=port) as first, open_target("ollama") as second:
        assert first.url == f"http://127.0.0.1:{port}" != second.url
        with pytest.raises(TargetError, match=f"port {port} cannot be had"):
            async with open_target("ollama", port=port):
                pass


async def test_a_server_that_dies_at_start_is_reported_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        TargetError, match=r"`ollama serve` ended with status 1; it last said: .*not a directory"
    ):
        async with open_target("ollama", environment={"OLLAMA_MODELS": str(tmp_path / "file" / "models")}):
            pass


async def test_its_engine_serves_the_embedded_target(
    llama_server: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ``llama-server`` given by its path: the same scheduler, on whatever hardware that was built for."""
    monkeypatch.setenv(LLAMA_SERVER_VARIABLE, str(llama_server))
    settings = ServerSettings(num_parallel=2, context_length=512, num_threads=1)
    async with open_target("embedded", settings, models=["smollm2:135m"]) as target:
        async with OllamaClient(target.url) as client:
            answer = await client.chat("smollm2:135m", "Say hello.", options={"num_predict": 4})
        assert answer.text
        assert "llama-server" in {psutil.Process(pid).name() for pid in target.pids()}
        slots = await asyncio.to_thread(SlotSampler(target.slots).read)
        assert slots["slots:smollm2:135m"]["slots"] == 2
        assert (await target.describe())["llama_server"] == str(llama_server)


async def test_the_file_of_each_model_is_found_in_its_folder() -> None:
    async with open_target("ollama") as target:
        models = (await target.describe())["models"]
        folder = models_folder(os.environ)
    assert folder
    for model in models:
        file = weights_file(folder, model["name"])
        assert file
        assert file.is_file()
