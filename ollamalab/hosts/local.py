"""Targets that we start: the embedded server and ``ollama serve``."""

from __future__ import annotations

import logging
import shutil
import socket
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ollamalab.errors import SamplerUnavailable, TargetError, UpstreamError
from ollamalab.hosts.engines import EngineProcess, embedded_engines, llama_servers
from ollamalab.hosts.process import Launch, ServerProcess
from ollamalab.hosts.slots import Slots, embedded_slots, llama_server_slots
from ollamalab.hosts.target import Target, require_models, version_of
from ollamalab.settings import ServerSettings
from ollamalab.settings.variables import announced_variables, has_llama_server, unknown_variables

#: Path of a ``llama-server`` binary (CUDA, Vulkan, ROCm) to use as the embedded server's engine.
LLAMA_SERVER_VARIABLE = "OLLAMALAB_LLAMA_SERVER"

logger = logging.getLogger(__name__)

_DEFAULTS = ServerSettings().environment()


class LocalTarget(Target):
    """A server of ours; start it with ``start``, end it with ``stop``."""

    unchangeable = None
    settings: ServerSettings
    _server: ServerProcess | None = None

    def __init__(
        self,
        settings: ServerSettings,
        *,
        models: Sequence[str],
        inherited: Mapping[str, str],
        chosen: Mapping[str, str],
        port: int,
        log_folder: Path,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            settings: What the server is started with.
            models: Names that it must have.
            inherited: Variables that happen to be there, except those that come from the settings.
            chosen: Variables that were asked for; they win.
            port: Where it listens on 127.0.0.1; 0 for a free one.
            log_folder: Gets one file per start.
        """
        self.settings = settings
        self._models = models
        self._environment = {**inherited, **chosen}
        self._chosen = chosen
        self._port = port
        self._log_folder = log_folder

    @abstractmethod
    def launch(self) -> Launch:
        """Return how the server is started with the present settings.

        Raises:
            TargetError: The program is not there.
        """

    @property
    @abstractmethod
    def model_advice(self) -> str:
        """How to get a missing model; "{model}" stands for its name."""

    @abstractmethod
    def variables_without_effect(self, log: str) -> dict[str, str]:
        """Return the variables that the running server ignores, each with the reason.

        Args:
            log: All that it has said until now.
        """

    async def start(self) -> None:
        """Start the server and check that it heeds what was asked for and has the models.

        Raises:
            TargetError: It does not come up, its port is taken, it does not know a variable that was asked
                for, or it lacks a model.
        """
        _require_free(self._port)
        self._server = await ServerProcess.start(self.launch(), log_folder=self._log_folder)
        self.url, self.startup = self._server.url, self._server.startup
        try:
            self.version = await version_of(self.url)
            self.ignored = self.variables_without_effect(self._server.output())
            self._require_effect()
            await require_models(self.url, self._models, advice=self.model_advice)
        except UpstreamError as error:
            raise TargetError(f"{error}; the server last said: {self.log_tail(1)}") from error

    def asked_for(self) -> dict[str, str]:
        """Return the variables that were asked for: settings other than the default, and chosen ones."""
        decided = self.settings.environment()
        settings = {name: value for name, value in decided.items() if value != _DEFAULTS.get(name)}
        return {**settings, **self._chosen}

    def _require_effect(self) -> None:
        """Refuse to go on if the server ignores a variable that was asked for.

        An arm whose knob is not connected to anything would be reported as "no difference".
        """
        asked = self.asked_for()
        for name, reason in self.ignored.items():
            if name in asked:
                raise TargetError(
                    f"{name}={asked[name]} would do nothing on {self.kind} {self.version}: {reason}"
                )
            logger.warning("event=variable_ignored name=%s reason=%s", name, reason)

    async def stop(self) -> None:
        """End the server, if it runs."""
        if self._server is not None:
            await self._server.stop()

    async def restart(self, settings: ServerSettings | None = None) -> None:
        """End the server and start a fresh one; see ``Target``."""
        await self.stop()
        self.settings = settings or self.settings
        await self.start()

    def pids(self) -> tuple[int, ...]:
        """Return the pids of the server and all it started, parents first; empty if it has died."""
        return self._server.pids() if self._server is not None else ()

    def log_tail(self, lines: int = 20) -> str:
        """Return the last lines of the server's output."""
        return self._server.log_tail(lines) if self._server is not None else ""


class EmbeddedTarget(LocalTarget):
    """Our own Ollama server on llama.cpp, in a process of its own."""

    kind = "embedded"
    model_advice = "`ollamalab models fetch` gets smollm2:135m, `ollamalab models list` shows all"

    def launch(self) -> Launch:
        """Return how the embedded server is started."""
        threads = self.settings.num_threads
        return Launch(
            name="ollamalab embedded",
            command=(
                *(sys.executable, "-m", "ollamalab", "embedded", "--host", "127.0.0.1"),
                *("--port", str(self._port)),
                *(() if threads is None else ("--threads", str(threads))),
            ),
            environment={**self._environment, **self.settings.environment(), "PYTHONUNBUFFERED": "1"},
            advice="try `ollamalab embedded` by hand",
        )

    def variables_without_effect(self, log: str) -> dict[str, str]:  # noqa: ARG002
        """Return those that were asked for and are none of its settings; what others set is for Ollama."""
        known = {*ServerSettings(flash_attention=True).environment(), "OLLAMA_ORIGINS"}
        return {
            name: "the embedded server has no such setting"
            for name in sorted(self.asked_for())
            if name.startswith("OLLAMA_") and name not in known
        }

    def slots(self) -> Slots:
        """Return the slots of each loaded model."""
        return embedded_slots(self.url)

    def engines(self) -> list[EngineProcess]:
        """Return the process of each loaded model."""
        return embedded_engines(self.url)

    async def describe(self) -> dict[str, Any]:
        """Return what a report must say of the server, with the engine if it is a binary that was given."""
        return {**await super().describe(), "llama_server": self._environment.get(LLAMA_SERVER_VARIABLE)}


class OllamaTarget(LocalTarget):
    """``ollama serve`` from PATH, on a port of its own, beside any that already runs."""

    kind = "ollama"
    model_advice = "`ollama pull {model}` gets it; OLLAMA_MODELS names the folder if another user has it"

    def launch(self) -> Launch:
        """Return how ``ollama serve`` is started.

        Raises:
            TargetError: There is no ``ollama`` on PATH.
        """
        program = shutil.which("ollama", path=self._environment.get("PATH"))
        if program is None:
            raise TargetError(
                "there is no `ollama` on PATH; install it from https://ollama.com/download, "
                "or use target embedded"
            )
        threads = self.settings.num_threads
        return Launch(
            name="ollama serve",
            command=(program, "serve"),
            environment={
                **self._environment,
                **self.settings.environment(),
                # Ollama has no variable for it, but hands its environment on to llama.cpp's server.
                **({} if threads is None else {"LLAMA_ARG_THREADS": str(threads)}),
                "OLLAMA_HOST": f"127.0.0.1:{self._port}",
                # Its engines count the prompt tokens that they evaluate; Ollama's replies do not tell.
                "LLAMA_ARG_ENDPOINT_METRICS": "1",
                # The folder of models may be shared with a server that is pulling: never tidy it up.
                "OLLAMA_NOPRUNE": "1",
                # No calls to ollama.com while something is measured.
                "OLLAMA_NO_CLOUD": "1",
            },
            advice="try `ollama serve` by hand",
        )

    def variables_without_effect(self, log: str) -> dict[str, str]:
        """Return those that the server does not name when it starts, whoever has set them."""
        names = self.asked_for().keys() | self._environment.keys()
        return unknown_variables(names, version=self.version, announced=announced_variables(log))

    async def start(self) -> None:
        """Start the server; see ``LocalTarget``.

        Raises:
            TargetError: It does not come up, lacks a model, or is too old for a setting.
        """
        await super().start()
        if self.settings.num_threads is not None and not has_llama_server(self.version):
            raise TargetError(
                f"num_threads={self.settings.num_threads} needs Ollama 0.30 or newer, not {self.version}; "
                "send the option num_thread with each request instead"
            )

    def slots(self) -> Slots:
        """Return the slots of each engine, by its pid.

        Ollama's API does not tell them, but its engines are ``llama-server`` processes (since v0.30) whose
        port stands in their command line.

        Raises:
            SamplerUnavailable: It is older, or the processes may not be looked at.
        """
        answers = {}
        for engine in self.engines():
            try:
                answers[str(engine.pid)] = llama_server_slots(engine.url)
            except UpstreamError:
                continue  # it is loading its model, or has just been unloaded
        return answers

    def engines(self) -> list[EngineProcess]:
        """Return its ``llama-server`` processes; it does not tell which model each has.

        Raises:
            SamplerUnavailable: It is older than v0.30, or the processes may not be looked at.
        """
        if not has_llama_server(self.version):
            raise SamplerUnavailable(
                f"Ollama {self.version} has engines that cannot be asked; 0.30 or newer runs llama-server"
            )
        return llama_servers(self.pids())


def _require_free(port: int) -> None:
    """Refuse a port on which somebody else listens."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise TargetError(
                f"port {port} cannot be had ({error.strerror}), and a server that was there before is left "
                f"alone; choose another port, or measure that server as target http://127.0.0.1:{port}"
            ) from error
