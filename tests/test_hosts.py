"""Targets are started, reached, restarted and ended; nothing else is touched."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ollama_standin
import psutil
import pytest
from ollama_standin import free_url, serving
from tiny_lab import add_notebook

from ollamalab.errors import (
    SamplerUnavailable,
    SettingsError,
    TargetError,
)
from ollamalab.hosts import SlotSampler, check_target, open_target, opening, process
from ollamalab.hosts.gpus import gpu_variables
from ollamalab.hosts.web import get_json
from ollamalab.settings import ServerSettings

OLLAMA = {"/api/version": {"version": "0.33.0"}, "/api/tags": {"models": ollama_standin.MODELS}}


def alive(pids: Sequence[int]) -> list[psutil.Process]:
    return [psutil.Process(pid) for pid in pids]


def assert_gone(processes: Sequence[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=30)
    assert not left


def children() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE}


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Check that the test leaves no process behind."""
    before = children()
    yield
    assert children() <= before


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_left: None) -> None:
    """Put the stand-in on PATH as ``ollama``."""
    program = tmp_path / "bin" / "ollama"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec {sys.executable} {ollama_standin.__file__}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


def until(fact: Callable[[], Any]) -> Any:
    """Return the first answer that is something."""
    while not (found := fact()):
        pass
    return found


# What a target parameter may say


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("embedded", "embedded"),
        ("ollama", "ollama"),
        ("http://gpu2:11434/", "http://gpu2:11434"),
        ("gpu2:8080", "http://gpu2:8080"),
        ("localhost", "http://localhost:11434"),
        ("10.0.0.7", "http://10.0.0.7:11434"),
    ],
)
def test_a_target_is_a_kind_or_the_address_of_a_server(text: str, canonical: str) -> None:
    assert check_target(text) == canonical


@pytest.mark.parametrize("text", ["embeded", "Ollama", "gpu2", ""])
def test_a_mistyped_kind_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(SettingsError, match=f"embedded, ollama, or a URL.*{text!r}"):
        check_target(text)


def test_a_mistyped_kind_is_told_the_nearest() -> None:
    with pytest.raises(SettingsError, match=r"did you mean embedded\?"):
        check_target("embeded")


@pytest.mark.usefixtures("nothing_left")
async def test_a_mistyped_target_starts_nothing() -> None:
    with pytest.raises(SettingsError):
        async with open_target("embeded"):
            pass


# A server that we start


@pytest.mark.usefixtures("standin")
async def test_a_started_server_answers_on_a_port_of_its_own() -> None:
    async with open_target("ollama", models=["library/SmolLM2:135M"]) as target:
        assert target.kind == "ollama"
        assert target.version == "0.0.0-standin"
        assert target.changeable
        assert get_json(f"{target.url}/api/version", timeout_s=5) == {"version": "0.0.0-standin"}


@pytest.mark.usefixtures("standin")
async def test_the_server_and_its_engines_end_with_the_target() -> None:
    async with open_target("ollama") as target:
        pids = target.pids()
        server, engine = alive(pids)
        assert "ollama_standin" in " ".join(server.cmdline())
        assert "llama-server" in engine.cmdline()[0]
    assert_gone([server, engine])
    assert target.pids() == ()


@pytest.mark.usefixtures("standin")
async def test_the_server_ends_when_the_body_fails() -> None:
    processes = []

    async def fail() -> None:
        async with open_target("ollama") as target:
            processes.extend(alive(target.pids()))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert_gone(processes)


@pytest.mark.usefixtures("standin")
async def test_the_server_ends_when_its_task_is_cancelled() -> None:
    opened: asyncio.Queue[list[psutil.Process]] = asyncio.Queue()

    async def hold() -> None:
        async with open_target("ollama") as target:
            opened.put_nowait(alive(target.pids()))
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    processes = await opened.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert_gone(processes)


@pytest.mark.usefixtures("standin")
async def test_cancelling_a_start_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN", "mute")

    async def start() -> None:
        async with open_target("ollama"):
            pass

    before = children()
    task = asyncio.create_task(start())
    await asyncio.to_thread(until, lambda: children() - before)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.usefixtures("standin")
def test_no_server_outlives_a_killed_kernel() -> None:
    """``kill -9`` of the process that opened the target ends the server and its engine."""
    code = (
        "import asyncio\n"
        "from ollamalab.hosts import open_target\n"
        "async def main():\n"
        "    async with open_target('ollama') as target:\n"
        "        print(*target.pids(), flush=True)\n"
        "        await asyncio.Event().wait()\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as kernel:
        assert kernel.stdout
        processes = alive([int(pid) for pid in kernel.stdout.readline().split()])
        supervisor = psutil.Process(kernel.pid).children()
        assert len(processes) == 2
        kernel.kill()
        assert_gone(processes + supervisor)


@pytest.mark.usefixtures("standin")
def test_no_server_outlives_a_killed_runner(tmp_path: Path) -> None:
    """``kill -9`` of ``ollamalab run`` while a notebook has a server open: kernel, server and engine end."""
    lab = tmp_path / "lab"
    opening_one = (
        "from pathlib import Path\n"
        "from ollamalab.hosts import open_target\n"
        "import asyncio\n"
        "async with open_target('ollama') as target:\n"
        "    Path('pids.new').write_text(' '.join(map(str, target.pids())))\n"
        "    Path('pids.new').rename('pids')\n"
        "    await asyncio.Event().wait()"
    )
    add_notebook(lab, "01_waiting", opening_one)
    command = [sys.executable, "-m", "ollamalab", "run"]
    with subprocess.Popen(command, cwd=lab, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as runner:
        pids = lab / "notebooks" / "pids"
        until(lambda: pids.exists() or runner.poll() is not None)
        processes = alive([int(pid) for pid in pids.read_text().split()])
        assert len(processes) == 2
        everything = psutil.Process(runner.pid).children(recursive=True)
        assert set(processes) < set(everything)
        runner.kill()
        assert_gone(everything)


@pytest.mark.usefixtures("standin")
async def test_settings_reach_the_server_and_win_over_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An ``OLLAMA_*`` left over in the shell must not change an arm of an experiment."""
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "7")
    monkeypatch.setenv("OLLAMA_FLASH_ATTENTION", "1")
    monkeypatch.setenv("OLLAMA_MODELS", "/models")
    settings = ServerSettings(num_parallel=3, keep_alive_s=60)
    async with open_target("ollama", settings, environment={"CUDA_VISIBLE_DEVICES": "1"}) as target:
        environment = get_json(f"{target.url}/environment", timeout_s=5)
        assert target.settings == settings
    assert environment["OLLAMA_NUM_PARALLEL"] == "3"
    assert environment["OLLAMA_KEEP_ALIVE"] == "60s"
    assert environment["OLLAMA_MODELS"] == "/models"
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    assert "OLLAMA_FLASH_ATTENTION" not in environment


#: What a server names at its start that knows our settings and little else.
KNOWS = " ".join([*ServerSettings(flash_attention=True).environment(), "OLLAMA_HOST", "OLLAMA_MODELS"])


@pytest.mark.usefixtures("standin")
async def test_a_leftover_variable_that_the_server_does_not_know_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody asked for it here, so it is no reason to stop; the report says that it does nothing."""
    monkeypatch.setenv("STANDIN_KNOWS", KNOWS)
    monkeypatch.setenv("OLLAMA_NEW_ENGINE", "1")
    monkeypatch.setenv("OLLAMA_MODELS", "/models")
    async with open_target("ollama", ServerSettings(num_parallel=2)) as target:
        assert target.ignored.keys() == {"OLLAMA_NEW_ENGINE"}
        assert "gone since Ollama 0.30" in target.ignored["OLLAMA_NEW_ENGINE"]
        assert (await target.describe())["ignored_variables"] == target.ignored


@pytest.mark.usefixtures("standin")
async def test_a_variable_that_was_asked_for_and_does_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An arm whose knob is connected to nothing would be reported as "no difference"."""
    monkeypatch.setenv("STANDIN_KNOWS", KNOWS)
    with pytest.raises(TargetError, match=r"OLLAMA_SPEED=9 would do nothing on ollama 0\.0\.0-standin: "):
        async with open_target("ollama", environment={"OLLAMA_SPEED": "9"}):
            pass


@pytest.mark.usefixtures("standin")
async def test_a_setting_that_the_server_does_not_know_is_refused_unless_it_is_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN_KNOWS", KNOWS.replace("OLLAMA_KV_CACHE_TYPE", ""))
    async with open_target("ollama", ServerSettings(num_parallel=2)):
        pass
    with pytest.raises(TargetError, match="OLLAMA_KV_CACHE_TYPE=q8_0 would do nothing"):
        async with open_target("ollama", ServerSettings(kv_cache_type="q8_0")):
            pass


@pytest.mark.usefixtures("standin")
async def test_a_server_that_names_no_variables_is_judged_by_what_is_known_to_be_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(TargetError, match=r"OLLAMA_NUM_GPU=4 would do nothing .* option num_gpu"):
        async with open_target("ollama", environment={"OLLAMA_NUM_GPU": "4"}):
            pass
    monkeypatch.setenv("STANDIN_VERSION", "0.24.0")
    async with open_target("ollama", environment={"OLLAMA_MULTIUSER_CACHE": "1"}) as target:
        assert target.ignored == {}


async def test_a_variable_that_only_ollama_heeds_is_refused_for_the_embedded_server(
    monkeypatch: pytest.MonkeyPatch, nothing_left: None
) -> None:
    """If it was asked for; what the shell holds for Ollama's sake is no business of ours."""
    with pytest.raises(TargetError, match=r"OLLAMA_GPU_OVERHEAD=1 would do nothing .* no such setting"):
        async with open_target("embedded", environment={"OLLAMA_GPU_OVERHEAD": "1"}):
            pass
    monkeypatch.setenv("OLLAMA_GPU_OVERHEAD", "1")
    async with open_target("embedded") as target:
        assert target.ignored == {}


@pytest.mark.usefixtures("standin")
async def test_a_server_may_be_given_a_port_and_keeps_it() -> None:
    port = int(free_url().rpartition(":")[2])
    async with open_target("ollama", port=port) as target:
        assert target.url == f"http://127.0.0.1:{port}"
        await target.restart()
        assert target.url == f"http://127.0.0.1:{port}"


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("kind", ["ollama", "embedded"])
async def test_a_port_that_is_taken_is_left_to_whom_it_belongs(kind: str) -> None:
    with serving(OLLAMA) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(TargetError, match=f"port {port} cannot be had .* left alone.* as target {url}"):
            async with open_target(kind, port=port):
                pass
        assert get_json(f"{url}/api/version", timeout_s=5) == {"version": "0.33.0"}


@pytest.mark.usefixtures("standin")
async def test_two_servers_get_one_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the shell shows them another one."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(opening, "describe_gpus", lambda: {"gpus": [{}, {}, {}], "reason": None})
    async with open_target("ollama", gpus=[1]) as chat, open_target("ollama", gpus=[2]) as code:
        seen = [get_json(f"{target.url}/environment", timeout_s=5) for target in (chat, code)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in seen] == ["1", "2"]
    assert [one["CUDA_DEVICE_ORDER"] for one in seen] == ["PCI_BUS_ID"] * 2


@pytest.mark.usefixtures("nothing_left")
async def test_gpus_and_the_variable_of_the_same_meaning_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(opening, "describe_gpus", lambda: {"gpus": [{}], "reason": None})
    with pytest.raises(SettingsError, match="CUDA_VISIBLE_DEVICES: given by gpus"):
        async with open_target("ollama", gpus=[0], environment={"CUDA_VISIBLE_DEVICES": "0"}):
            pass


@pytest.mark.parametrize(
    ("gpus", "there", "message"),
    [
        ([1], 1, r"no GPU 1 \(this machine has GPU 0 only\)"),
        ([0, 4], 4, r"no GPU 4 \(this machine has GPUs 0 to 3\)"),
        ([-1], 4, "no GPU -1"),
        ([0], 0, r"no GPU 0 \(no driver\)"),
    ],
)
def test_a_gpu_that_is_not_there_is_named_with_those_that_are(
    gpus: list[int], there: int, message: str
) -> None:
    with pytest.raises(TargetError, match=message):
        gpu_variables(gpus, {"gpus": [{}] * there, "reason": "no driver"})


async def test_a_gpu_index_on_this_machine_is_checked_against_its_gpus() -> None:
    """No machine has GPU 1000; whether it has any is said."""
    with pytest.raises(TargetError, match=r"there is no GPU 1000 \("):
        async with open_target("ollama", gpus=[1000]):
            pass


async def test_a_variable_that_the_settings_decide_is_refused() -> None:
    with pytest.raises(SettingsError, match="OLLAMA_NUM_PARALLEL: given by the settings"):
        async with open_target("ollama", environment={"OLLAMA_NUM_PARALLEL": "4"}):
            pass


@pytest.mark.usefixtures("standin")
async def test_the_moments_of_a_start_are_in_order() -> None:
    async with open_target("ollama") as target:
        startup = target.startup
        assert startup
        assert startup.spawned_s < startup.listening_s < startup.answering_s


@pytest.mark.usefixtures("standin")
async def test_a_restart_gives_a_fresh_server_with_other_settings() -> None:
    async with open_target("ollama", ServerSettings(num_parallel=1)) as target:
        before, old, startup = target.url, alive(target.pids()), target.startup
        await target.restart(ServerSettings(num_parallel=4))
        environment = get_json(f"{target.url}/environment", timeout_s=5)
        assert environment["OLLAMA_NUM_PARALLEL"] == "4"
        assert target.settings == ServerSettings(num_parallel=4)
        assert target.url != before
        assert target.startup != startup
        assert_gone(old)
        await target.restart()
        assert target.settings == ServerSettings(num_parallel=4)


@pytest.mark.usefixtures("standin")
async def test_two_targets_live_side_by_side() -> None:
    async with open_target("ollama") as first, open_target("ollama") as second:
        assert first.url != second.url
        assert not set(first.pids()) & set(second.pids())


@pytest.mark.usefixtures("standin")
async def test_a_server_that_died_has_no_processes() -> None:
    async with open_target("ollama") as target:
        processes = alive(target.pids())
        processes[0].kill()
        assert_gone(processes)
        assert target.pids() == ()


@pytest.mark.usefixtures("standin")
async def test_what_the_server_said_is_kept(tmp_path: Path) -> None:
    logs = tmp_path / "new" / "logs"
    async with open_target("ollama", log_folder=logs) as target:
        assert target.log_tail().splitlines()[0] == "time=now level=INFO msg=starting"
        assert target.log_tail(1).startswith('msg="Listening on ')
        await target.restart()
    assert len(list(logs.glob("ollama-serve-*.log"))) == 2


@pytest.mark.usefixtures("standin")
async def test_a_server_that_ends_at_once_is_reported_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STANDIN", "crash")
    with pytest.raises(
        TargetError,
        match=r"ended with status 1; it last said: .* \| smoke is seen \| .*the disk is on fire; try",
    ):
        async with open_target("ollama"):
            pass


@pytest.mark.usefixtures("standin")
@pytest.mark.parametrize("behaviour", ["mute", "deaf"])
async def test_a_server_that_never_answers_is_given_up(
    behaviour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STANDIN", behaviour)
    monkeypatch.setattr(process, "_START_S", 2.0)
    monkeypatch.setattr(process, "_ANSWER_S", 0.1)
    with pytest.raises(TargetError, match="`ollama serve` did not answer within 2 s; it last said: "):
        async with open_target("ollama"):
            pass


@pytest.mark.usefixtures("standin")
async def test_a_missing_model_is_named_with_those_that_are_there() -> None:
    with pytest.raises(TargetError, match=r"no model 'qwen3'; it has smollm2:135m; `ollama pull qwen3`"):
        async with open_target("ollama", models=["smollm2:135m", "qwen3"]):
            pass


async def test_without_ollama_on_the_path_the_next_step_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(TargetError, match=r"no `ollama` on PATH; install .* or use target embedded"):
        async with open_target("ollama"):
            pass


@pytest.mark.usefixtures("standin")
async def test_the_number_of_threads_reaches_ollamas_engines() -> None:
    async with open_target("ollama", ServerSettings(num_threads=2)) as target:
        assert get_json(f"{target.url}/environment", timeout_s=5)["LLAMA_ARG_THREADS"] == "2"


@pytest.mark.usefixtures("standin")
async def test_ollamas_engines_are_asked_to_count_what_they_evaluate() -> None:
    async with open_target("ollama") as target:
        assert get_json(f"{target.url}/environment", timeout_s=5)["LLAMA_ARG_ENDPOINT_METRICS"] == "1"


@pytest.mark.usefixtures("standin")
async def test_a_setting_that_an_old_ollama_would_ignore_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STANDIN_VERSION", "0.24.0")
    with pytest.raises(TargetError, match=r"num_threads=2 needs Ollama 0\.30 or newer, not 0\.24\.0"):
        async with open_target("ollama", ServerSettings(num_threads=2)):
            pass


@pytest.mark.usefixtures("standin")
async def test_the_report_gets_the_facts_of_the_server() -> None:
    async with open_target("ollama", ServerSettings(num_parallel=2)) as target:
        facts = await target.describe()
    assert facts["settings"]["num_parallel"] == 2
    assert facts["models"] == [
        {"name": "smollm2:135m", "digest": "b1" * 32, "size_bytes": 98, "quantisation": "Q4_1"}
    ]


# Somebody else's server


async def test_a_server_elsewhere_is_only_asked() -> None:
    with serving(OLLAMA) as url:
        async with open_target(url, models=["smollm2:135m"]) as target:
            assert (target.kind, target.url, target.version) == ("url", url, "0.33.0")
            assert target.settings is None
            assert target.startup is None
            assert target.pids() == ()
            assert target.log_tail() == ""
            assert (await target.describe())["settings"] is None
        assert get_json(f"{url}/api/version", timeout_s=5) == {"version": "0.33.0"}


async def test_a_server_elsewhere_is_never_changed_and_says_why() -> None:
    """The reason is what an arm that is *not run* shows."""
    with serving(OLLAMA) as url:
        async with open_target(url) as target:
            assert not target.changeable
            assert target.unchangeable
            assert url in target.unchangeable
            with pytest.raises(TargetError, match="was not started by ollamalab"):
                await target.restart(ServerSettings(num_parallel=4))
        for change in ({"settings": ServerSettings(num_parallel=4)}, {"gpus": [0]}, {"port": 11500}):
            with pytest.raises(TargetError, match="was not started by ollamalab"):
                async with open_target(url, **change):
                    pass


async def test_an_address_where_nothing_listens_is_named_with_the_next_step() -> None:
    url = free_url()
    with pytest.raises(TargetError, match=f"cannot connect to {url}/.*; start `ollama serve` there"):
        async with open_target(url):
            pass


async def test_a_server_that_is_not_ollama_is_refused() -> None:
    with (
        serving({}) as url,
        pytest.raises(TargetError, match=r"/api/version answered 404 .* is that an Ollama server\?"),
    ):
        async with open_target(url):
            pass


@pytest.mark.parametrize("answer", [{}, [], {"models": None}, {"models": ["smollm2"]}, {"models": [{}]}])
async def test_a_server_that_tells_a_version_but_no_models_is_refused(answer: Any) -> None:
    """Many servers answer ``/api/version``."""
    with (
        serving({"/api/version": {"version": "1"}, "/api/tags": answer}) as url,
        pytest.raises(TargetError, match="does not list models; is that an Ollama server"),
    ):
        async with open_target(url, models=["smollm2:135m"]):
            pass


async def test_a_model_that_a_server_elsewhere_lacks_is_named() -> None:
    with serving(OLLAMA) as url, pytest.raises(TargetError, match="no model 'qwen3'"):
        async with open_target(url, models=["qwen3"]):
            pass


# Slots


@pytest.mark.usefixtures("standin")
async def test_the_slots_of_ollamas_engines_are_read_from_the_engines() -> None:
    """Ollama does not tell its slots; the engine's own port stands in its command line."""
    async with open_target("ollama") as target:
        engine = target.pids()[1]
        sampler = SlotSampler(target.slots)
        readings = await asyncio.to_thread(until, sampler.read)
    assert readings == {f"slots:{engine}": {"slots": 3, "busy": 2, "decoding": 1}}


@pytest.mark.usefixtures("standin")
async def test_an_ollama_without_llama_server_has_no_slots_rather_than_none_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No engine was found behind Ollama 0.24, so that a report said "0 slots busy" of it."""
    monkeypatch.setenv("STANDIN_VERSION", "0.24.0")
    async with open_target("ollama") as target:
        for ask in (target.engines, SlotSampler(target.slots).read):
            with pytest.raises(SamplerUnavailable, match=r"Ollama 0\.24\.0 has engines that cannot be asked"):
                await asyncio.to_thread(ask)


async def test_the_slots_of_an_embedded_server_go_by_their_model() -> None:
    url = "http://127.0.0.1:9"
    engines = [{"model": "smollm2:135m", "pid": 1, "url": url, "slots": ollama_standin.SLOTS}]
    with serving(OLLAMA | {"/lab/engines": engines}) as url:
        async with open_target(url) as target:
            readings = await asyncio.to_thread(SlotSampler(target.slots).read)
            (engine,) = await asyncio.to_thread(target.engines)
    assert readings == {"slots:smollm2:135m": {"slots": 3, "busy": 2, "decoding": 1}}
    assert (engine.model, engine.pid) == ("smollm2:135m", 1)


async def test_a_server_that_cannot_tell_its_slots_is_an_unavailable_sampler() -> None:
    with serving(OLLAMA) as url:
        async with open_target(url) as target:
            with pytest.raises(SamplerUnavailable, match="does not tell its slots"):
                await asyncio.to_thread(SlotSampler(target.slots).read)
            with pytest.raises(SamplerUnavailable, match="does not let its engines be asked"):
                await asyncio.to_thread(target.engines)


def test_a_server_that_does_not_answer_just_now_gives_no_slots_and_one_note() -> None:
    url = free_url()
    sampler = SlotSampler(lambda: get_json(url, timeout_s=1))
    assert sampler.read() == {}
    assert sampler.read() == {}
    assert len(sampler.notes) == 1


@pytest.mark.parametrize(
    ("progress", "decoding"),
    [({"next_token": [{"n_decoded": 3}]}, 1), ({"next_token": {"n_decoded": 0}}, 0), ({}, None)],
)
def test_an_engine_that_does_not_tell_its_progress_has_no_decoding_count(
    progress: dict[str, Any], decoding: int | None
) -> None:
    slots = [{"id": 0, "is_processing": True, **progress}, {"id": 1, "is_processing": False}]
    assert SlotSampler(lambda: {"m": slots}).read() == {
        "slots:m": {"slots": 2, "busy": 1, "decoding": decoding}
    }
