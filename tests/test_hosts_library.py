"""Where Ollama keeps its models, and which file holds the weights of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollamalab.hosts import models_folder, weights_file

DIGEST = "sha256:" + "ab" * 32


def add_manifest(folder: Path, name: str, *layers: str) -> None:
    manifest = folder / "manifests" / name
    manifest.parent.mkdir(parents=True)
    kinds = [{"mediaType": f"application/vnd.ollama.image.{kind}", "digest": DIGEST} for kind in layers]
    manifest.write_text(json.dumps({"schemaVersion": 2, "config": {}, "layers": kinds}))


def test_the_folder_is_the_variables_else_in_the_home() -> None:
    assert models_folder({"OLLAMA_MODELS": ' "/data/models" ', "HOME": "/root"}) == Path("/data/models")
    assert models_folder({"HOME": "/home/ollama"}) == Path("/home/ollama/.ollama/models")
    assert models_folder({}) is None


@pytest.mark.parametrize(
    "spelling", ["qwen3", "qwen3:latest", "library/qwen3", "registry.ollama.ai/library/qwen3"]
)
def test_a_model_is_found_in_any_spelling(tmp_path: Path, spelling: str) -> None:
    add_manifest(tmp_path, "registry.ollama.ai/library/qwen3/latest", "template", "model", "params")
    assert weights_file(tmp_path, spelling) == tmp_path / "blobs" / ("sha256-" + "ab" * 32)


def test_a_model_of_somebody_elses_is_found_under_its_namespace(tmp_path: Path) -> None:
    add_manifest(tmp_path, "registry.ollama.ai/me/mine/v1", "model")
    assert weights_file(tmp_path, "me/mine:v1")


def test_what_is_not_there_or_has_no_weights_is_none(tmp_path: Path) -> None:
    add_manifest(tmp_path, "registry.ollama.ai/library/remote/latest", "template")
    broken = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "broken" / "latest"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    for name in ("none", "remote", "broken", "a b", "remote:latest/x"):
        assert weights_file(tmp_path, name) is None
    assert weights_file(tmp_path / "no" / "folder", "remote") is None
