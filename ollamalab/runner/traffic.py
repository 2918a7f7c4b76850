"""Whether the host already serves somebody: measurements there would disturb them, and be disturbed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ollamalab.errors import SamplerUnavailable, SettingsError, UpstreamError
from ollamalab.gpu import GpuProcess, gpu_processes, gpu_sampler
from ollamalab.hosts.web import get_json
from ollamalab.protocol.urls import server_url

_TIMEOUT_S = 2.0

#: An idle GPU with a desktop on it stays below both.
_BUSY_RATIO, _BUSY_BYTES = 0.1, 2e9

#: Addresses that a server listens on and nobody connects to.
_ANY = {"http://0.0.0.0": "http://127.0.0.1", "http://[::]": "http://[::1]"}


def look_for_traffic(targets: Iterable[str], environment: Mapping[str, str]) -> list[str]:
    """Return the signs that servers and GPUs of a batch are in use, one line each; nothing is changed.

    Asked are this machine's usual Ollama (``OLLAMA_HOST``), every target that is a URL, and the GPUs.

    Args:
        targets: Of the batch.
        environment: Usually ``os.environ``.
    """
    urls = {url for target in targets if (url := _url(target)) and target not in ("embedded", "ollama")}
    urls.add(usual_server(environment))
    signs = [sign for url in sorted(urls) if (sign := loaded_sign(url, _loaded(url)))]
    # A model that the embedded server keeps on a GPU shows up among the processes.
    processes = [process for process in gpu_processes() if process.pid != os.getpid()]
    return signs + gpu_signs(processes, _gpu_values())


def usual_server(environment: Mapping[str, str]) -> str:
    """Return the URL of the Ollama that a client on this machine would ask."""
    url = _url(environment.get("OLLAMA_HOST", "")) or server_url("127.0.0.1")
    for anywhere, here in _ANY.items():
        url = url.replace(anywhere, here)
    return url


def loaded_sign(url: str, loaded: Sequence[Mapping[str, Any]]) -> str | None:
    """Return what the models in a server's memory tell; None without any.

    Args:
        url: The server.
        loaded: As ``/api/ps`` lists them.
    """
    models = [
        f"{model.get('name', '?')} ({(model.get('size') or 0) / 1e9:.1f} GB, kept until "
        f"{str(model.get('expires_at', 'n/a'))[:19]})"
        for model in loaded
    ]
    return f"{url} has loaded {', '.join(models)}" if models else None


def gpu_signs(processes: Sequence[GpuProcess], values: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Return what the use of GPUs tells, one line for each process, or for a GPU whose users do not show.

    Args:
        processes: That compute on the GPUs.
        values: GPU to what is told of it now.
    """
    signs = []
    for process in processes:
        held = "" if process.memory_bytes is None else f" and holds {process.memory_bytes / 1e9:.1f} GB"
        signs.append(
            f"{process.source}: process {process.pid} ({process.name or 'name unknown'}) computes{held}"
        )
    known = {process.source for process in processes}
    for source, told in sorted(values.items()):
        busy, used = told.get("sm_utilisation_ratio"), told.get("memory_used_bytes")
        if source not in known and ((busy or 0) > _BUSY_RATIO or (used or 0) > _BUSY_BYTES):
            shown = [
                f"{busy:.0%} busy" if busy is not None else "",
                f"{used / 1e9:.1f} GB used" if used else "",
            ]
            signs.append(f"{source}: {', '.join(filter(None, shown))}, by processes that do not show here")
    return signs


def _url(text: str) -> str | None:
    with suppress(SettingsError):
        return server_url(text)
    return None


def _loaded(url: str) -> list[Mapping[str, Any]]:
    """Return the models in a server's memory; none if there is no server."""
    try:
        answer = get_json(f"{url}/api/ps", timeout_s=_TIMEOUT_S)
    except UpstreamError:
        return []
    models = answer.get("models") if isinstance(answer, dict) else None
    return [model for model in models or () if isinstance(model, dict)]


def _gpu_values() -> Mapping[str, Mapping[str, float | None]]:
    with gpu_sampler() as sampler, suppress(SamplerUnavailable):
        return sampler.read()
    return {}
