"""Vectors are cut and normalised as Ollama does, and texts are read from every form of input."""

import math
from pathlib import Path

import pytest
from gguf_samples import write_small_gguf

from ollamalab.embedded.embed import input_texts, normalised, shortened_vector, token_limit
from ollamalab.embedded.models import ModelFile, ModelStore
from ollamalab.embedded.openai import packed
from ollamalab.errors import RequestRefused


def test_a_vector_gets_length_one_and_zeros_stay_zeros() -> None:
    assert normalised([3.0, 4.0]) == pytest.approx([0.6, 0.8])
    assert normalised([0.0, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_vector_without_a_direction_is_refused(bad: float) -> None:
    with pytest.raises(RequestRefused, match="NaN or Inf"):
        normalised([1.0, bad])


@pytest.mark.parametrize(
    ("dimensions", "vector"),
    [
        (0, [0.48, 0.6, 0.64]),
        (2, [0.6247, 0.7809]),
        (3, [0.48, 0.6, 0.64]),
        (99, [0.48, 0.6, 0.64]),
        (-1, [0.48, 0.6, 0.64]),
    ],
)
def test_fewer_dimensions_are_normalised_again(dimensions: int, vector: list[float]) -> None:
    assert shortened_vector([2.4, 3.0, 3.2], dimensions) == pytest.approx(vector, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "texts"), [(None, []), ("", []), ("a", ["a"]), ([], []), ([""], [""]), (["a", "b"], ["a", "b"])]
)
def test_every_form_of_input_is_read(value: object, texts: list[str]) -> None:
    assert input_texts(value) == texts


@pytest.fixture
def model(tmp_path: Path) -> ModelFile:
    path = tmp_path / "small.gguf"
    write_small_gguf(path)
    return ModelStore(tmp_path / "none", extra=[path]).find("small")


def test_room_is_left_for_the_tokens_that_the_tokenizer_adds(model: ModelFile) -> None:
    """Unless the text has them already: 0 begins and 1 ends a text of this model."""
    assert token_limit(model, [7, 8], 512) == 510
    assert token_limit(model, [0, 8], 512) == 511
    assert token_limit(model, [0, 8, 1], 512) == 512
    assert token_limit(model, [], 512) == 512


def test_packed_floats_are_little_endian() -> None:
    assert packed([1.0, -2.0]) == "AACAPwAAAMA="
