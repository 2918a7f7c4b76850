"""An engine is one llama.cpp process: started, asked, cut off, killed; never left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollamalab.embedded.engine import MAX_EVENT_BYTES, Engine, EngineStream
from ollamalab.embedded.engine_http import send
from ollamalab.embedded.engine_log import MemoryUse, failure_reason, memory_use
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.load import Launch, LoadOptions, llama_server_command
from ollamalab.embedded.models import DEFAULT_MODEL, ModelFile, ModelStore
from ollamalab.errors import EngineError

SMALL = LoadOptions(num_ctx=512, num_parallel=2, num_thread=1)
STORY = {"prompt": "Once upon a time", "n_predict": 400, "stream": True, "ignore_eos": True}


@pytest.fixture(scope="module")
def model() -> ModelFile:
    return ensure_model(DEFAULT_MODEL, ModelStore())


@pytest.fixture(scope="module")
async def engine(model: ModelFile) -> AsyncIterator[Engine]:
    """One engine for all tests that leave it as it was."""
    engine = await Engine.start(model, SMALL)
    yield engine
    await engine.stop()


def binary(folder: Path, script: str) -> Path:
    """Return a program that behaves as told instead of serving."""
    path = folder / "llama-server"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


async def until(fact: Callable[[], Any]) -> None:
    """Wait for a fact."""
    while not fact():  # noqa: ASYNC110 - facts about processes send no event
        await asyncio.sleep(0.01)


async def until_idle(engine: Engine) -> None:
    while any(slot["is_processing"] for slot in await engine.slots()):  # noqa: ASYNC110
        await asyncio.sleep(0.01)


@pytest.fixture
def started() -> Callable[[], set[psutil.Process]]:
    """Give a function that returns the processes started by this test that still live."""
    before = set(psutil.Process().children(recursive=True))
    return lambda: set(psutil.Process().children(recursive=True)) - before


# Load options


@pytest.mark.parametrize(
    ("loaded", "wanted", "serves"),
    [
        ({}, {}, True),
        ({}, {"num_ctx": 1024}, False),
        ({}, {"num_batch": 256}, False),
        ({}, {"num_thread": 2}, False),
        ({}, {"use_mmap": True}, False),
        ({}, {"main_gpu": 0}, False),
        ({}, {"shift": False}, False),
        ({"num_gpu": 20}, {}, True),
        ({"num_gpu": 20}, {"num_gpu": 10}, False),
        ({}, {"num_gpu": 0}, False),
        ({"embedding": True}, {}, True),
        ({}, {"embedding": True}, False),
    ],
)
def test_which_engine_serves_which_request(
    loaded: dict[str, Any], wanted: dict[str, Any], serves: bool
) -> None:
    """Any other value needs a reload, but open ``num_gpu`` takes what is there, and embedders chat."""
    base = LoadOptions(num_ctx=4096)
    assert replace(base, **loaded).serves(replace(base, **wanted)) is serves


def test_a_text_to_embed_fits_one_batch_but_no_batch_exceeds_the_context() -> None:
    chat = LoadOptions(num_ctx=1024)
    assert chat.batch_tokens == 512
    assert replace(chat, num_batch=64).batch_tokens == 64
    assert replace(chat, embedding=True).batch_tokens == 1024
    assert replace(chat, embedding=True, num_ctx=8192).batch_tokens == 2048


def test_a_launch_survives_the_command_line() -> None:
    launch = Launch(model_path="/a b/ö.gguf", load=replace(SMALL, kv_cache_type="q8_0"), mean_pooling=True)
    assert Launch.from_json(launch.to_json()) == launch


def test_a_llama_server_gets_ollamas_flags() -> None:
    """Automatic values name no flag."""
    launch = Launch(
        model_path="/m.gguf", load=LoadOptions(num_ctx=4096, num_parallel=2), llama_server="/bin/ls"
    )
    assert " ".join(llama_server_command(launch, port=8080)) == (
        "/bin/ls --model /m.gguf --host 127.0.0.1 --port 8080 --no-webui --offline --metrics -c 8192 -np 2 "
        "--log-verbosity 4 --flash-attn auto -b 512 -ub 512 --context-shift --keep 4"
    )


def test_every_load_option_reaches_the_llama_server() -> None:
    load = LoadOptions(
        num_ctx=2048,
        num_batch=256,
        num_gpu=0,
        main_gpu=1,
        use_mmap=False,
        num_thread=3,
        shift=False,
        flash_attention=True,
        kv_cache_type="q8_0",
        embedding=True,
    )
    launch = Launch(model_path="/m.gguf", load=load, mean_pooling=True, llama_server="/bin/ls")
    command = " ".join(llama_server_command(launch, port=1))
    for flags in (
        "-b 256 -ub 256",
        "-ngl 0",
        "--split-mode none --main-gpu 1",
        "--load-mode none",
        "-t 3",
        "--flash-attn on",
        "--cache-type-k q8_0 --cache-type-v q8_0",
        "--embedding --pooling mean",
    ):
        assert flags in command
    assert "--context-shift" not in command


# Log


def test_memory_is_the_sum_of_the_last_buffer_lines() -> None:
    """The fitting run's lines are replaced; only device buffers count as GPU memory."""
    log = """
0.00.100.000 I load_tensors:        CUDA0 model buffer size =  9999.00 MiB
0.00.278.474 I load_tensors:   CPU_Mapped model buffer size =    50.00 MiB
0.00.278.475 I load_tensors:        CUDA0 model buffer size =   400.00 MiB
0.00.280.909 I llama_context:   CUDA_Host  output buffer size =     0.50 MiB
0.00.280.992 I llama_kv_cache:      CUDA0 KV buffer size =   100.00 MiB
0.00.384.546 I sched_reserve:       CUDA0 compute buffer size =    20.00 MiB
"""
    mib = 1024**2
    assert memory_use(log) == MemoryUse(size_bytes=int(570.5 * mib), size_vram_bytes=520 * mib)
    assert memory_use("nothing of the kind") is None


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        (
            "0.00.1 I srv load_model: loading\n0.00.2 E llama_model_load: error loading model: too short\n"
            "0.00.3 E srv load_model: failed to load model\n",
            "error loading model: too short",
        ),
        ("usage: llama-server\nerror: invalid argument: --x\n", "invalid argument: --x"),
        ("one\ntwo\n\n", "two"),
        ("", "no reason given"),
    ],
)
def test_the_first_error_is_the_reason(log: str, reason: str) -> None:
    assert failure_reason(log) == reason


# Talking to an engine


async def test_an_engine_answers_until_it_is_stopped(model: ModelFile) -> None:
    engine = await Engine.start(model, SMALL)
    assert await engine.health()
    assert psutil.pid_exists(engine.pid)
    assert [slot["n_ctx"] for slot in await engine.slots()] == [512, 512]
    assert engine.memory.size_vram_bytes == 0
    assert engine.memory.size_bytes > 90 * 1024**2
    await engine.stop()
    assert not psutil.pid_exists(engine.pid)
    assert not await engine.health()
    await engine.stop()


async def test_short_calls_return_status_and_body(engine: Engine) -> None:
    status, body = await engine.post("/tokenize", {"content": "Hello world"})
    assert (status, json.loads(body)) == (200, {"tokens": [19556, 905]})
    status, body = await engine.post("/v1/embeddings", {"input": "x"})
    assert status == 501
    assert "does not support embeddings" in json.loads(body)["error"]["message"]


async def test_a_stream_gives_each_event_up_to_the_last(engine: Engine) -> None:
    async with engine.stream("/completion", {**STORY, "n_predict": 12}) as stream:
        events = [json.loads(event) async for event in stream.events()]
    assert stream.status == 200
    assert [event["stop"] for event in events] == [False] * 12 + [True]
    assert events[-1]["timings"]["predicted_n"] == 12


async def test_a_refused_stream_gives_the_engines_own_error(engine: Engine) -> None:
    async with engine.stream("/completion", {"prompt": 5}) as stream:
        assert stream.status == 400
        assert "error" in json.loads(await stream.read())


async def test_hanging_up_stops_the_generation_and_frees_the_slot(engine: Engine) -> None:
    """The engine's own account of its slots says so; by itself it would never have ended."""
    async with engine.stream("/completion", {**STORY, "n_predict": -1}) as stream:
        async for _ in stream.events():
            break
        assert sum(slot["is_processing"] for slot in await engine.slots()) == 1
    await until_idle(engine)


async def test_one_engine_embeds_and_chats(model: ModelFile) -> None:
    """A text longer than llama.cpp's default batch of 512 tokens can be embedded."""
    engine = await Engine.start(model, replace(SMALL, num_ctx=1024, embedding=True))
    try:
        status, body = await engine.post("/v1/embeddings", {"input": "word " * 550})
        assert status == 200, body
        assert len(json.loads(body)["data"][0]["embedding"]) == 576
        status, body = await engine.post("/completion", {"prompt": "Hi", "n_predict": 3})
        assert status == 200
        assert json.loads(body)["tokens_predicted"] == 3
    finally:
        await engine.stop()


@pytest.fixture
async def sse() -> AsyncIterator[Callable[[bytes], Any]]:
    """Give a function that makes a stream whose server says what it is told, then cuts or ends."""
    pieces: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece) if piece else b"0\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    async def failure(error: Exception) -> EngineError:
        return EngineError(f"broke off: {error}")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    def stream(*told: bytes) -> EngineStream:
        pieces[:] = told
        return EngineStream(lambda: send(f"http://127.0.0.1:{port}", "POST", "/"), failure)

    yield stream
    server.close()
    await server.wait_closed()


async def test_events_are_whole_wherever_the_network_cuts_them(sse: Callable[..., EngineStream]) -> None:
    """Pings and other fields are left out; an event of several megabytes is one event."""
    large = b"x" * (MAX_EVENT_BYTES - 100)
    pieces = [b": ping\n\nda", b"ta: one\n", b"\ndata: t", b"wo\n\nevent: x\ndata: " + large, b"\n\n", b""]
    async with sse(*pieces) as stream:
        assert [event async for event in stream.events()] == [b"one", b"two", large]


@pytest.mark.parametrize("pieces", [[b"data: one\n\n"], [b"data: " + b"x" * (MAX_EVENT_BYTES + 100)]])
async def test_a_cut_or_endless_stream_is_an_error(
    sse: Callable[..., EngineStream], pieces: list[bytes]
) -> None:
    async with sse(*pieces) as stream:
        with pytest.raises(EngineError, match="broke off"):
            [event async for event in stream.events()]


# When it goes wrong


async def test_a_killed_engine_fails_its_streams_and_says_so_once(model: ModelFile) -> None:
    ended: list[Engine] = []
    engine = await Engine.start(model, SMALL, on_exit=ended.append)
    async with engine.stream("/completion", STORY) as stream:
        events = stream.events()
        await anext(events)
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(EngineError, match=r"ended unexpectedly \(killed by SIGKILL\)"):
            [event async for event in events]
    assert ended == [engine]
    assert not await engine.health()
    for call in (engine.slots(), engine.post("/tokenize", {})):
        with pytest.raises(EngineError, match="ended unexpectedly"):
            await call
    await engine.stop()
    assert ended == [engine]


async def test_a_corrupt_file_is_refused_with_the_logs_reason(
    model: ModelFile, tmp_path: Path, started: Callable[[], set[psutil.Process]]
) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(model.path.read_bytes()[:5_000_000])
    with pytest.raises(
        EngineError, match=r"did not start \(exit status 1\): error loading model: .*corrupted"
    ):
        await Engine.start(replace(model, path=cut), SMALL)
    assert not started()


async def test_a_binary_that_cannot_be_run_is_named(model: ModelFile, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cannot run .*/nowhere: No such file"):
        await Engine.start(model, SMALL, llama_server=tmp_path / "nowhere")


async def test_a_silent_load_is_given_up(
    model: ModelFile, tmp_path: Path, started: Callable[[], set[psutil.Process]]
) -> None:
    program = binary(tmp_path, "echo reading >&2; exec sleep 600")
    with pytest.raises(EngineError, match=r"no progress for 0.5 s \(last words: reading\)"):
        await Engine.start(model, SMALL, llama_server=program, load_timeout_s=0.5)
    assert not started()


async def test_a_load_that_talks_may_take_longer_than_the_limit(model: ModelFile, tmp_path: Path) -> None:
    """The limit is on silence, not on the whole; so this one ends by itself, after twice the limit."""
    program = binary(tmp_path, "for i in 1 2 3 4 5 6 7 8; do echo $i >&2; sleep 0.5; done; exit 3")
    with pytest.raises(EngineError, match="exit status 3"):
        await Engine.start(model, SMALL, llama_server=program, load_timeout_s=2)


async def test_a_start_that_is_called_off_leaves_no_process(
    model: ModelFile, tmp_path: Path, started: Callable[[], set[psutil.Process]]
) -> None:
    start = asyncio.create_task(Engine.start(model, SMALL, llama_server=binary(tmp_path, "exec sleep 600")))
    await until(lambda: any(process.name() == "sleep" for process in started()))
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert not started()


SERVER = """
import asyncio, sys
from pathlib import Path
from ollamalab.embedded.engine import Engine
from ollamalab.embedded.load import LoadOptions
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore

async def main():
    binary = Path(sys.argv[1]) if sys.argv[1:] else None
    model = ModelStore().find(DEFAULT_MODEL)
    engine = await Engine.start(model, LoadOptions(num_ctx=512), llama_server=binary)
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_no_engine_outlives_its_server_killed_with_sigkill(model: ModelFile) -> None:
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout
    engine = psutil.Process(int(await server.stdout.readline()))
    family = psutil.Process(server.pid).children(recursive=True)
    assert engine in family
    server.kill()
    await server.wait()
    await until(lambda: not any(process.is_running() for process in family))


async def test_no_llama_server_outlives_it_either(model: ModelFile, tmp_path: Path) -> None:
    """Killed while it loads, here: for ever."""
    program = binary(tmp_path, "exec sleep 600")
    server = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, str(program))
    family: list[psutil.Process] = []
    while "sleep" not in [process.name() for process in family]:
        family = psutil.Process(server.pid).children(recursive=True)
        await asyncio.sleep(0.01)
    server.kill()
    await server.wait()
    await until(lambda: not any(process.is_running() for process in family))
