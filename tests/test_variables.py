"""Ollama's environment variables: what a server names at its start, and what it would ignore."""

from __future__ import annotations

import pytest

from ollamalab.settings import ServerSettings
from ollamalab.settings.variables import (
    GONE,
    NAMED_AT_START,
    announced_variables,
    has_llama_server,
    unknown_variables,
)

#: As v0.33.0-rc2 wrote it, shortened.
LOG = (
    "time=2026-11-21T04:17:01.954Z level=INFO source=routes.go:1951 "
    'msg="server config" env="map[CUDA_VISIBLE_DEVICES: HTTP_PROXY: LLAMA_ARG_FIT_TARGET: '
    "OLLAMA_DEBUG:DEBUG OLLAMA_HOST:http://127.0.0.1:11534 OLLAMA_KEEP_ALIVE:5m0s "
    "OLLAMA_MODELS:/my models/here OLLAMA_ORIGINS:[http://localhost https://localhost:* app://*] "
    'OLLAMA_REMOTES:[ollama.com] http_proxy: no_proxy:]"\n'
    'time=2026-11-21T04:17:01.954Z level=INFO source=routes.go:1953 msg="Ollama cloud disabled: false"\n'
)


def test_the_values_that_a_server_understood_are_read_from_its_first_lines() -> None:
    """Blanks and colons within a value are a part of it."""
    assert announced_variables(LOG) == {
        "CUDA_VISIBLE_DEVICES": "",
        "HTTP_PROXY": "",
        "LLAMA_ARG_FIT_TARGET": "",
        "OLLAMA_DEBUG": "DEBUG",
        "OLLAMA_HOST": "http://127.0.0.1:11534",
        "OLLAMA_KEEP_ALIVE": "5m0s",
        "OLLAMA_MODELS": "/my models/here",
        "OLLAMA_ORIGINS": "[http://localhost https://localhost:* app://*]",
        "OLLAMA_REMOTES": "[ollama.com]",
        "http_proxy": "",
        "no_proxy": "",
    }


@pytest.mark.parametrize("log", ["", "listening on http://127.0.0.1:1", 'msg="server config"'])
def test_a_server_that_names_none_is_told_apart_from_one_that_knows_none(log: str) -> None:
    assert announced_variables(log) is None
    assert announced_variables('msg="server config" env="map[]"') == {}


def test_a_variable_that_the_server_does_not_name_does_nothing() -> None:
    names = {"OLLAMA_KEEP_ALIVE", "OLLAMA_SPEED", "OLLAMA_NEW_ENGINE", "PATH", "LLAMA_ARG_THREADS"}
    assert unknown_variables(names, version="0.33.0", announced=announced_variables(LOG)) == {
        "OLLAMA_NEW_ENGINE": GONE["OLLAMA_NEW_ENGINE"],
        "OLLAMA_SPEED": "Ollama 0.33.0 has no such variable",
    }


def test_a_variable_that_ollama_reads_without_naming_it_is_no_stranger() -> None:
    assert unknown_variables(["OLLAMA_AUTH"], version="0.33.0", announced=[]) == {}


def test_without_the_servers_word_only_what_is_known_to_be_gone_is_named() -> None:
    """A newer Ollama may know what this table does not."""
    names = ["OLLAMA_SPEED", "OLLAMA_MAX_VRAM"]
    assert unknown_variables(names, version="0.40.0") == {"OLLAMA_MAX_VRAM": GONE["OLLAMA_MAX_VRAM"]}


def test_what_went_with_version_0_30_still_counts_before_it() -> None:
    assert unknown_variables(["OLLAMA_NEW_ENGINE"], version="0.29.1") == {}
    assert unknown_variables(["OLLAMA_NEW_ENGINE"], version="0.30.0").keys() == {"OLLAMA_NEW_ENGINE"}


@pytest.mark.parametrize(
    ("version", "answer"),
    [
        ("0.29.9", False),
        ("0.30.0-rc1", True),
        ("0.9.6", False),
        ("1.0.0", True),
        ("0.0.0", True),
        ("x", True),
    ],
)
def test_models_run_in_llama_server_since_0_30(version: str, answer: bool) -> None:
    assert has_llama_server(version) is answer


def test_every_setting_of_ours_is_a_variable_of_todays_ollama() -> None:
    assert ServerSettings(flash_attention=True).environment().keys() <= NAMED_AT_START
    assert not GONE.keys() & NAMED_AT_START
