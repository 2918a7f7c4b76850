"""Synthetic models have the layers of a real size, say what they are, and are served as any other model."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from embedded_server import embedded_server

from ollamalab.client import OllamaClient
from ollamalab.embedded.derive import derive_model
from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.gguf_file import read_gguf
from ollamalab.embedded.gguf_header import TYPE_IDS, TensorRow
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore, sha256_of
from ollamalab.embedded.random_weights import QUANTS, weights
from ollamalab.embedded.shapes import EMBEDDING, SHAPES, find_shape
from ollamalab.embedded.synth import Recipe, synth_model, write_synthetic
from ollamalab.errors import ModelError, SettingsError
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.synthetic import is_synthetic

TINY = SHAPES["tiny"]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return ensure_model(DEFAULT_MODEL, ModelStore()).path


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def command(*arguments: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``ollamalab models synth``; with a limit on the size of any file it writes."""
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes},) * 2)\n"
    script = (limit if limit_bytes else "") + "from ollamalab.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", script, "models", "synth", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_published_number_of_weights(name: str) -> None:
    shape = SHAPES[name]
    assert shape.parameters == pytest.approx(shape.published_parameters, rel=0.02)


@pytest.mark.parametrize(
    ("name", "quant", "gigabytes"),
    [
        ("7b", "q4_0", 4.43),
        ("7b", "q8_0", 8.10),
        ("7b", "f16", 15.2),
        ("32b", "q4_0", 18.6),
        ("72b", "q4_0", 41.2),
    ],
)
def test_a_file_is_as_large_as_the_published_one(name: str, quant: str, gigabytes: float) -> None:
    """Those of Qwen2.5-Instruct as GGUF."""
    size_bytes = sum(row.size_bytes for row in Recipe(shape=SHAPES[name], quant=quant).rows())
    assert size_bytes / 1e9 == pytest.approx(gigabytes, rel=0.04)


@pytest.mark.parametrize("quant", QUANTS)
def test_weights_are_random_around_zero_and_keep_states_finite(
    tmp_path: Path, smollm2: Path, quant: str
) -> None:
    """As the reference reader decodes them: near 1/sqrt(inputs), the embedding 16, norms 1, biases 0."""
    path = write_synthetic(Recipe(shape=TINY, quant=quant), tmp_path / "t.gguf", tokenizer=smollm2).path
    tensors = gguf.GGUFReader(path).tensors
    assert [tensor.name for tensor in tensors] == [name for name, _ in TINY.tensors()]
    for tensor in tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        assert np.isfinite(weights).all()
        if tensor.name.endswith(".bias"):
            assert not weights.any()
        elif "norm" in tensor.name:
            assert (weights == 1).all()
        else:
            usual = 16 if tensor.name == EMBEDDING else 1 / np.sqrt(tensor.shape[0])
            assert abs(weights.mean()) < 0.05 * usual
            assert usual / 1.5 < weights.std() < usual * 1.5


def test_a_file_says_what_it_is(store: ModelStore, smollm2: Path) -> None:
    model, written = synth_model(Recipe(shape=TINY, quant="q4_0", seed=3), store, tokenizer=smollm2)
    assert model.name.short == "synthetic:tiny-q4_0"
    assert model.is_synthetic
    assert "noise" in model.metadata.fields["general.description"]
    assert model.metadata.fields["ollamalab.seed"] == 3
    assert model.metadata.quantization_level == "Q4_0"
    assert model.metadata.parameter_count == TINY.parameters
    assert model.size_bytes == written.size_bytes == model.path.stat().st_size
    assert model.digest == written.digest == sha256_of(model.path)
    assert not ModelStore(extra=[smollm2]).find(smollm2.stem).is_synthetic


def test_the_vocabulary_has_the_size_of_the_shape_and_no_token_twice(tmp_path: Path, smollm2: Path) -> None:
    shape = find_shape("TINY")
    wide = type(shape)(**{**vars(shape), "vocabulary": 70_000})
    path = write_synthetic(Recipe(shape=wide, quant="q8_0"), tmp_path / "w.gguf", tokenizer=smollm2).path
    written, source = (read_gguf(file, with_arrays=True).fields for file in (path, smollm2))
    tokens = written["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == len(written["tokenizer.ggml.token_type"]) == 70_000
    assert tokens[:49_152] == source["tokenizer.ggml.tokens"]
    own = {key for key in source if key.startswith("tokenizer.")} - {
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type",
    }
    assert {key: written[key] for key in own} == {key: source[key] for key in own}


def test_equal_seeds_give_equal_files_and_others_do_not(tmp_path: Path, smollm2: Path) -> None:
    digests = [
        sha256_of(
            write_synthetic(
                Recipe(shape=TINY, quant="q4_0", seed=seed), tmp_path / f"{number}.gguf", tokenizer=smollm2
            ).path
        )
        for number, seed in enumerate((5, 5, 6))
    ]
    assert digests[0] == digests[1] != digests[2]


def test_a_large_model_is_written_from_a_few_pools_in_small_pieces() -> None:
    """So that memory does not grow with the model: the first pieces of 72B share their memory."""
    rows = Recipe(shape=SHAPES["72b"], quant="f16").rows()
    drawn = [piece for piece, _ in zip(weights(rows, 0, 32, made_up=9999), range(300), strict=False)]
    assert sum(map(len, drawn)) > 2e9
    assert max(map(len, drawn)) <= 8 * 2**20
    assert len({id(piece.obj) for piece in drawn if len(piece) > 2**20}) == 1


@pytest.mark.parametrize("quant", QUANTS)
def test_the_rows_of_a_matrix_all_differ(quant: str) -> None:
    """The pool that they go round has a prime length."""
    row = TensorRow("blk.0.ffn_up.weight", (256, 30_000), TYPE_IDS[quant])
    data = b"".join(weights([row], 0, 32, made_up=0))
    assert len(data) == row.size_bytes
    row_bytes = row.size_bytes // 30_000
    found = {data[start : start + row_bytes] for start in range(0, len(data), row_bytes)}
    assert len(found) == 30_000


def test_tensors_of_one_shape_differ() -> None:
    rows = [TensorRow(f"blk.{layer}.attn_q.weight", (256, 256), TYPE_IDS["q4_0"]) for layer in range(2)]
    one, padding, two, _ = (bytes(piece) for piece in weights(rows, 0, 32, made_up=0))
    assert one != two
    assert padding == b""


async def test_the_embedded_server_loads_a_tiny_model_and_says_that_it_is_synthetic(
    tmp_path: Path, smollm2: Path
) -> None:
    """It has no say in its words, but says as many as asked for, and shows its mark."""
    file = tmp_path / "like-any-other.gguf"
    write_synthetic(Recipe(shape=TINY, quant="q4_0"), file, tokenizer=smollm2)
    async with (
        embedded_server(tmp_path, "--model", str(file)) as server,
        OllamaClient(server.url) as client,
    ):
        for temperature in (0, 1):
            options = {"num_predict": 200, "temperature": temperature}
            answer = await client.chat("like-any-other", "Hello there", options=options)
            assert answer.record.output_tokens == 200
        shown = await client.show("like-any-other")
        assert is_synthetic(shown)
        assert shown["model_info"]["qwen2.block_count"] == TINY.layers


@pytest.mark.parametrize("quant", QUANTS)
async def test_an_answer_is_made_up_tokens_in_turn(tmp_path: Path, smollm2: Path, quant: str) -> None:
    """Ollama ends an answer at 30 equal tokens, or 30 that are no text, which would pass for a fast one."""
    file = tmp_path / "t.gguf"
    write_synthetic(Recipe(shape=TINY, quant=quant), file, tokenizer=smollm2)
    async with embedded_server(tmp_path, "--model", str(file)) as server, OllamaClient(server.url) as client:
        answer = await client.chat("t", "Hello there", options={"num_predict": 300, "temperature": 0})
    said = [int(word.removeprefix("#")) - 49_152 for word in answer.text.split()]
    made_up = TINY.vocabulary - 49_152
    assert len(said) == 300
    assert said == [(said[0] + 1009 * step) % made_up for step in range(300)]


def test_the_command_writes_a_file_and_says_how_fast(tmp_path: Path, smollm2: Path) -> None:
    file = tmp_path / "tiny.gguf"
    done = command("--shape", "tiny", "--out", str(file))
    assert done.returncode == 0
    assert "MB/s to the disk" in done.stdout
    assert f"tiny.gguf (synthetic) is at {file}" in done.stdout
    assert read_gguf(file).fields["ollamalab.synthetic"] is True
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.gguf"]


def test_what_a_killed_process_left_is_swept_by_the_next_and_what_others_write_is_not(
    tmp_path: Path, smollm2: Path
) -> None:
    """The first is ended by kill -9 while it writes; beside it, one of a live process and somebody else's."""
    script = "from ollamalab.cli import main; main()"
    out = str(tmp_path / "large.gguf")
    with subprocess.Popen(
        [sys.executable, "-c", script, "models", "synth", "--shape", "7b", "--out", out],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        left = tmp_path / f".large.gguf.{process.pid}.ollamalab.tmp"
        while not left.exists():
            assert process.poll() is None
        process.kill()
    assert left.exists()
    alive = tmp_path / f".other.gguf.{os.getpid()}.ollamalab.tmp"
    locked = tmp_path / f".elsewhere.gguf.{process.pid}.ollamalab.tmp"
    foreign = tmp_path / f".theirs.{process.pid}.tmp"
    for file in (alive, locked, foreign):
        file.touch()
    with locked.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        write_synthetic(Recipe(shape=TINY, quant="q8_0"), tmp_path / "tiny.gguf", tokenizer=smollm2)
    kept = {alive.name, locked.name, foreign.name, "tiny.gguf"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_model_goes_into_the_store_and_is_listed_with_its_mark(
    tmp_path: Path, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a name that does not say so, too; derived and original models stand beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = ModelStore()
    (store.folder / "smollm2").mkdir(parents=True)
    (store.folder / "smollm2" / "135m.gguf").symlink_to(smollm2)
    for arguments in (["--quant", "q8_0"], ["--name", "mine:1"]):
        assert command("--shape", "tiny", *arguments).returncode == 0
    derive_model("mine:1", store, "q8_0")
    listed = subprocess.run(
        [sys.executable, "-m", "ollamalab", "models", "list"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "COLUMNS": "200"},
    ).stdout
    rows = {line.partition("  ")[0]: line for line in listed.splitlines()}
    assert rows["synthetic:tiny-q8_0"].rstrip().endswith("synthetic: random weights")
    assert rows["mine:1 (synthetic)"].rstrip().endswith("synthetic: random weights")
    assert rows["mine:1-q8_0 (synthetic)"].rstrip().endswith("synthetic: mine:1 Q4_0")
    assert rows["smollm2:135m"].split()[-1] == store.find("smollm2").digest[:12]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--shape", "8b"), "there is no shape '8b'; known are tiny, 7b, 14b, 32b, 72b"),
        (("--shape", "tiny", "--quant", "q3"), "random weights can be q4_0, q8_0, f16, not 'q3'"),
        (("--shape", "tiny", "--seed", "-1"), "--seed must be 0 to 4294967295, got -1"),
        (("--shape", "tiny", "--name", "a", "--out", "b"), "leave out --name or --out"),
        (("--shape", "tiny", "--name", "a b"), "'a b'"),
        (("--shape", "tiny", "--name", "smollm2:135m"), "smollm2:135m exists already"),
        (("--shape", "tiny", "--out", "/dev/null"), "/dev/null exists already"),
        (("--shape", "tiny", "--out", "/nope/x.gguf"), "/nope/x.gguf"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments: tuple[str, ...], words: str, smollm2: Path) -> None:
    done = command(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("ollamalab: ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


def test_too_little_room_is_refused_before_anything_is_written(
    store: ModelStore, smollm2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names the bytes that are needed and those that are free."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 4_000_000_000}))
    with pytest.raises(ModelError, match=r"needs 42\d{8} bytes and .* has 4000000000 free"):
        synth_model(Recipe(shape=SHAPES["7b"], quant="q4_0"), store, tokenizer=smollm2)
    assert store.names() == []
    assert not list(store.folder.glob(".partial-*"))


def test_a_disk_that_fills_up_meanwhile_leaves_nothing(tmp_path: Path, smollm2: Path) -> None:
    """A limit on file sizes stands for the full disk."""
    done = command("--shape", "tiny", "--out", str(tmp_path / "t.gguf"), limit_bytes=4_000_000)
    assert done.returncode == 2
    assert "free some space there" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_kept(store: ModelStore, smollm2: Path) -> None:
    recipe = Recipe(shape=TINY, quant="q4_0")
    first, _ = synth_model(recipe, store, tokenizer=smollm2, name=parse_name("mine:1"))
    with pytest.raises(ModelError, match="mine:1 exists already"):
        synth_model(recipe, store, tokenizer=smollm2, name=parse_name("mine:1"))
    assert store.find("mine:1") == first


def test_a_tokenizer_that_does_not_fit_is_refused(tmp_path: Path, smollm2: Path) -> None:
    narrow = type(TINY)(**{**vars(TINY), "vocabulary": 100})
    with pytest.raises(ModelError, match="vocabulary of 49152 tokens"):
        write_synthetic(Recipe(shape=narrow, quant="q4_0"), tmp_path / "x.gguf", tokenizer=smollm2)
    with pytest.raises(SettingsError, match="no shape"):
        find_shape("huge")
