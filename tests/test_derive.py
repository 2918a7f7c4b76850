"""Derived files are the same model in other types or with other metadata, and llama.cpp runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_samples import TOOL_TEMPLATE, write_small_gguf

from ollamalab.embedded.derive import VARIANTS, derive_model, write_variant
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.gguf_file import read_gguf
from ollamalab.embedded.models import DEFAULT_MODEL, DERIVED_FROM, ModelStore, sha256_of
from ollamalab.errors import ModelError, ModelNotFound, SettingsError

#: Loads the file at argv[1] in llama.cpp and prints the answer to a chat at temperature 0, as JSON.
ENGINE = """
import json, sys, urllib.request
import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx = 512
params.n_parallel = 1
params.cpuparams.n_threads = 1  # two that wait for each other crawl on a busy machine
params.hostnames = ["127.0.0.1"]
params.port = 0
server = xllamacpp.Server(params)
body = {"temperature": 0, "max_tokens": 12, "messages": [{"role": "user", "content": "Count: 1, 2, 3,"}]}
request = urllib.request.Request(
    server.listening_address + "/v1/chat/completions",
    json.dumps(body).encode(),
    {"Content-Type": "application/json"},
)
with urllib.request.urlopen(request) as reply:
    print("ANSWER " + json.dumps(json.load(reply)))
"""


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """A store with one small model, ``small:1``."""
    store = ModelStore(tmp_path / "models")
    write_small_gguf(store.folder / "small" / "1.gguf")
    return store


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return ensure_model(DEFAULT_MODEL, ModelStore()).path


def weights(path: Path) -> dict[str, np.ndarray]:
    """Decode every tensor with the reference reader."""
    tensors = gguf.GGUFReader(path).tensors
    return {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}


def answer(path: Path) -> str:
    """Return what llama.cpp generates from this file."""
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, str(path)], capture_output=True, text=True, check=False
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ANSWER ")] or [done.stderr]
    reply = json.loads(line.removeprefix("ANSWER "))
    assert reply["usage"]["completion_tokens"] > 3
    return str(reply["choices"][0]["message"]["content"])


@pytest.mark.parametrize("which", ["small", "real"])
def test_a_copy_without_changes_is_the_same_file(tmp_path: Path, smollm2: Path, which: str) -> None:
    """Byte for byte, from the reference writer's file and from llama.cpp's."""
    source = smollm2 if which == "real" else write_small_gguf(tmp_path / "small.gguf")
    write_variant(source, tmp_path / "copy.gguf")
    assert sha256_of(tmp_path / "copy.gguf") == sha256_of(source)


@pytest.mark.parametrize(
    ("to", "embedding", "query", "worst"),
    [("q8_0", "Q8_0", "Q8_0", 0.02), ("q4_0", "Q8_0", "Q4_0", 0.35), ("f16", "F16", "F16", 0.002)],
)
def test_a_variant_is_the_same_model_in_other_types(
    store: ModelStore, to: str, embedding: str, query: str, worst: float
) -> None:
    """Matrices change type, within its precision; norms and rows that fit no block do not."""
    source = store.find("small:1")
    variant = derive_model("small:1", store, to)
    types = {tensor.name: tensor.type for tensor in variant.metadata.tensors}
    assert types == {
        "token_embd.weight": embedding,
        "blk.0.attn_q.weight": query,
        "blk.0.attn_norm.weight": "F32",
        "blk.0.odd.weight": "F16",
    }
    before, after = weights(source.path), weights(variant.path)
    for name, expected in before.items():
        assert np.abs(after[name] - expected).max() <= worst
    for name in ("blk.0.attn_norm.weight", "blk.0.odd.weight"):
        assert np.array_equal(before[name], after[name])


def test_a_variant_is_named_and_says_what_it_is_made_from(store: ModelStore) -> None:
    source = store.find("small:1")
    variant = derive_model("Small:1", store, "q8_0")
    assert variant.name.short == "small:1-q8_0"
    assert variant.metadata.quantization_level == "Q8_0"
    assert variant.derived_from == f"small:1 Q4_1 sha256:{source.digest}"
    assert store.find("small:1-q8_0") == variant
    fields = dict(variant.metadata.fields)
    assert fields.pop(DERIVED_FROM)
    assert fields == {**source.metadata.fields, "general.file_type": 7}
    assert read_gguf(variant.path, with_arrays=True).fields["tokenizer.ggml.tokens"]


@pytest.mark.parametrize("to", VARIANTS)
def test_equal_input_gives_an_equal_file(store: ModelStore, tmp_path: Path, to: str) -> None:
    other = ModelStore(tmp_path / "other")
    (other.folder / "small").mkdir(parents=True)
    shutil.copy(store.find("small:1").path, other.folder / "small" / "1.gguf")
    assert derive_model("small:1", store, to).digest == derive_model("small:1", other, to).digest


def test_a_variant_is_made_once_and_again_when_its_source_has_changed(store: ModelStore) -> None:
    first = derive_model("small:1", store, "q8_0")
    assert derive_model("small:1", store, "q8_0") == first
    write_small_gguf(store.folder / "small" / "1.gguf", seed=1)
    second = derive_model("small:1", ModelStore(store.folder), "q8_0")
    assert second.derived_from != first.derived_from
    assert second.digest != first.digest


def test_progress_goes_up_to_all_bytes(store: ModelStore) -> None:
    steps: list[tuple[str, int, int]] = []
    derive_model("small:1", store, "f16", on_progress=lambda *step: steps.append(step))
    done = [done_bytes for _, done_bytes, _ in steps]
    assert done == sorted(done)
    assert steps[-1][1] == steps[-1][2] > 0


def test_fields_are_replaced_or_added_and_tensors_kept(tmp_path: Path) -> None:
    """How tests get a model file with a tool template, or one that only embeds."""
    source = write_small_gguf(tmp_path / "small.gguf", template="{{ messages }}")
    fields = {
        "tokenizer.chat_template": TOOL_TEMPLATE,
        "llama.pooling_type": 1,
        "test.u8": True,
        "new.float": 0.5,
    }
    write_variant(source, tmp_path / "new.gguf", fields=fields)
    before, after = read_gguf(source), read_gguf(tmp_path / "new.gguf")
    assert dict(after.fields) == {**before.fields, **fields}
    assert after.has_tool_template
    assert after.is_embedding_only
    assert {name: w.tolist() for name, w in weights(source).items()} == {
        name: w.tolist() for name, w in weights(tmp_path / "new.gguf").items()
    }


@pytest.mark.parametrize(
    ("name", "to", "error", "problem"),
    [
        ("small:1", "q2_k", SettingsError, "can be made q8_0, q4_0, f16, not 'q2_k'"),
        ("small:2", "q8_0", ModelNotFound, "model 'small:2' not found"),
        ("norms:1", "q8_0", SettingsError, "nothing in .*norms/1.gguf .* can be made q8_0"),
        ("new:1", "q8_0", SettingsError, "element type 999, unknown here"),
        ("bad:1", "q8_0", ModelError, "not a usable GGUF file"),
    ],
)
def test_what_cannot_be_derived_is_refused_and_leaves_nothing(
    store: ModelStore, name: str, to: str, error: type[Exception], problem: str
) -> None:
    write_odd_files(store.folder)
    before = [known.short for known in store.names()]
    with pytest.raises(error, match=problem):
        derive_model(name, store, to)
    assert [known.short for known in store.names()] == before
    assert not list(store.folder.glob(".partial-*"))


def write_odd_files(folder: Path) -> None:
    """Write a file of norms only, one with a tensor type of the future, and a corrupt one."""
    for name in ("norms", "new", "bad"):
        (folder / name).mkdir()
    writer = gguf.GGUFWriter(folder / "norms" / "1.gguf", "llama")
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    whole = (folder / "norms" / "1.gguf").read_bytes()
    row = b"output_norm.weight" + (1).to_bytes(4, "little") + (64).to_bytes(8, "little")
    at = whole.index(row) + len(row)
    (folder / "new" / "1.gguf").write_bytes(whole[:at] + (999).to_bytes(4, "little") + whole[at + 4 :])
    (folder / "bad" / "1.gguf").write_bytes(b"GGUF")


def test_a_full_disk_while_deriving_leaves_no_variant(store: ModelStore) -> None:
    """A limit on file sizes stands for the full disk."""
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from ollamalab.embedded.derive import derive_model\n"
        "from ollamalab.embedded.models import ModelStore\n"
        "from ollamalab.errors import ModelError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))\n"
        "try:\n    derive_model('small:1', ModelStore(Path(sys.argv[1])), 'f16')\n"
        "except ModelError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", script, str(store.folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "free some space there" in done.stdout
    assert [name.short for name in store.names()] == ["small:1"]
    assert not list(store.folder.glob(".partial-*"))


def test_llama_cpp_answers_from_derived_files_much_as_from_their_source(
    tmp_path: Path, smollm2: Path
) -> None:
    """An f16 made from Q4_1 holds the same weights; q4_0 is coarser, and still speaks."""
    write_variant(smollm2, tmp_path / "f16.gguf", to="f16")
    write_variant(smollm2, tmp_path / "q4_0.gguf", to="q4_0")
    assert answer(tmp_path / "f16.gguf")[:5] == answer(smollm2)[:5]
    assert answer(tmp_path / "q4_0.gguf").strip()


def test_llama_cpp_loads_a_file_with_another_template(tmp_path: Path, smollm2: Path) -> None:
    write_variant(smollm2, tmp_path / "tools.gguf", fields={"tokenizer.chat_template": TOOL_TEMPLATE})
    assert answer(tmp_path / "tools.gguf").strip()
