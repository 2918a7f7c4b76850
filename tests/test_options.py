"""Options are read with Ollama's names, types, defaults and words."""

import re
from typing import Any

import pytest

from ollamalab.errors import SettingsError
from ollamalab.protocol.options import (
    Options,
    bounded_num_predict,
    context_tokens,
    load_options,
    parse_options,
)


def test_nothing_given_is_ollama_s_default() -> None:
    options = parse_options({})
    assert options == Options()
    assert (options.temperature, options.top_k, options.top_p, options.min_p) == (0.8, 40, 0.9, 0.0)
    assert (options.repeat_penalty, options.repeat_last_n, options.num_keep) == (1.0, 64, 4)
    assert (options.num_predict, options.seed, options.num_gpu) == (-1, -1, -1)
    assert options.num_ctx is None


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"num_ctx": 2048, "num_batch": 64}, {"num_ctx": 2048, "num_batch": 64}),
        ({"top_k": 1.9, "seed": -7.9}, {"top_k": 1, "seed": -7}),
        ({"num_predict": 1e20}, {"num_predict": 2**63 - 1}),
        ({"stop": ["a", "b"]}, {"stop": ("a", "b")}),
        ({"stop": []}, {"stop": ()}),
        ({"use_mmap": True}, {"use_mmap": True}),
        ({"temperature": None, "stop": None}, {}),
    ],
)
def test_given_values_are_read_and_fractions_cut_off(raw: dict[str, Any], read: dict[str, Any]) -> None:
    assert parse_options(raw) == Options(**read)


@pytest.mark.parametrize("name", ["foo", "mirostat", "numa", "low_vram", "f16_kv", "logits_all", "NUM_CTX"])
def test_unknown_and_former_options_are_ignored(name: str) -> None:
    assert parse_options({name: {"any": "thing"}}) == Options()


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"num_ctx": "x"}, 'option "num_ctx" must be of type integer'),
        ({"seed": True}, 'option "seed" must be of type integer'),
        ({"num_predict": [1]}, 'option "num_predict" must be of type integer'),
        ({"temperature": "0.5"}, 'option "temperature" must be of type float32'),
        ({"top_p": False}, 'option "top_p" must be of type float32'),
        ({"use_mmap": 1}, 'option "use_mmap" must be of type boolean'),
        ({"stop": "x"}, 'option "stop" must be of type array'),
        ({"stop": [1]}, 'option "stop" must be of an array of strings'),
    ],
)
def test_a_wrong_type_is_refused_in_ollama_s_words(raw: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        parse_options(raw)


@pytest.mark.parametrize(
    ("num_ctx", "trained", "tokens"),
    [
        (None, 8192, 4096),
        (512, 8192, 512),
        (999_999, 8192, 8192),
        (0, 8192, 4),
        (-1, None, 4),
        (None, 2048, 2048),
    ],
)
def test_context_is_capped_by_training_and_never_under_four(
    num_ctx: int | None, trained: int | None, tokens: int
) -> None:
    asked = Options(num_ctx=num_ctx)
    assert context_tokens(asked, default_tokens=4096, trained_tokens=trained) == tokens


@pytest.mark.parametrize(
    ("num_predict", "bounded"), [(-1, 5120), (-2, 5120), (7, 7), (0, 0), (5120, 5120), (5121, 5120)]
)
def test_open_ended_answers_end_after_ten_contexts(num_predict: int, bounded: int) -> None:
    assert bounded_num_predict(num_predict, 512) == bounded


def test_load_options_are_those_that_would_load_a_model_anew():
    raw = {"num_ctx": 8192, "temperature": 0, "num_gpu": None, "use_mmap": False, "Num_batch": 64}
    assert load_options(raw) == {"num_ctx": 8192, "use_mmap": False}
