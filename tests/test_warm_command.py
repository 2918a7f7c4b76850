"""``ollamalab warm``: loads, says how long it took and until when it stays; bad input is one line."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from embedded_server import EmbeddedServer, embedded_server

from ollamalab.scripted import ScriptedServer

COMMAND = [sys.executable, "-m", "ollamalab", "warm"]


def run(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *flags], capture_output=True, text=True, check=False)


async def warm(*flags: str) -> subprocess.CompletedProcess[str]:
    """Run it without holding up the loop that may have to answer it."""
    return await asyncio.to_thread(run, *flags)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--keep-alive", "soon"), "--keep-alive 'soon'"),
        (("--keep-alive", "0"), "would unload the model"),
        (("--option", "num_ctx"), "'num_ctx' is not KEY=VALUE; write for example --option num_ctx=8192"),
        (
            ("--option", "temperature=1"),
            "temperature does not change how a model is loaded; these do: num_ctx",
        ),
        (("--option", "num_ctx=big"), "num_ctx"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags: tuple[str, ...], words: str) -> None:
    done = run("http://127.0.0.1:9", "--model", "a", *flags)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ollamalab: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_no_server_is_one_line_and_status_2() -> None:
    done = run("http://127.0.0.1:9", "--model", "a")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "ollama serve" in done.stderr


def test_its_help_says_why_a_ping_keeps_nothing_warm() -> None:
    assert "A ping every 6 hours keeps nothing warm" in " ".join(run("--help").stdout.split())


async def test_an_unknown_model_is_named_with_the_next_step() -> None:
    async with ScriptedServer() as scripted:
        done = await warm(scripted.url, "--model", "nope")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"ollamalab: {scripted.url}: model 'nope' not found; `ollama list` shows what the server has, "
        "`ollama pull nope` fetches more\n"
    )


async def test_what_is_in_memory_already_is_said_so() -> None:
    async with ScriptedServer() as scripted:
        done = await warm(scripted.url, "--model", "scripted")
    assert done.returncode == 0
    assert done.stdout == "scripted was in memory already · the server does not say until when\n"


async def test_a_model_is_loaded_with_the_options_of_its_traffic(server: EmbeddedServer) -> None:
    """Afterwards a request with the same options finds it loaded, and it stays as long as was said."""
    await server.post("/api/generate", {"model": server.model, "keep_alive": 0})
    done = await warm(server.url, "--model", server.model, "--option", "num_ctx=768", "--keep-alive", "-1")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{server.model} loaded in " in done.stdout
    assert "768 tokens of context · for ever" in done.stdout
    _status, answer = await server.post(
        "/api/generate",
        {
            "model": server.model,
            "prompt": "Hi",
            "stream": False,
            "options": {"num_ctx": 768, "num_predict": 1},
            "keep_alive": "5m",
        },
    )
    assert answer["load_duration"] < 0.2e9
    (shown,) = [model for model in (await server.get("/api/ps"))["models"] if model["name"] == server.model]
    assert shown["context_length"] == 768


async def test_models_that_do_not_fit_together_are_a_finding(tmp_path: Path) -> None:
    """OLLAMA_MAX_LOADED_MODELS=1 keeps no model in memory: it makes one go for the next."""
    async with embedded_server(tmp_path, "--max-loaded-models", "1") as small:
        done = await warm(small.url, "--model", small.model, "--model", small.tools)
    assert done.returncode == 1
    assert done.stdout.count("loaded in ") == 2
    assert f"! {small.model} had to make way for the next" in done.stdout
