"""Wherever a model with random weights is named, its name says so, once."""

from __future__ import annotations

import pytest

from ollamalab.protocol.synthetic import is_synthetic, mark_mentions, mark_synthetic


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        ({"model_info": {"ollamalab.synthetic": True}}, True),
        ({"model_info": {"ollamalab.synthetic": False}}, False),
        ({"model_info": {"general.architecture": "qwen2"}}, False),
        ({"model_info": None}, False),
        ({}, False),
    ],
)
def test_a_model_is_synthetic_only_if_its_metadata_says_so(shown: dict[str, object], expected: bool) -> None:
    assert is_synthetic(shown) is expected


def test_a_name_that_says_it_itself_gets_no_second_mark() -> None:
    assert mark_synthetic("qwen2.5:7b") == "qwen2.5:7b (synthetic)"
    assert mark_synthetic("synthetic:7b-q4_0") == "synthetic:7b-q4_0"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Latency of big:7b, 32 tokens", "Latency of big:7b (synthetic), 32 tokens"),
        ("big:7b on embedded", "big:7b (synthetic) on embedded"),
        ("measured on big:7b.", "measured on big:7b (synthetic)."),
        ("big:7b (synthetic) on embedded", "big:7b (synthetic) on embedded"),
        ("big:7b-q8_0 and other/big:7b and big:7b.1", "big:7b-q8_0 and other/big:7b and big:7b.1"),
        ("nothing to mark", "nothing to mark"),
    ],
)
def test_every_mention_in_a_text_is_marked(text: str, expected: str) -> None:
    """Longer names that contain it, and mentions that have the mark, stay."""
    assert mark_mentions(text, ["big:7b"]) == expected
    assert mark_mentions(mark_mentions(text, ["big:7b"]), ["big:7b"]) == expected
