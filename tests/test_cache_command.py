"""``ollamalab cache clear``, as a process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from answers import make_answer
from redis_server import redis_server

from ollamalab.cache import Store
from ollamalab.cache.stores import open_store
from ollamalab.settings import CacheSettings


def clear(where: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ollamalab", "cache", "clear", where]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def opened(where: str) -> Store:
    store = open_store(where, CacheSettings(max_entries=500))
    assert store is not None
    return store


@pytest.mark.parametrize("prefix", ["", "disk:"])
async def test_a_file_in_use_is_emptied_and_the_number_told(tmp_path: Path, prefix: str) -> None:
    """All of it, also past the default bound of 100 answers, and the gateway that has it open goes on."""
    store = opened(f"disk:{tmp_path}/cache.db")
    for number in range(150):
        await store.put(b"%d" % number, make_answer(stored_s=time.time()))
    done = clear(f"{prefix}cache.db", tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "removed 150 answers\n", "")
    assert await store.get(b"7") is None
    await store.put(b"7", make_answer(stored_s=time.time()))
    assert clear(f"{prefix}cache.db", tmp_path).stdout == "removed 1 answer\n"
    await store.close()


async def test_a_redis_is_emptied_of_answers(tmp_path: Path) -> None:
    async with redis_server(tmp_path) as running:
        store = opened(running.url)
        await store.put(b"7", make_answer(stored_s=time.time()))
        await store.close()
        async with running.client() as client:
            await client.set("theirs", "x")
            done = clear(running.url, tmp_path)
            assert (done.returncode, done.stdout, done.stderr) == (0, "removed 1 answer\n", "")
            assert await client.keys() == [b"theirs"]


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        (
            "memory",
            "'memory' is no file: a cache in memory is gone when its `ollamalab serve` ends; give the PATH",
        ),
        (
            "nothing.db",
            "there is no cache at 'nothing.db'; give the PATH of a cache on disk, or a redis:// address",
        ),
        ("http://:hunter2@host", "there is no cache at the address; give the PATH"),
        ("redis://:hunter2@host/x", "the redis:// address of the cache cannot be read; write redis://"),
        ("redis://:hunter2@127.0.0.1:1", "redis://127.0.0.1:1 cannot be emptied (ConnectionError"),
        ("notes", "notes is not a cache of ollamalab; name another file"),
        (".", ". is not a file; name a file"),
    ],
)
def test_what_cannot_be_emptied_is_said_in_a_line_and_left_alone(
    tmp_path: Path, where: str, reason: str
) -> None:
    (tmp_path / "notes").write_text("mine\n")
    done = clear(where, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ollamalab: ")
    assert done.stderr.count("\n") == 1
    assert reason in done.stderr
    assert "hunter2" not in done.stderr
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"notes": "mine\n"}
