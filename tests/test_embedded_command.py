"""``ollamalab embedded``: its flags, its address, and what it says of bad input."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from embedded_server import embedded_server

COMMAND = [sys.executable, "-m", "ollamalab", "embedded"]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OLLAMA_")}
    return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False, env=environment)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--keep-alive", "soon"), "--keep-alive must be a duration such as 5m or 90s, got 'soon'"),
        (("--llama-server", "/nope/llama-server"), "/nope/llama-server is not a program that can be run"),
        (("--model", "/nope/x.gguf"), "/nope/x.gguf"),
        (("--host", "host.invalid"), "cannot listen on host.invalid:11434"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags: tuple[str, ...], words: str) -> None:
    done = run(*flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ollamalab: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_a_port_in_use_is_one_line_and_status_2() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("--port", str(port))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in done.stderr


async def test_flags_win_over_the_environment(tmp_path: Path) -> None:
    async with embedded_server(
        tmp_path, "--num-parallel", "3", "--keep-alive", "-1", OLLAMA_NUM_PARALLEL="7", OLLAMA_KEEP_ALIVE="1s"
    ) as server:
        assert (await server.post("/api/generate", {"model": server.model}))[0] == 200
        (engine,) = await server.get("/lab/engines")
        assert len(engine["slots"]) == 3
        (running,) = (await server.get("/api/ps"))["models"]
        assert running["expires_at"].startswith("23")


async def test_a_server_on_all_addresses_answers_to_any_host_but_to_no_foreign_page(tmp_path: Path) -> None:
    async with embedded_server(
        tmp_path, "--host", "0.0.0.0", OLLAMA_ORIGINS="http://friend.example"
    ) as server:
        for headers, status in (
            ({"Host": "example.com"}, 200),
            ({"Origin": "http://evil.example"}, 403),
            ({"Origin": "http://friend.example"}, 200),
        ):
            async with server.http.get("/api/version", headers=headers) as reply:
                assert reply.status == status
