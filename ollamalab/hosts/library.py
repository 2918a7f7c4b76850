"""The folder in which Ollama keeps its models, and the file of a model in it.

A *manifest* lists a model's layers by digest; the layers lie as files in ``blobs``. Source: Ollama's
``manifest/paths.go``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from ollamalab.errors import SettingsError
from ollamalab.protocol.names import parse_name

_WEIGHTS = "application/vnd.ollama.image.model"


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


def models_folder(environment: Mapping[str, str]) -> Path | None:
    """Return where an Ollama with these variables keeps its models; None if they do not tell."""
    if chosen := environment.get("OLLAMA_MODELS", "").strip().strip("\"'"):
        return Path(chosen)
    home = environment.get("HOME")
    return Path(home, ".ollama", "models") if home else None


def weights_file(folder: Path, model: str) -> Path | None:
    """Return the file with a model's weights; None if the folder has no such model.

    Args:
        folder: Of Ollama's models.
        model: A name in any of Ollama's spellings.

    Raises:
        PermissionError: The folder may not be looked at.
    """
    try:
        name = parse_name(model)
        manifest = folder / "manifests" / name.host / name.namespace / name.model / name.tag
        layers = msgspec.json.decode(manifest.read_bytes(), type=_Manifest).layers
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, SettingsError, msgspec.MsgspecError):
        return None
    digest = next((layer.digest for layer in layers if layer.media_type == _WEIGHTS), None)
    return None if digest is None else folder / "blobs" / digest.replace(":", "-")
