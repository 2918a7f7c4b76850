"""What of a batch's needs is there already: models on their targets, room on the disk."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ollamalab.embedded.models import ALIASES, DEFAULT_MODEL, ModelStore
from ollamalab.errors import SettingsError, UpstreamError
from ollamalab.hosts import check_target
from ollamalab.hosts.web import get_json
from ollamalab.protocol.names import parse_name
from ollamalab.runner.needs import Need, model_size

#: The model that the embedded server fetches, and what its variants are derived from.
_FETCHED_BYTES = 98e6

_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Holding:
    """One needed model, and whether it is there.

    Attributes:
        need: Model and target.
        size_bytes: Of its file; taken from its name where it is not there; None if neither tells.
        is_there: None where nobody could be asked.
        note: How to get it, or why nobody could be asked; "" if it is there.
        folder: Where it is or would go on this machine; None elsewhere.
    """

    need: Need
    size_bytes: float | None
    is_there: bool | None
    note: str = ""
    folder: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Room:
    """What still has to be written to one folder of this machine.

    Attributes:
        folder: Where.
        missing_bytes: Models that are to come, as far as their sizes are known.
        free_bytes: Free on its disk.
    """

    folder: Path
    missing_bytes: float
    free_bytes: float

    @property
    def fits(self) -> bool:
        """Whether there is room for all of it."""
        return self.missing_bytes <= self.free_bytes


def look_up(needs: Sequence[Need], environment: Mapping[str, str]) -> list[Holding]:
    """Return for each need what is there; nothing is started, fetched or hashed.

    Args:
        needs: Of a batch.
        environment: Usually ``os.environ``; ``OLLAMA_MODELS`` names the folder of ``ollama serve``.

    Raises:
        SettingsError: A target or a model has no valid name.
    """
    return [_holding(replace(need, target=check_target(need.target)), environment) for need in needs]


def known_bytes(holdings: Sequence[Holding]) -> dict[str, float]:
    """Return the sizes of models that are there, by name."""
    return {
        held.need.model: held.size_bytes for held in holdings if held.is_there and held.size_bytes is not None
    }


def room(holdings: Sequence[Holding]) -> list[Room]:
    """Return what the missing models take on this machine's disks, by folder."""
    folders = {held.folder for held in holdings if held.folder and held.is_there is False}
    return [
        Room(
            folder=folder,
            missing_bytes=sum(
                held.size_bytes or 0.0
                for held in holdings
                if held.folder == folder and held.is_there is False
            ),
            free_bytes=shutil.disk_usage(_existing(folder)).free,
        )
        for folder in sorted(folders)
    ]


def _holding(need: Need, environment: Mapping[str, str]) -> Holding:
    if need.target == "embedded":
        return _in_store(need)
    if need.target == "ollama":
        return _in_ollama(need, environment)
    return _on_server(need)


def _in_store(need: Need) -> Holding:
    """Look at files only: ``ModelStore.find`` would hash a new one of 40 GB."""
    store = ModelStore()
    model = ALIASES.get(parse_name(need.model).short.lower(), need.model)
    path = store.path_of(parse_name(model))
    if path.is_file():
        return Holding(need=need, size_bytes=path.stat().st_size, is_there=True, folder=store.folder)
    source, _, variant = model.rpartition("-")
    note, size_bytes = "no file of this name; `ollamalab models list` shows those there are", None
    if model == DEFAULT_MODEL:
        note, size_bytes = "is fetched on first use", _FETCHED_BYTES
    elif source == DEFAULT_MODEL:
        note, size_bytes = f"is derived as {variant} on first use", _guess(model)
    elif model.startswith("synthetic:"):
        shape, _, quant = model.removeprefix("synthetic:").rpartition("-")
        note, size_bytes = f"ollamalab models synth --shape {shape} --quant {quant}", _guess(model)
    return Holding(need=need, size_bytes=size_bytes, is_there=False, note=note, folder=store.folder)


def _in_ollama(need: Need, environment: Mapping[str, str]) -> Holding:
    """Read the manifest as ``ollama serve`` keeps it: ``manifests/HOST/NAMESPACE/MODEL/TAG``, a JSON file."""
    folder = Path(environment.get("OLLAMA_MODELS") or "~/.ollama/models").expanduser()
    name = parse_name(need.model)
    manifest = folder / "manifests" / name.host / name.namespace / name.model / name.tag
    with suppress(OSError, ValueError, KeyError, TypeError):
        layers = json.loads(manifest.read_text())["layers"]
        size_bytes = float(sum(layer["size"] for layer in layers))
        return Holding(need=need, size_bytes=size_bytes, is_there=True, folder=folder)
    return Holding(
        need=need,
        size_bytes=_guess(need.model),
        is_there=False,
        note=f"{'' if shutil.which('ollama') else 'install Ollama, then '}ollama pull {need.model}",
        folder=folder,
    )


def _on_server(need: Need) -> Holding:
    guess = _guess(need.model)
    try:
        answer = get_json(f"{need.target}/api/tags", timeout_s=_TIMEOUT_S)
        listed = {parse_name(model["name"]).key: model.get("size") for model in answer["models"]}
    except UpstreamError as error:
        return Holding(need=need, size_bytes=guess, is_there=None, note=str(error))
    except (LookupError, TypeError, SettingsError):
        note = f"{need.target}/api/tags does not list models as Ollama does"
        return Holding(need=need, size_bytes=guess, is_there=None, note=note)
    key = parse_name(need.model).key
    if key in listed:
        return Holding(need=need, size_bytes=listed[key], is_there=True)
    return Holding(need=need, size_bytes=guess, is_there=False, note=f"ollama pull {need.model}, there")


def _guess(model: str) -> float | None:
    size = model_size(model)
    return None if size is None else size.size_bytes


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest above it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())
