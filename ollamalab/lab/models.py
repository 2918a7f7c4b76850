"""Models that an experiment needs on a target of ours: fetched or derived on first use."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

from ollamalab.embedded.fetch import ensure_model
from ollamalab.embedded.models import DEFAULT_MODEL, ModelFile, ModelStore
from ollamalab.errors import ModelNotFound
from ollamalab.hosts import check_target, models_folder, weights_file


async def have_models(target: str, *models: str) -> None:
    """Make sure that the embedded server has these models; other targets keep their own.

    ``smollm2:135m`` is fetched, ``smollm2:135m-q8_0`` and its like are derived from it; both once.

    Raises:
        ModelError: One can neither be found, fetched nor derived.
    """
    if target == "embedded":
        for model in models:
            await asyncio.to_thread(_have, model)


def model_file(target: str, model: str) -> Path | None:
    """Return the file that a server of ours loads for a model; None where that is not known."""
    if target == "embedded":
        return ModelStore().find(model).path
    folder = models_folder(os.environ) if target == "ollama" else None
    with suppress(PermissionError):
        return None if folder is None else weights_file(folder, model)
    return None


def is_ours(target: str) -> bool:
    """Whether a target is a server that we start, so that its settings can be chosen.

    Raises:
        SettingsError: It is neither a kind of target nor a URL.
    """
    return check_target(target) in ("embedded", "ollama")


def _have(model: str) -> ModelFile:
    store = ModelStore()
    try:
        return ensure_model(model, store)
    except ModelNotFound:
        source, dash, variant = model.rpartition("-")
        if not dash or source != DEFAULT_MODEL:
            raise
        # Brings numpy and gguf, which only a first run needs.
        from ollamalab.embedded.derive import derive_model

        return derive_model(source, store, variant)
