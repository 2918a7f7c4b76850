"""The model store finds files by Ollama's names and is written by one process at a time."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_samples import write_small_gguf

from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore, name_of_file, sha256_of
from ollamalab.errors import ModelError, ModelNotFound, SettingsError
from ollamalab.protocol.names import parse_name

#: Holds the store at argv[1] for writing, half a file inside, until its standard input closes.
WRITER = """
import sys
from pathlib import Path
from ollamalab.embedded.models import ModelStore
with ModelStore(Path(sys.argv[1])).writing(lambda: print("waiting", flush=True)) as folder:
    (folder / "half.gguf").write_bytes(b"GGUF")
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def put(store: ModelStore, name: str, *, seed: int = 0) -> Path:
    model, tag = name.split(":")
    return write_small_gguf(store.folder / model / f"{tag}.gguf", seed=seed)


def writer(store: ModelStore) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(store.folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline().strip()


@pytest.mark.parametrize(
    "spelling",
    [
        "smollm2:135m",
        "SmolLM2:135M",
        "library/smollm2:135m",
        "registry.ollama.ai/library/smollm2:135m",
        "https://registry.ollama.ai/library/SmolLM2:135m",
        "smollm2",
        "smollm2:latest",
    ],
)
def test_a_model_is_found_by_every_spelling_of_its_name(store: ModelStore, spelling: str) -> None:
    """Also by a bare ``smollm2``, which stands for the default model."""
    path = put(store, DEFAULT_MODEL)
    found = store.find(spelling)
    assert found.path == path
    assert found.name.short == "smollm2:135m"
    assert found == store.find(parse_name(spelling))


def test_a_real_latest_wins_over_the_alias(store: ModelStore) -> None:
    put(store, DEFAULT_MODEL)
    latest = put(store, "smollm2:latest")
    assert store.find("smollm2").path == latest


def test_a_file_in_capitals_is_found(store: ModelStore) -> None:
    """Files that a user put there keep their spelling in lists."""
    path = put(store, "Qwen:7B")
    assert store.find("qwen:7b").path == path
    assert [name.short for name in store.names()] == ["Qwen:7B"]


@pytest.mark.parametrize(
    "absent", ["smollm2:360m", "someone/smollm2:135m", "other.host/library/smollm2:135m"]
)
def test_an_unknown_name_is_told_what_there_is_and_what_to_do(store: ModelStore, absent: str) -> None:
    put(store, DEFAULT_MODEL)
    with pytest.raises(ModelNotFound, match="there are: smollm2:135m") as refusal:
        store.find(absent)
    assert f"'{absent}'" in str(refusal.value)
    assert "ollamalab models fetch" in str(refusal.value)


def test_text_that_is_no_name_is_refused(store: ModelStore) -> None:
    with pytest.raises(SettingsError, match="not a model name"):
        store.find("a b")


def test_an_empty_store_lists_nothing_and_makes_no_folder(store: ModelStore) -> None:
    assert store.list() == []
    assert store.names() == []
    assert not store.folder.exists()


def test_the_store_is_in_the_cache_that_xdg_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert ModelStore().folder == tmp_path / "ollamalab" / "models"


def test_a_model_says_size_digest_and_when_it_changed(store: ModelStore) -> None:
    path = put(store, DEFAULT_MODEL)
    model = store.find(DEFAULT_MODEL)
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert model.size_bytes == path.stat().st_size
    assert model.modified_ns == path.stat().st_mtime_ns
    assert model.metadata.quantization_level == "Q4_1"
    assert model.derived_from is None
    assert model.model_info()["tokenizer.ggml.tokens"] is None
    assert model.model_info(verbose=True)["tokenizer.ggml.tokens"]


def test_the_list_has_the_newest_first(store: ModelStore) -> None:
    for second, name in ((20, "b:1"), (30, "a:1"), (10, "c:1"), (20, "a:2")):
        os.utime(put(store, name), (second, second))
    assert [model.name.short for model in store.list()] == ["a:1", "a:2", "b:1", "c:1"]


def test_a_corrupt_file_is_left_out_of_the_list_but_not_called_unknown(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    put(store, "good:1")
    put(store, "bad:1").write_bytes(b"not a model")
    assert [model.name.short for model in store.list()] == ["good:1"]
    assert "bad:1" in caplog.text
    assert [name.short for name in store.names()] == ["bad:1", "good:1"]
    with pytest.raises(ModelError, match="not a usable GGUF file") as refusal:
        store.find("bad:1")
    assert not isinstance(refusal.value, ModelNotFound)


def test_files_that_are_no_models_are_passed_over(store: ModelStore) -> None:
    write_small_gguf(store.folder / "loose.gguf")
    write_small_gguf(store.folder / "no name" / "x.gguf")
    write_small_gguf(store.folder / "a" / "b" / "deep.gguf")
    assert store.names() == []


def test_a_changed_file_is_read_again(store: ModelStore) -> None:
    path = put(store, "m:1", seed=0)
    before = store.find("m:1")
    put(store, "m:1", seed=1)
    os.utime(path, ns=(0, before.modified_ns + 1))
    after = store.find("m:1")
    assert after.digest != before.digest
    assert after.digest == sha256_of(path)


def test_a_model_found_before_is_recalled_until_its_file_changes_or_goes(store: ModelStore) -> None:
    path = put(store, "m:1")
    name = parse_name("m:1")
    assert store.recall(name) is None
    found = store.find(name)
    assert store.recall(parse_name("library/M:1")) is found
    os.utime(path, ns=(0, found.modified_ns + 1))
    assert store.recall(name) is None
    assert store.recall(store.find(name).name) is not None
    path.unlink()
    assert store.recall(name) is None


def test_what_an_alias_stood_for_is_not_recalled(store: ModelStore) -> None:
    """Or a real ``smollm2:latest`` would go unseen."""
    put(store, DEFAULT_MODEL)
    store.find("smollm2")
    assert store.recall(parse_name("smollm2")) is None


def test_the_digest_is_kept_on_disk_until_the_file_changes(store: ModelStore) -> None:
    """A second process does not hash again: it believes the note, here one made to differ."""
    path = put(store, "m:1")
    true = store.find("m:1").digest
    (note,) = (store.folder / ".digests").iterdir()
    note.write_text(note.read_text().replace(true, "0" * 64))
    assert ModelStore(store.folder).find("m:1").digest == "0" * 64
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert ModelStore(store.folder).find("m:1").digest == true


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"file": 1}', "\x00"])
def test_a_damaged_note_of_a_digest_is_made_anew(store: ModelStore, damage: str) -> None:
    put(store, "m:1")
    true = store.find("m:1").digest
    (note,) = (store.folder / ".digests").iterdir()
    note.write_text(damage)
    assert ModelStore(store.folder).find("m:1").digest == true
    assert true in note.read_text()


def test_a_store_that_cannot_be_written_still_serves_files_given_by_path(tmp_path: Path) -> None:
    """The digest is then computed each time."""
    (tmp_path / "file").write_bytes(b"")
    path = write_small_gguf(tmp_path / "m.gguf")
    store = ModelStore(tmp_path / "file" / "models", [path])
    assert store.find("m").digest == sha256_of(path)
    with pytest.raises(ModelError, match="cannot write to"), store.writing():
        pass


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my-model.gguf", "my-model:latest"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct.q4_1:latest"),
        ("My Model (2).GGUF", "my-model--2-:latest"),
        ("..hidden.gguf", "hidden:latest"),
        ("ä.gguf", "model:latest"),
        ("x" * 200 + ".gguf", "x" * 80 + ":latest"),
        ("no-suffix", "no-suffix:latest"),
    ],
)
def test_a_file_given_by_path_is_called_by_its_stem(file: str, name: str) -> None:
    """And that is always a name which Ollama's rules allow."""
    assert name_of_file(Path("/some/where") / file).short == name
    assert parse_name(name).short == name


def test_files_given_by_path_join_the_list_and_win(store: ModelStore, tmp_path: Path) -> None:
    put(store, "my-model:latest")
    path = write_small_gguf(tmp_path / "My-Model.gguf", seed=1)
    both = ModelStore(store.folder, [path])
    assert both.find("my-model").path == path
    assert [model.name.short for model in both.list()] == ["my-model:latest"]


def test_two_files_of_the_same_name_are_refused(tmp_path: Path) -> None:
    paths = [write_small_gguf(tmp_path / folder / "m.gguf") for folder in "ab"]
    with pytest.raises(SettingsError, match="would both be m:latest; rename one"):
        ModelStore(tmp_path / "models", paths)


def test_a_corrupt_or_missing_file_given_by_path_is_refused_at_once(tmp_path: Path) -> None:
    corrupt = tmp_path / "corrupt.gguf"
    corrupt.write_bytes(b"GGUF")
    for path, problem in ((corrupt, "cut off"), (tmp_path / "absent.gguf", "No such file")):
        with pytest.raises(ModelError, match=problem) as refusal:
            ModelStore(tmp_path / "models", [path])
        assert str(path) in str(refusal.value)


def test_a_finished_file_is_adopted_under_its_name(store: ModelStore) -> None:
    with store.writing() as folder:
        model = store.adopt(write_small_gguf(folder / "x.gguf"), parse_name("New:Tag"))
    assert model.path == store.folder / "new" / "tag.gguf"
    assert store.find("new:tag").digest == sha256_of(model.path)
    assert not list(store.folder.glob(".partial-*"))


def test_a_broken_file_is_never_adopted(store: ModelStore) -> None:
    with store.writing() as folder:
        broken = folder / "x.gguf"
        broken.write_bytes(b"GGUF")
        with pytest.raises(ModelError, match="not a usable GGUF"):
            store.adopt(broken, parse_name("new"))
    assert store.names() == []
    assert not list(store.folder.glob(".partial-*"))


def test_the_store_keeps_no_hosts_and_namespaces(store: ModelStore) -> None:
    with pytest.raises(SettingsError, match="has a host or namespace"):
        store.path_of(parse_name("someone/model:1"))


def test_one_process_writes_at_a_time_and_the_next_one_waits(store: ModelStore) -> None:
    with writer(store) as first:
        assert said(first) == "writing"
        with writer(store) as second:
            assert said(second) == "waiting"
            first.communicate()
            assert said(second) == "writing"
            second.communicate()
    assert (first.returncode, second.returncode) == (0, 0)
    assert not list(store.folder.glob(".partial-*"))


def test_kill_9_while_writing_leaves_no_model_and_no_lock(store: ModelStore) -> None:
    """Its half-written file is never listed, and the next writer clears it away."""
    with writer(store) as killed:
        assert said(killed) == "writing"
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    (leftover,) = store.folder.glob(".partial-*")
    assert (leftover / "half.gguf").exists()
    assert store.names() == []
    with store.writing():
        assert not leftover.exists()
