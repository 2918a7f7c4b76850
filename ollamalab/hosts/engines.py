"""The llama.cpp processes behind a server, where it lets them be known.

Ollama's API neither names them nor passes on all that they can do. What needs more than the API, such as
the probability of a given token, asks them directly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ollamalab.errors import SamplerUnavailable
from ollamalab.hosts.web import get_json

_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineProcess:
    """One llama.cpp server with a model in memory, on this machine.

    Attributes:
        pid: Its process.
        url: Where it listens on loopback.
        model: Name of what it has loaded; None where the server does not tell.
    """

    pid: int
    url: str
    model: str | None = None


def embedded_engines(url: str) -> list[EngineProcess]:
    """Return the engines of an embedded server on this machine (``GET /lab/engines``).

    Raises:
        UpstreamError: No such answer; a ``BadReply`` if it is another server, or on another machine.
    """
    return [
        EngineProcess(pid=engine["pid"], url=engine["url"], model=engine["model"])
        for engine in get_json(f"{url}/lab/engines", timeout_s=_TIMEOUT_S)
    ]


def llama_servers(pids: Iterable[int]) -> list[EngineProcess]:
    """Return those of these processes that are a ``llama-server``, whose port is in their command line.

    Raises:
        SamplerUnavailable: The processes may not be looked at.
    """
    found = []
    for pid in pids:
        try:
            program, *arguments = psutil.Process(pid).cmdline() or [""]
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise SamplerUnavailable("the engines of `ollama serve` may not be looked at") from error
        if Path(program).name == "llama-server" and "--port" in arguments[:-1]:
            port = arguments[arguments.index("--port") + 1]
            found.append(EngineProcess(pid=pid, url=f"http://127.0.0.1:{port}"))
    return found
