"""``/api/ps`` is read as Ollama writes it."""

from __future__ import annotations

import json

import pytest

from ollamalab.errors import BadReply
from ollamalab.protocol.loaded import loaded_models

ENTRY = {
    "name": "smollm2:135m",
    "model": "smollm2:135m",
    "size": 209_000_000,
    "digest": "b1" * 32,
    "details": {"family": "llama"},
    "expires_at": "2026-11-21T05:04:24.229688944+01:00",
    "size_vram": 0,
    "context_length": 4096,
}


def body(*entries: dict[str, object]) -> bytes:
    return json.dumps({"models": entries}).encode()


def test_a_model_is_known_by_any_spelling_and_its_end_is_a_moment():
    (model,) = loaded_models(body(ENTRY))
    assert model.key == "registry.ollama.ai/library/smollm2:135m"
    assert model.expires_unix_s == pytest.approx(1795233864.229688, abs=1e-5)
    assert (model.memory_bytes, model.context_tokens) == (209_000_000, 4096)


def test_what_counts_is_the_memory_of_the_gpus_if_it_is_there():
    (model,) = loaded_models(body({**ENTRY, "size_vram": 100_000_000}))
    assert model.memory_bytes == 100_000_000


def test_for_ever_is_far_in_the_future():
    (model,) = loaded_models(body({**ENTRY, "expires_at": "2318-11-21T05:04:24.229688944Z"}))
    assert model.expires_unix_s is not None
    assert model.expires_unix_s > 11e9


def test_what_a_server_leaves_out_is_not_known():
    (model,) = loaded_models(body({"name": "a"}))
    assert (model.expires_unix_s, model.context_tokens) == (None, None)


@pytest.mark.parametrize("text", [b'{"models":[]}', b'{"models":null}', b"{}"])
def test_nothing_is_loaded(text: bytes):
    assert loaded_models(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"404 page not found",
        b"[]",
        b'{"models":[{}]}',
        b'{"models":[{"name":"a b"}]}',
        b'{"models":[{"name":"a","expires_at":"soon"}]}',
        b"\xff",
    ],
)
def test_anything_else_is_no_answer_of_ollama(text: bytes):
    with pytest.raises(BadReply, match="/api/ps"):
        loaded_models(text)
