"""What every target offers, and the target that is somebody else's server."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ollamalab.errors import BadReply, SamplerUnavailable, TargetError, UpstreamError
from ollamalab.hosts.engines import EngineProcess, embedded_engines
from ollamalab.hosts.process import Startup
from ollamalab.hosts.slots import Slots, embedded_slots
from ollamalab.hosts.web import get_json
from ollamalab.protocol.names import parse_name
from ollamalab.settings import ServerSettings

_TIMEOUT_S = 10.0


class Target(ABC):
    """A server to measure.

    Attributes:
        kind: "embedded", "ollama" or "url".
        url: Base URL, without a slash at its end; another one after ``restart``.
        version: What the server says of itself.
        settings: What it was started with; None if somebody else started it.
        startup: When it was started and answered; None if somebody else started it.
        ignored: Variables of the environment that it does not know, to the reason; empty if somebody else
            started it.
        unchangeable: Why its settings cannot be changed, to show beside an arm that is *not run*; None
            if they can.
    """

    kind: str
    url: str
    version: str
    settings: ServerSettings | None
    startup: Startup | None
    ignored: Mapping[str, str]
    unchangeable: str | None

    @property
    def changeable(self) -> bool:
        """Whether ``restart`` works."""
        return self.unchangeable is None

    @abstractmethod
    async def restart(self, settings: ServerSettings | None = None) -> None:
        """End the server and start a fresh one; ``url``, ``startup`` and ``pids`` change.

        Args:
            settings: What the new one is started with; None for the same again.

        Raises:
            TargetError: It is not ours to change, or the new one did not start.
        """

    @abstractmethod
    def pids(self) -> tuple[int, ...]:
        """Return the pids of the server and all it started, parents first; empty if not ours or dead."""

    @abstractmethod
    def slots(self) -> Slots:
        """Return the slots of each engine, now; blocks, so call it from a thread (``SlotSampler``).

        Raises:
            SamplerUnavailable: The server has no way of telling.
            UpstreamError: It does not answer.
        """

    @abstractmethod
    def engines(self) -> list[EngineProcess]:
        """Return the llama.cpp processes that have a model in memory, now; blocks, as ``slots`` does.

        Raises:
            SamplerUnavailable: The server has no way of telling.
            UpstreamError: It does not answer.
        """

    @abstractmethod
    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's output; empty if it is not ours."""

    async def describe(self) -> dict[str, Any]:
        """Return what a report must say of the server: kind, version, settings, ignored variables, models.

        Raises:
            UpstreamError: It does not answer.
        """
        return {
            "kind": self.kind,
            "url": self.url,
            "version": self.version,
            "settings": None if self.settings is None else asdict(self.settings),
            "ignored_variables": dict(self.ignored),
            "models": [
                {
                    "name": model["name"],
                    "digest": model.get("digest"),
                    "size_bytes": model.get("size"),
                    "quantisation": model.get("details", {}).get("quantization_level"),
                }
                for model in await tags(self.url)
            ],
        }


class RemoteTarget(Target):
    """A server that was there before; it is asked, and nothing of it is changed."""

    kind = "url"
    settings = None
    startup = None

    def __init__(self, url: str, version: str) -> None:
        self.url = url
        self.version = version
        self.ignored = {}
        self.unchangeable = (
            f"{url} was not started by ollamalab, so its settings stay as they are; "
            "use target embedded or ollama"
        )

    async def restart(self, settings: ServerSettings | None = None) -> None:  # noqa: ARG002
        """Refuse.

        Raises:
            TargetError: Always.
        """
        raise TargetError(self.unchangeable)

    def pids(self) -> tuple[int, ...]:
        """Return none: even on this machine we could only guess which are its processes."""
        return ()

    def slots(self) -> Slots:
        """Return the slots if it is an embedded server; Ollama's API does not tell them.

        Raises:
            SamplerUnavailable: It is not.
            UpstreamError: It does not answer.
        """
        try:
            return embedded_slots(self.url)
        except BadReply as error:
            raise SamplerUnavailable(f"{self.url} does not tell its slots") from error

    def engines(self) -> list[EngineProcess]:
        """Return the engines if it is an embedded server on this machine; Ollama's API does not tell them.

        Raises:
            SamplerUnavailable: It is not.
            UpstreamError: It does not answer.
        """
        try:
            return embedded_engines(self.url)
        except BadReply as error:
            raise SamplerUnavailable(f"{self.url} does not let its engines be asked") from error

    def log_tail(self, lines: int = 20) -> str:  # noqa: ARG002
        """Return nothing."""
        return ""


async def reach(url: str) -> RemoteTarget:
    """Return the server at a URL.

    Raises:
        TargetError: Nothing answers there, or not as Ollama does.
    """
    try:
        return RemoteTarget(url, await version_of(url))
    except BadReply as error:
        raise TargetError(f"{error}; is that an Ollama server?") from error
    except UpstreamError as error:
        raise TargetError(
            f"{error}; start `ollama serve` there, or use target embedded, which needs no server"
        ) from error


async def version_of(url: str) -> str:
    """Return what a server says its version is.

    Raises:
        UpstreamError: No such answer.
    """
    answer = await asyncio.to_thread(get_json, f"{url}/api/version", timeout_s=_TIMEOUT_S)
    if not isinstance(answer, dict) or "version" not in answer:
        raise BadReply(f"{url}/api/version does not tell a version", url=url)
    return str(answer["version"])


async def tags(url: str) -> list[dict[str, Any]]:
    """Return the models that a server has, as ``/api/tags`` lists them.

    Raises:
        UpstreamError: No such answer.
    """
    answer = await asyncio.to_thread(get_json, f"{url}/api/tags", timeout_s=_TIMEOUT_S)
    models = answer.get("models") if isinstance(answer, dict) else None
    if not isinstance(models, list) or not all(
        isinstance(model, dict) and "name" in model for model in models
    ):
        raise BadReply(f"{url}/api/tags does not list models", url=url)
    return models


async def require_models(url: str, models: Sequence[str], *, advice: str) -> None:
    """Check that a server has models of these names.

    Args:
        url: The server.
        models: Names in any of Ollama's spellings.
        advice: How to get one that is missing; "{model}" stands for its name.

    Raises:
        TargetError: One is not there; the message names those that are.
        SettingsError: Not a model name.
        UpstreamError: The server does not answer.
    """
    if not models:
        return
    wanted = {model: parse_name(model).key for model in models}
    there = [model["name"] for model in await tags(url)]
    present = {parse_name(name).key for name in there}
    for model, key in wanted.items():
        if key not in present:
            raise TargetError(
                f"{url} has no model {model!r}; it has {', '.join(sorted(there)) or 'none'}; "
                + advice.format(model=model)
            )
