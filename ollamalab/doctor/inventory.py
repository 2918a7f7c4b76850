"""What a host and its server are: facts, each of them or the reason why it could not be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Unread:
    """In place of a fact that could not be read; nothing is guessed.

    Attributes:
        reason: Why not, and where there is one the next step.
    """

    reason: str


@dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model that the server has.

    Attributes:
        name: As the server shows it.
        digest: Of its manifest.
        size_bytes: On disk.
        quantisation: "Q4_K_M"; None if the server does not say.
    """

    name: str
    digest: str | None
    size_bytes: int | None
    quantisation: str | None


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A process of llama.cpp with one model.

    Attributes:
        model_file: Path of its weights, by which a model's name is found.
        model: Name of the model; None where only the file is known.
        slots: Sequences that it works on at once.
        context_tokens: Per slot.
        prompt_tokens: The longest last prompt of a slot; None if no slot has had one, or it is not told.
        answer_tokens: The most that those requests allowed for the answer; None if one had no limit.
        libraries: Backends that it has loaded, such as "cuda_v13"; of built-in engines none are known.
    """

    model_file: str | None
    model: str | None
    slots: int
    context_tokens: int | None
    prompt_tokens: int | None = None
    answer_tokens: int | None = None
    libraries: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LoadedNow:
    """A model in memory.

    Attributes:
        name: As the server shows it.
        size_bytes: Memory in all.
        size_vram_bytes: Of that, on GPUs.
        context_tokens: Per slot; None if the server does not say.
        expires_in_s: Until it is unloaded, when last looked; None if the server does not say.
        cache_bytes_per_token: Of the key and value cache at f16; None if it cannot be told.
        engine: Its process, if this machine shows it.
    """

    name: str
    size_bytes: int
    size_vram_bytes: int
    context_tokens: int | None
    expires_in_s: float | None
    cache_bytes_per_token: int | None = None
    engine: Engine | None = None


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What was loaded at one moment of the watch: name to context (None if not told).

    Attributes:
        at_s: On the clock of the watch.
        contexts: One per loaded model.
    """

    at_s: float
    contexts: Mapping[str, int | None]


@dataclass(frozen=True, kw_only=True)
class ServerProcess:
    """The process that listens at the address.

    Attributes:
        pid: Of it.
        name: "ollama", "nginx" ...
        environment: Its variables.
    """

    pid: int
    name: str
    environment: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Streamed:
    """How the lines of one streamed answer came through the address.

    Attributes:
        model: Who answered.
        lines: How many came.
        arrivals_s: From the first to the last of them.
        eval_s: For how long the server says that it generated.
    """

    model: str
    lines: int
    arrivals_s: float
    eval_s: float


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Where models lie.

    Attributes:
        folder: Of the models.
        file: The one that was read, past the page cache.
        read_bytes_per_s: How fast.
    """

    folder: str
    file: str
    read_bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class DriverCache:
    """Where the NVIDIA driver keeps what it has compiled.

    Attributes:
        folder: Of the server's user.
        is_off: The server's environment turns it off.
        size_bytes: What lies there; 0 if there is no such folder.
    """

    folder: str
    is_off: bool
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """All that was found.

    Attributes:
        url: Of the server.
        host: This machine (``host.describe``).
        gpus: Of this machine (``describe_gpus``); ``reason`` says why there are none.
        version: Of the server.
        models: That the server has.
        loaded: In memory.
        watch: Sightings over a while.
        process: That listens at the address.
        engines: Processes with models.
        disk: Where models lie.
        driver_cache: Of compiled GPU code.
        streamed: A streamed answer.
    """

    url: str
    host: Mapping[str, Any]
    gpus: Mapping[str, Any]
    version: str | Unread
    models: tuple[StoredModel, ...] | Unread
    loaded: tuple[LoadedNow, ...] | Unread
    watch: tuple[Sighting, ...] | Unread
    process: ServerProcess | Unread
    engines: tuple[Engine, ...] | Unread
    disk: Disk | Unread
    driver_cache: DriverCache | Unread
    streamed: Streamed | Unread
    is_local: bool = True  #: whether the server runs on this machine, as far as its address tells


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that ought to be otherwise.

    Attributes:
        rule: Its name, for scripts.
        evidence: What was seen.
        consequence: What comes of it.
        fix: What to do.
    """

    rule: str
    evidence: str
    consequence: str
    fix: str


def variable(inventory: Inventory, name: str) -> str:
    """Return a variable of the server as Ollama reads it, without blanks and quotes round it; "" if not set.

    It is "" too where the environment cannot be read: rules judge what is there.
    """
    if isinstance(inventory.process, Unread):
        return ""
    return inventory.process.environment.get(name, "").strip().strip("\"'")


def document(inventory: Inventory, findings: tuple[Finding, ...]) -> dict[str, Any]:
    """Return inventory and findings as plain JSON values.

    What is not readable is ``{"not_readable": reason}``. Of the environment only what concerns Ollama and
    GPUs is told.
    """
    facts = {name: _plain(value) for name, value in vars(inventory).items()}
    return {"schema": 1, "inventory": facts, "findings": [vars(finding) for finding in findings]}


def _plain(value: Any) -> Any:
    if isinstance(value, Unread):
        return {"not_readable": value.reason}
    if isinstance(value, ServerProcess):
        told = {name: text for name, text in value.environment.items() if concerns_ollama(name)}
        return {**vars(value), "environment": told}
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if hasattr(value, "__dataclass_fields__"):
        return {name: _plain(one) for name, one in vars(value).items()}
    return value


def concerns_ollama(name: str) -> bool:
    """Whether a variable concerns Ollama, its engines or GPUs; others may be secrets."""
    return name.startswith(_OLLAMAS)


_OLLAMAS = ("OLLAMA_", "LLAMA_ARG_", "CUDA_", "GGML_", "HIP_", "ROCR_", "HSA_", "NVIDIA_VISIBLE_DEVICES")
