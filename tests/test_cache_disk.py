"""The disk store: restarts, kills, several processes, modes, and files that are foreign, damaged or full."""

from __future__ import annotations

import logging
import os
import random
import resource
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from answers import Clock, make_answer, number_of
from disk_cache_user import KEYS

from ollamalab.cache.database import APPLICATION_ID, SCHEMA
from ollamalab.cache.disk import DiskStore
from ollamalab.cache.stores import open_store
from ollamalab.errors import SettingsError, StoreError
from ollamalab.settings import CacheSettings

USER = Path(__file__).with_name("disk_cache_user.py")
KEY = b"key"


def opened(path: Path, *, entries: int = 100, clock: Clock | None = None) -> DiskStore:
    return DiskStore(path, max_entries=entries, max_bytes=50_000_000, clock=clock or Clock())


def user(path: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(USER), str(path), str(seed), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def filled(path: Path, count: int, *, size_bytes: int = 5_000) -> None:
    """Make a file of answers, all of it in the file itself and nothing in its log."""
    store = opened(path, entries=count)
    for number in range(count):
        await store.put(b"%d" % number, make_answer(body=random.Random(number).randbytes(size_bytes)))
    await store.close()


def assert_sound(path: Path) -> None:
    """Assert that the database is in order and its totals are those of its rows."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counted = connection.execute("SELECT count(*), ifnull(sum(bytes), 0) FROM answers").fetchone()
        assert connection.execute("SELECT entries, bytes FROM totals").fetchone() == counted
    connection.close()


async def test_answers_outlive_the_store(tmp_path: Path) -> None:
    store = opened(tmp_path / "cache.db")
    await store.put(KEY, make_answer())
    before = store.statistics()
    await store.close()
    store = opened(tmp_path / "cache.db")
    assert await store.get(KEY) == make_answer()
    assert store.statistics() == before
    await store.close()


async def test_after_kill_9_the_file_opens_and_serves_only_whole_answers(tmp_path: Path) -> None:
    """A writer is killed ten times, each time at another point; what it had told as kept is there."""
    path = tmp_path / "cache.db"
    source = random.Random(9)
    told: dict[bytes, int] = {}
    for _ in range(10):
        with user(path, seed=0, rounds=1_000_000) as process:
            assert process.stdout is not None
            for _ in range(source.randrange(1, 80)):
                key, number = process.stdout.readline().split("\t")
                told[key.encode()] = int(number)
            process.kill()
            told |= {
                key.encode(): int(number)
                for key, number in (line.split("\t") for line in process.stdout.readlines() if "\n" in line)
            }
        store = DiskStore(path, max_entries=100, max_bytes=50_000_000)
        for key in KEYS:
            kept = await store.get(key)
            assert (kept is None) == (key not in told)
            if kept is not None:
                assert number_of(key, kept) >= told[key]
                told[key] = number_of(key, kept)
        assert store.statistics().errors == 0
        await store.close()
        assert_sound(path)


async def test_processes_share_a_file(tmp_path: Path) -> None:
    """Four write and read the same keys at once: no error, nothing mixed up, the bound holds."""
    path = tmp_path / "cache.db"
    users = [user(path, seed=seed, rounds=150) for seed in (1, 2, 3, 4)]
    ends = [process.communicate()[0].splitlines()[-1] for process in users]
    assert ends == ["errors\t0"] * 4
    assert [process.returncode for process in users] == [0] * 4
    assert_sound(path)
    store = opened(path)
    assert store.statistics().entries == 15
    await store.close()


async def test_a_store_sees_what_another_writes_and_how_it_was_used(tmp_path: Path) -> None:
    """Uses are written with the next answer, so that neither evicts what the other relies on."""
    path = tmp_path / "cache.db"
    one, two = opened(path, entries=2), opened(path, entries=2)
    await one.put(b"a", make_answer())
    await one.put(b"b", make_answer())
    assert await two.get(b"a") is not None
    await two.sweep()
    await one.put(b"c", make_answer())
    assert await two.get(b"a") is not None
    assert await two.get(b"b") is None
    assert await two.clear() == 2
    assert await one.get(b"a") is None
    await one.close()
    await two.close()


async def test_the_order_of_use_survives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    store = opened(path, entries=2)
    await store.put(b"a", make_answer())
    await store.put(b"b", make_answer())
    await store.get(b"a")
    await store.close()
    store = opened(path, entries=2)
    await store.put(b"c", make_answer())
    assert await store.get(b"a") is not None
    assert await store.get(b"b") is None
    await store.close()


async def test_opening_twice_in_one_process_keeps_the_locks_of_the_first(tmp_path: Path) -> None:
    """A process that closes a file lets go of its locks on it; another would then take the log away."""
    path = tmp_path / "cache.db"
    first = opened(path)
    await first.put(b"a", make_answer(stored_s=time.time()))
    await opened(path).close()
    user(path, seed=1, rounds=1).communicate()
    assert path.with_name("cache.db-wal").exists()
    await first.put(b"b", make_answer(stored_s=time.time()))
    await first.close()
    assert_sound(path)
    again = opened(path)
    assert await again.get(b"a") is not None
    assert await again.get(b"b") is not None
    await again.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_files_are_their_owners_alone_from_the_start(tmp_path: Path, umask: int) -> None:
    """Whatever the umask; folders made for them too."""
    before = os.umask(umask)
    try:
        store = opened(tmp_path / "above" / "below" / "cache.db")
        await store.put(KEY, make_answer())
    finally:
        os.umask(before)
    below = tmp_path / "above" / "below"
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in below.iterdir()}
    assert modes == {"cache.db": 0o600, "cache.db-wal": 0o600, "cache.db-shm": 0o600}
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (below, below.parent)] == [0o700, 0o700]
    await store.close()


async def test_a_file_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    await filled(path, 1)
    path.chmod(0o644)
    await opened(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = open_store("disk:~/answers/cache.db", CacheSettings())
    assert store is not None
    await store.close()
    assert (tmp_path / "answers" / "cache.db").is_file()


@pytest.mark.parametrize("where", ["disk:~nobody-here/cache.db", "disk:a\0b", "disk:\udcff\ud800"])
def test_what_names_no_file_is_refused(where: str) -> None:
    with pytest.raises(SettingsError, match="name another file"):
        open_store(where, CacheSettings())


def refusal(path: Path) -> str:
    """Return why a file is refused, having checked that everything is as it was."""
    before = {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()}
    with pytest.raises(SettingsError) as caught:
        opened(path)
    assert {file: file.read_bytes() for file in path.parent.iterdir() if file.is_file()} == before
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("content", [b"", b"notes\n", b"SQLite format 3\0", bytes(5_000)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    assert "is not a cache of ollamalab; name another file" in refusal(tmp_path / "notes")


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Not even recovered or given a log: SQLite does not get to see it."""
    path = tmp_path / "bookmarks.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE answers (key, sealed)")
    connection.close()
    assert "is not a cache of ollamalab" in refusal(path)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA + 1}")
        connection.execute("CREATE TABLE something (new)")
    connection.close()
    assert f"newer ollamalab (schema {SCHEMA + 1}; this one reads {SCHEMA})" in refusal(path)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert "is not a file" in refusal(tmp_path / "folder")
    with pytest.raises(SettingsError, match="is not a file"):
        opened(tmp_path / "pipe")


def test_a_place_where_nothing_can_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"file/cache.db: Not a directory; name another file"):
        opened(tmp_path / "file" / "cache.db")
    with pytest.raises(SettingsError, match="File name too long; name another file"):
        opened(tmp_path / ("n" * 300))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def overwrite(path: Path, first_page: int, pages: Sequence[int] = ()) -> None:
    """Put noise in place of pages, all from ``first_page`` on if none are named."""
    source = random.Random(1)
    with path.open("r+b") as file:
        size = path.stat().st_size
        for page in pages or range(first_page, size // 4096):
            file.seek(page * 4096)
            file.write(source.randbytes(4096))


async def test_a_damaged_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    for name, first_page in (("tables", 1), ("end", 40)):
        path = tmp_path / name
        await filled(path, 100)
        overwrite(path, first_page)
        assert "is damaged (" in refusal(path)
        assert "delete it, or name another" in refusal(path)


async def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    await filled(path, 100)
    os.truncate(path, 20 * 4096)
    assert "is damaged (" in refusal(path)


async def test_damage_while_open_means_misses_and_no_wrong_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nine tenths of the file turn into noise under a running store, which was not told."""
    path = tmp_path / "cache.db"
    await filled(path, 1_000)
    store = opened(path, entries=1_000)
    overwrite(path, 0, [page for page in range(8, path.stat().st_size // 4096) if page % 10])
    hits = 0
    with caplog.at_level(logging.WARNING):
        for number in range(1_000):
            kept = await store.get(b"%d" % number)
            if kept is not None:
                hits += 1
                assert kept == make_answer(body=random.Random(number).randbytes(5_000))
            await store.put(b"new %d" % number, make_answer())
    assert hits < 500
    assert (store.statistics().errors or 0) > 400
    assert 1 <= len(caplog.records) <= 3  # one per kind of failure
    assert str(path) in caplog.text
    await store.close()


async def test_a_damaged_answer_is_a_miss_once_and_then_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A single bit, in a database that is in order."""
    path = tmp_path / "cache.db"
    store = opened(path)
    await store.put(KEY, make_answer(body=b"x" * 1_000))
    with sqlite3.connect(path) as connection:
        (sealed,) = connection.execute("SELECT sealed FROM answers").fetchone()
        flipped = sealed[:500] + bytes([sealed[500] ^ 1]) + sealed[501:]
        connection.execute("UPDATE answers SET sealed = ?", (flipped,))
    connection.close()
    assert await store.get(KEY) is None
    assert await store.get(KEY) is None
    assert (store.statistics().errors, store.statistics().entries) == (1, 0)
    assert len(caplog.records) == 1
    await store.close()


async def test_an_answer_under_anothers_key_is_a_miss(tmp_path: Path) -> None:
    """It is whole, but the answer to another question: what a damaged index would give."""
    path = tmp_path / "cache.db"
    store = opened(path)
    await store.put(KEY, make_answer())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE answers SET key = ?", (b"another",))
    connection.close()
    assert await store.get(b"another") is None
    assert store.statistics().errors == 1
    await store.close()


def test_a_full_disk_means_answers_not_kept(tmp_path: Path) -> None:
    """The process may write no file past 300 KB: what fits is served, nothing fails but the count tells."""
    path = tmp_path / "cache.db"
    with subprocess.Popen(
        [sys.executable, str(USER), str(path), "0", "200"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    ) as process:
        lines, complaints = process.communicate()
    assert process.returncode == 0, complaints
    word, errors = lines.splitlines()[-1].split("\t")
    assert word == "errors"
    assert int(errors) > 50
    assert_sound(path)


async def test_a_file_that_cannot_be_emptied_says_so(tmp_path: Path) -> None:
    """Another process holds the lock."""
    path = tmp_path / "cache.db"
    store = opened(path)
    await store.put(KEY, make_answer())
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match=r"cannot be emptied \(database is locked\)"):
        await store.clear()
    assert await store.get(KEY) is not None  # readers go on meanwhile
    holder.execute("ROLLBACK")
    holder.close()
    assert await store.clear() == 1
    await store.close()


async def test_clearing_gives_the_space_back(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    await filled(path, 1_000)
    assert path.stat().st_size > 5_000_000
    store = opened(path, entries=1_000)
    assert await store.clear() == 1_000
    assert path.stat().st_size < 100_000
    await store.put(KEY, make_answer())
    assert await store.get(KEY) is not None
    await store.close()


async def test_replacing_answers_for_ever_does_not_grow_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cache.db"
    store = opened(path, entries=50)
    sizes = []
    for number in range(2_000):
        await store.put(b"%d" % number, make_answer(body=bytes(3_000)))
        sizes.append(path.stat().st_size + path.with_name("cache.db-wal").stat().st_size)
    assert max(sizes) < 6_000_000  # the log, of up to 4 MB, is most of it
    assert store.statistics().evicted == 1_950
    await store.close()
    assert path.stat().st_size < 1_000_000
