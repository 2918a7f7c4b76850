"""From the text of a parameter to an open target."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

from ollamalab.errors import SettingsError, TargetError, UpstreamError
from ollamalab.gpu import describe_gpus
from ollamalab.hosts.gpus import gpu_variables
from ollamalab.hosts.local import EmbeddedTarget, LocalTarget, OllamaTarget
from ollamalab.hosts.target import Target, reach, require_models
from ollamalab.protocol.urls import server_url
from ollamalab.settings import ServerSettings

_LOCAL: Mapping[str, type[LocalTarget]] = {"embedded": EmbeddedTarget, "ollama": OllamaTarget}

TARGET_KINDS = (*_LOCAL, "url")

#: Every variable that ``ServerSettings`` decides.
_DECIDED = ServerSettings(flash_attention=True).environment().keys() | {"OLLAMA_HOST"}


def check_target(text: str) -> str:
    """Return a target parameter in its canonical form: "embedded", "ollama", or a full URL.

    Raises:
        SettingsError: None of these; the message names the choices.
    """
    if text in _LOCAL:
        return text
    # A bare word is far more often a mistyped kind than the name of a host.
    if not any(mark in text for mark in ".:/") and text != "localhost":
        near = difflib.get_close_matches(text.lower(), _LOCAL, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise SettingsError(
            f"target must be embedded, ollama, or a URL such as http://gpu2:11434, got {text!r}{hint}"
        )
    return server_url(text)


@asynccontextmanager
async def open_target(
    target: str,
    settings: ServerSettings | None = None,
    *,
    models: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    port: int = 0,
    gpus: Sequence[int] = (),
    log_folder: Path | None = None,
) -> AsyncIterator[Target]:
    """Give a server to measure, and end it afterwards if it is ours.

    Args:
        target: "embedded", "ollama", or the URL of a server.
        settings: What our server is started with, in place of any ``OLLAMA_*`` variable that says
            otherwise; default Ollama's own defaults.
        models: Names that the server must have.
        environment: More variables for our server, such as ``OLLAMA_MODELS`` for a folder of its own.
        port: Where our server listens; 0 takes a free one.
        gpus: Indices of the NVIDIA GPUs that our server may use, as ``nvidia-smi`` numbers them; none for
            all that the environment shows.
        log_folder: Gets a file with the output of each start; default a folder that goes with the target.

    Raises:
        SettingsError: The text is none of these, a model's name is not one, or a variable is one that
            the settings decide.
        TargetError: The server does not start or answer, does not know a variable that was asked for, lacks
            a model, or is not ours to set up; its port is taken, or a GPU is not there.
    """
    chosen = check_target(target)
    if decided := sorted(_DECIDED & (environment or {}).keys()):
        raise SettingsError(f"{', '.join(decided)}: given by the settings, not as an environment variable")
    if chosen not in _LOCAL:
        remote = await reach(chosen)
        if environment or port or gpus or settings not in (None, ServerSettings()):
            raise TargetError(remote.unchangeable)
        try:
            await require_models(chosen, models, advice="`ollama pull {model}` on that host gets it")
        except UpstreamError as error:
            raise TargetError(f"{error}; is that an Ollama server?") from error
        yield remote
        return
    # NVML is asked only if it matters: opening it takes a while.
    visible = gpu_variables(gpus, describe_gpus()) if gpus else {}
    if clash := sorted(visible.keys() & (environment or {}).keys()):
        raise SettingsError(f"{', '.join(clash)}: given by gpus, not as an environment variable")
    inherited = {name: value for name, value in os.environ.items() if name not in _DECIDED}
    with nullcontext(log_folder) if log_folder else tempfile.TemporaryDirectory() as folder:
        server = _LOCAL[chosen](
            settings or ServerSettings(),
            models=models,
            inherited=inherited,
            chosen={**(environment or {}), **visible},
            port=port,
            log_folder=Path(folder),
        )
        try:
            await server.start()
            yield server
        finally:
            await server.stop()
