"""Which models ``serve`` keeps warm: keys, forms, ranges; nothing unless asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ollamalab.errors import SettingsError
from ollamalab.settings import WarmupSettings
from ollamalab.settings.files import gateway_settings


def read(folder: Path, text: str) -> WarmupSettings:
    file = folder / "gateway.yaml"
    file.write_text(f"upstream: h\n{text}\n")
    return gateway_settings(file).warmup


def test_nothing_is_kept_warm_unless_asked_for(tmp_path: Path) -> None:
    assert read(tmp_path, "") == WarmupSettings()
    assert not WarmupSettings().is_on


def test_models_and_the_price_of_holding_are_read(tmp_path: Path) -> None:
    settings = read(tmp_path, "warm: [llama3, smollm2:135m]\nwarm_keep: auto\nwarm_hold_cost: 0.05")
    assert settings == WarmupSettings(models=("llama3", "smollm2:135m"), keep="auto", hold_cost=0.05)
    assert settings.is_on


def test_one_model_needs_no_list(tmp_path: Path) -> None:
    assert read(tmp_path, "warm: llama3").models == ("llama3",)
    assert read(tmp_path, "warm: llama3").is_on


@pytest.mark.parametrize(("word", "keep"), [("off", "off"), ("no", "off"), ("on", "auto"), ("auto", "auto")])
def test_a_bare_word_is_what_its_writer_meant(tmp_path: Path, word: str, keep: str) -> None:
    assert read(tmp_path, f"warm_keep: {word}").keep == keep


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("warm_keep: always", "warm_keep must be off or auto, got 'always'"),
        ("warm_hold_cost: much", "warm_hold_cost must be a number from 0, got 'much'"),
        ("warm_hold_cost: -1", "warm_hold_cost must be a number from 0, got -1"),
        ("warm_hold_cost: .nan", "warm_hold_cost must be a number from 0, got nan"),
        ("warm_hold_cost: 5000", "warm_hold_cost must be 0 to 1000, got 5000.0"),
        ("warm: a/b/c/d", "'a/b/c/d' is not a model name"),
        ("warm: [3]", "warm must be a text, got 3"),
    ],
)
def test_what_is_wrong_is_named_with_its_value(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)):
        read(tmp_path, text)
