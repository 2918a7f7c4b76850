"""``ollamalab serve``: its options, its address, its end, and what it says of bad input."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from ollamalab.scripted import Script, ScriptedServer
from ollamalab.settings.files import gateway_keys

COMMAND = [sys.executable, "-m", "ollamalab", "serve"]
UPSTREAM = ("--upstream", "http://127.0.0.1:9")
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "a secret"}]}


def run(*flags: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **(environment or {})}
    return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False, env=env)


@asynccontextmanager
async def gateway(
    *flags: str, before: Callable[[], None] | None = None
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Run a gateway on a free port; give its URL and process, which has ended by then or is killed."""
    process = await asyncio.create_subprocess_exec(
        *(*COMMAND, "--port", "0", *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=before,
    )
    assert process.stdout is not None
    try:
        first = (await process.stdout.readline()).decode()
        assert first.startswith("listening on http://"), first
        yield first.removeprefix("listening on ").strip(), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    _out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, err.decode()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "no upstream is given; write for example --upstream http://127.0.0.1:11434"),
        (("--upstream", "http://gpu1/ollama"), "path"),
        (("--upstream", "http://me:secret@gpu1"), "credentials"),
        (("--upstream", "ftp://gpu1"), "http or https"),
        (("--upstream", "gpu1,wieght=3"), "'wieght=3'"),
        ((*UPSTREAM, "--batch", "sometimes"), "'sometimes'"),
        ((*UPSTREAM, "--cache-bytes", "lots"), "'lots'"),
        ((*UPSTREAM, "--queue-timeout", "0"), "--queue-timeout must be > 0"),
        ((*UPSTREAM, "--max-concurrent", "few"), "'few'"),
        ((*UPSTREAM, "--port", "70000"), "70000"),
        ((*UPSTREAM, "--cache", "tape:/dev/st0"), "tape"),
        ((*UPSTREAM, "--api-key-file", "/nope/keys"), "/nope/keys"),
        ((*UPSTREAM, "--config", "/nope/gateway.yaml"), "/nope/gateway.yaml"),
        ((*UPSTREAM, *UPSTREAM), "two upstreams have the"),
        (("--upstream", "gpu1,name=a", "--upstream", "gpu2,name=a"), "two upstreams have the name a"),
        (("--upstream", "gpu1,weight=0"), "weight must be a whole number from 1"),
        (("--upstream", "gpu1,weight=much"), "'much'"),
        ((*UPSTREAM, "--route", "fastest"), "route must be one of round-robin"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags: tuple[str, ...], words: str) -> None:
    done = run("--port", "0", *flags, "--host", "127.0.0.1")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ollamalab: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert "secret" not in done.stderr


def test_an_unknown_key_of_the_file_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text("upstream: http://127.0.0.1:9\nmax_que: 5\n")
    done = run("--config", str(file))
    assert done.returncode == 2
    assert "max_que" in done.stderr
    assert "max_queue" in done.stderr


def test_a_port_in_use_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(*UPSTREAM, "--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


def test_every_option_is_a_key_of_the_file() -> None:
    shown = run("--help", environment={"COLUMNS": "200"}).stdout
    words = {word.strip(",.").removeprefix("--") for word in shown.split() if word.startswith("--")}
    options = {word.replace("-", "_") for word in words if not word.startswith("no-")}
    assert options - {"config", "help"} <= set(gateway_keys())


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
async def test_a_stream_under_way_is_finished_before_the_end(number: signal.Signals, expected: int) -> None:
    async with (
        ScriptedServer(Script(first_s=0.0, gap_s=0.02, tokens=20)) as upstream,
        gateway("--upstream", upstream.url) as (url, process),
        aiohttp.ClientSession() as http,
        http.post(f"{url}/api/chat", json=CHAT) as reply,
    ):
        first = await reply.content.readline()
        process.send_signal(number)
        rest = await reply.content.read()
        assert b'"done":true' in (first + rest).splitlines()[-1]
        status, err = await ended(process)
        assert status == expected
        assert "event=stopping" in err


async def test_a_request_log_line_says_nothing_of_what_was_asked() -> None:
    async with (
        ScriptedServer(Script(first_s=0.0, gap_s=0.0, tokens=3)) as upstream,
        gateway("--upstream", upstream.url, "--log-requests", "--cache", "memory") as (url, process),
        aiohttp.ClientSession() as http,
    ):
        for _ in range(2):
            async with http.post(f"{url}/api/chat", json=CHAT) as reply:
                assert reply.status == 200
                await reply.read()
        process.terminate()
        _status, err = await ended(process)
    lines = [line for line in err.splitlines() if "event=request" in line]
    assert len(lines) == 2
    assert "model=scripted" in lines[0]
    assert "a secret" not in err


async def test_options_win_over_the_file_and_the_pages_tell(tmp_path: Path) -> None:
    async with ScriptedServer(Script(first_s=0.0, gap_s=0.0, tokens=3)) as upstream:
        file = tmp_path / "gateway.yaml"
        file.write_text(f"upstream: {{url: '{upstream.url}', name: gpu7}}\nbatch: 20ms\ncache: memory\n")
        async with (
            gateway("--config", str(file), "--batch", "5") as (url, _process),
            aiohttp.ClientSession() as http,
        ):
            async with http.post(f"{url}/api/chat", json=CHAT) as reply:
                assert reply.headers["x-ollamalab-upstream"] == "gpu7"
                await reply.read()
            async with http.get(f"{url}/lab/status") as reply:
                status = await reply.json()
            assert status["batch"]["mode"] == "5"
            assert status["batch"]["lines"] == 4
            assert status["cache"]["lookups"] == 1
            assert status["upstreams"][0]["name"] == "gpu7"
            async with http.get(f"{url}/metrics") as reply:
                text = await reply.text()
            assert 'ollamalab_upstream_requests_total{upstream="gpu7"}' in text
            async with http.get(f"{url}/healthz") as reply:
                assert reply.status == 200


async def test_a_shells_limit_of_open_files_is_raised_as_far_as_allowed() -> None:
    """Past 500 clients no server could be reached, and healthy ones were taken for dead."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)

    def as_a_shell() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most // 2, most))

    async with gateway(*UPSTREAM, before=as_a_shell) as (_url, process):
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (most, most)
