"""The header reader agrees with the reference reader, and refuses whatever is not a whole GGUF file."""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_samples import TOKENS, TOOL_TEMPLATE, write_small_gguf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.gguf_file import human_number, parse_gguf, read_gguf, shortest_f32
from ollamalab.embedded.models import DEFAULT_MODEL, ModelStore
from ollamalab.errors import ModelError

THINKING = "{% if enable_thinking %}<think>{{ x }}</think>{% endif %}"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", template=TOOL_TEMPLATE)


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return ensure_model(DEFAULT_MODEL, ModelStore()).path


def same(mine: Any, reference: Any, kind: gguf.GGUFValueType) -> bool:
    """Whether two values are equal in the precision that the file has."""
    return bool(np.float32(mine) == reference if kind == gguf.GGUFValueType.FLOAT32 else mine == reference)


@pytest.mark.parametrize("which", ["small", "smollm2"])
def test_it_reads_what_the_reference_reader_reads(which: str, request: pytest.FixtureRequest) -> None:
    """Fields with arrays, and the tensor table down to the bytes of each tensor."""
    path: Path = request.getfixturevalue(which)
    ours = read_gguf(path, with_arrays=True)
    theirs = gguf.GGUFReader(path)
    fields = {key: f for key, f in theirs.fields.items() if not key.startswith("GGUF.")}
    assert list(ours.fields) == list(fields)
    for key, field in fields.items():
        if len(field.data) < 100:  # decoding 98,000 strings there takes minutes; ends are enough
            assert same(ours.fields[key], field.contents(), field.types[0]), key
        else:
            assert len(ours.fields[key]) == len(field.data)
            for index in (0, 1, len(field.data) // 2, -1):
                assert ours.fields[key][index] == field.contents(index), key
    data = path.read_bytes()
    assert len(ours.tensors) == len(theirs.tensors)
    for mine, reference in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.type_id, mine.type) == (
            reference.name,
            reference.tensor_type,
            reference.tensor_type.name,
        )
        assert mine.shape == tuple(reference.shape)
        assert mine.elements == reference.n_elements
        assert mine.size_bytes == reference.n_bytes
        assert data[mine.start : mine.start + reference.n_bytes] == np.asarray(reference.data).tobytes()


def test_the_real_model_says_what_ollama_shows_of_it(smollm2: Path) -> None:
    metadata = read_gguf(smollm2)
    assert metadata.architecture == "llama"
    assert metadata.parameter_count == 134_515_008
    assert metadata.parameter_size == "134.52M"
    assert metadata.quantization_level == "Q4_1"
    assert (metadata.context_length, metadata.embedding_length) == (8192, 576)
    assert (metadata.bos_token_id, metadata.eos_token_id) == (1, 2)
    assert metadata.capabilities == ("completion",)
    assert repr(metadata.fields["llama.attention.layer_norm_rms_epsilon"]) == "1e-05"
    assert metadata.chat_template
    assert "<|im_start|>" in metadata.chat_template


def test_model_info_has_the_parameter_count_but_neither_name_nor_template(small: Path) -> None:
    """Keys are sorted, arrays are null unless asked for: what /api/show carries."""
    info = read_gguf(small).model_info()
    assert list(info) == sorted(info)
    assert info["general.parameter_count"] == 2 * 32 * 64 + 64 + 3 * 33
    assert not {"general.name", "tokenizer.chat_template"} & set(info)
    assert info["tokenizer.ggml.tokens"] is None
    verbose = read_gguf(small, with_arrays=True).model_info()
    assert verbose["tokenizer.ggml.tokens"] == TOKENS
    assert verbose["test.flags"] == [True, False]
    assert list(verbose) == list(info)


@pytest.mark.parametrize(
    ("template", "capabilities"),
    [
        (None, ("completion",)),
        ("{{ messages }}", ("completion",)),
        (TOOL_TEMPLATE, ("tools", "completion")),
        (THINKING, ("thinking", "completion")),
        ("{{ content.split('</think>')[-1] }}", ("thinking", "completion")),
        ("{{ reasoning_content }}{{ content.split('</think>')[-1] }}", ("completion",)),
        (TOOL_TEMPLATE + THINKING, ("tools", "thinking", "completion")),
    ],
)
def test_capabilities_come_from_the_template_as_in_ollama(
    tmp_path: Path, template: str | None, capabilities: tuple[str, ...]
) -> None:
    metadata = read_gguf(write_small_gguf(tmp_path / "m.gguf", template=template))
    assert metadata.capabilities == capabilities
    assert metadata.has_tool_template == ("tools" in capabilities)
    assert metadata.is_thinking == ("thinking" in capabilities)


def test_a_pooling_type_makes_a_model_embedding_only(tmp_path: Path) -> None:
    numbers = {"nomic.pooling_type": 1}
    metadata = read_gguf(write_small_gguf(tmp_path / "m.gguf", architecture="nomic", numbers=numbers))
    assert metadata.is_embedding_only
    assert metadata.capabilities == ("embedding",)


def test_fill_in_tokens_promise_nothing(tmp_path: Path) -> None:
    """The server refuses ``suffix``, so no model may advertise it."""
    numbers = {"tokenizer.ggml.fim_pre_token_id": 2, "tokenizer.ggml.fim_suf_token_id": 3}
    metadata = read_gguf(write_small_gguf(tmp_path / "m.gguf", numbers=numbers))
    assert metadata.capabilities == ("completion",)


def test_what_a_file_does_not_say_is_none(tmp_path: Path) -> None:
    path = tmp_path / "bare.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    metadata = read_gguf(path)
    assert metadata.architecture == "unknown"
    assert metadata.quantization_level == "unknown"
    assert metadata.chat_template is None
    assert metadata.context_length is None
    assert metadata.eos_token_id is None


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (1_000, "1K"),
        (134_515_008, "134.52M"),
        (22_000_000, "22M"),
        (7_000_000_000, "7B"),
        (7_615_616_512, "7.6B"),
    ],
)
def test_counts_are_written_as_ollama_writes_them(count: int, text: str) -> None:
    assert human_number(count) == text


@given(st.floats(width=32))
@example(3.4025001647762064e38)  # four digits of it are no 32-bit float any more
@settings(deadline=None)
def test_a_32_bit_float_keeps_its_value_in_as_few_digits_as_do(value: float) -> None:
    short = shortest_f32(value)
    assert struct.pack("<f", short) == struct.pack("<f", value) or math.isnan(value)
    assert repr(short) == repr(float(str(np.float32(value))))


def field(key: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key.encode() + struct.pack("<I", kind) + value


def header(*fields: bytes, tensors: tuple[bytes, ...] = (), version: int = 3) -> bytes:
    return (
        b"GGUF"
        + struct.pack("<IQQ", version, len(tensors), len(fields))
        + b"".join(fields)
        + b"".join(tensors)
    )


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int = 0) -> bytes:
    row = struct.pack("<Q", len(name)) + name.encode()
    return row + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "an empty file"),
        (b"PK\x03\x04 a wheel", "not with b'GGUF'"),
        (b"GGUF" + struct.pack("<I", 1), "version 1"),
        (b"GGUF" + struct.pack(">I", 3), "big-endian"),
        (header(field("a", 4, bytes(4)), field("a", 4, bytes(4))), "'a' appears twice"),
        (header(field("a", 99, bytes(4))), "unknown type 99"),
        (header(field("a", 9, struct.pack("<IQ", 9, 1))), "elements of the unusable type 9"),
        (header(field("a", 9, struct.pack("<IQ", 4, 2**60))), "cut off at byte"),
        (header(field("a", 9, struct.pack("<IQ", 8, 2**60))), "cut off at byte"),
        (header(field("a", 9, struct.pack("<IQQ", 8, 1, 2**63))), "cut off at byte"),
        (header(field("a", 8, struct.pack("<Q", 2**64 - 1))), "inside its metadata"),
        (header(field("general.alignment", 4, bytes(4))), "general.alignment must be"),
        (header(tensors=(tensor("w", (4,) * 5, 0),)), "has 5 dimensions"),
        (header(tensors=(tensor("w", (33,), 2),)), "tensor 'w': rows of 33 elements"),
        (header(tensors=(tensor("w", (2**62, 2**62), 0),)), "tensor 'w' ends at byte"),
        (header(tensors=(tensor("w", (4,), 0, offset=2**63),)), "tensor 'w' ends at byte"),
    ],
)
def test_a_bad_file_is_refused_with_its_name_the_problem_and_the_next_step(
    tmp_path: Path, data: bytes, problem: str
) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(ModelError) as refusal:
        read_gguf(path)
    assert str(path) in str(refusal.value)
    assert problem in str(refusal.value)
    assert "copy or fetch it again" in str(refusal.value)


def test_a_path_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.gguf"):
        with pytest.raises(ModelError, match=f"cannot read model file {path}"):
            read_gguf(path)


def test_an_element_type_newer_than_the_table_is_let_through(tmp_path: Path) -> None:
    """llama.cpp may know it; only its size cannot be checked."""
    path = tmp_path / "new.gguf"
    path.write_bytes(header(tensors=(tensor("w", (4,), 999),)) + bytes(64))
    (only,) = read_gguf(path).tensors
    assert (only.type, only.size_bytes, only.elements) == ("unknown", None, 4)


def test_a_file_cut_off_anywhere_is_refused(small: Path) -> None:
    """Every length from 0 to one byte short of the last tensor's end."""
    data = small.read_bytes()
    last = max(t.start + (t.size_bytes or 0) for t in parse_gguf(data).tensors)
    for length in range(last):
        with pytest.raises(ValueError, match=r"cut off|it starts with"):
            parse_gguf(data[:length])


@given(data=st.binary(max_size=300), with_arrays=st.booleans())
@settings(deadline=None)
def test_random_bytes_are_refused(data: bytes, with_arrays: bool) -> None:
    """Random bytes after a right beginning never pass, loop or raise anything else."""
    with pytest.raises(ValueError, match=r"it is|it starts|cannot be read|a field|an array|appears|tensor"):
        parse_gguf(b"GGUF" + struct.pack("<I", 3) + b"\xff" + data, with_arrays=with_arrays)


@given(data=st.data(), with_arrays=st.booleans())
@settings(deadline=None)
def test_a_damaged_file_is_read_or_refused_never_worse(
    small: Path, data: st.DataObject, with_arrays: bool
) -> None:
    """Bytes of the header overwritten at random: a header or a ModelError, nothing else."""
    path = small.with_name("damaged.gguf")
    whole = bytearray(small.read_bytes())
    header_bytes = parse_gguf(bytes(whole)).data_start
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(4, header_bytes))
        patch = data.draw(st.binary(min_size=1, max_size=9))
        whole[at : at + len(patch)] = patch
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    try:
        metadata = read_gguf(path, with_arrays=with_arrays)
    except ModelError as refusal:
        assert str(path) in str(refusal)  # noqa: PT017 - both ways out are right here
    else:
        assert metadata.model_info()
        assert metadata.capabilities
