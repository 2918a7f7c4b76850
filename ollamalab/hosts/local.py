"""Targets that we start: the embedded server and ``ollama serve``."""

from __future__ import annotations

import re
import shutil
import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from ollamalab.errors import SamplerUnavailable, TargetError, UpstreamError
from ollamalab.hosts.process import Launch, ServerProcess
from ollamalab.hosts.slots import Slots, embedded_slots, llama_server_slots
from ollamalab.hosts.target import Target, require_models, version_of
from ollamalab.settings import ServerSettings


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
        environment: Mapping[str, str],
        log_folder: Path,
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            settings: What the server is started with.
            models: Names that it must have.
            environment: Variables of the server, except those that come from the settings.
            log_folder: Gets one file per start.
        """
        self.settings = settings
        self._models = models
        self._environment = environment
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

    async def start(self) -> None:
        """Start the server and check that it has the models.

        Raises:
            TargetError: It does not come up, or lacks a model.
        """
        self._server = await ServerProcess.start(self.launch(), log_folder=self._log_folder)
        self.url, self.startup = self._server.url, self._server.startup
        try:
            self.version = await version_of(self.url)
            await require_models(self.url, self._models, advice=self.model_advice)
        except UpstreamError as error:
            raise TargetError(f"{error}; the server last said: {self.log_tail(1)}") from error

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
                *(sys.executable, "-m", "ollamalab", "embedded", "--host", "127.0.0.1", "--port", "0"),
                *(() if threads is None else ("--threads", str(threads))),
            ),
            environment={**self._environment, **self.settings.environment(), "PYTHONUNBUFFERED": "1"},
            advice="try `ollamalab embedded` by hand",
        )

    def slots(self) -> Slots:
        """Return the slots of each loaded model."""
        return embedded_slots(self.url)


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
                "OLLAMA_HOST": "127.0.0.1:0",
                # The folder of models may be shared with a server that is pulling: never tidy it up.
                "OLLAMA_NOPRUNE": "1",
                # No calls to ollama.com while something is measured.
                "OLLAMA_NO_CLOUD": "1",
            },
            advice="try `ollama serve` by hand",
        )

    async def start(self) -> None:
        """Start the server and check that it has the models.

        Raises:
            TargetError: It does not come up, lacks a model, or is too old for a setting.
        """
        await super().start()
        if self.settings.num_threads is not None and not _has_llama_server(self.version):
            raise TargetError(
                f"num_threads={self.settings.num_threads} needs Ollama 0.30 or newer, not {self.version}; "
                "send the option num_thread with each request instead"
            )

    def slots(self) -> Slots:
        """Return the slots of each engine, by its pid.

        Ollama's API does not tell them, but its engines are ``llama-server`` processes (since v0.30) whose
        port stands in their command line.

        Raises:
            SamplerUnavailable: The processes may not be looked at.
        """
        answers = {}
        for pid, url in _llama_servers(self.pids()).items():
            try:
                answers[pid] = llama_server_slots(url)
            except UpstreamError:
                continue  # it is loading its model, or has just been unloaded
        return answers


def _has_llama_server(version: str) -> bool:
    """Whether an Ollama of this version runs its models in ``llama-server``: since v0.30."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    # 0.0.0 is a build from source, most likely a new one.
    return numbers is None or (int(numbers[1]), int(numbers[2])) not in {(0, minor) for minor in range(1, 30)}


def _llama_servers(pids: Sequence[int]) -> dict[str, str]:
    """Return the URL of each process among these that is a ``llama-server``, by its pid."""
    urls = {}
    for pid in pids:
        try:
            program, *arguments = psutil.Process(pid).cmdline() or [""]
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied as error:
            raise SamplerUnavailable("the engines of `ollama serve` may not be looked at") from error
        if Path(program).name == "llama-server" and "--port" in arguments[:-1]:
            urls[str(pid)] = f"http://127.0.0.1:{arguments[arguments.index('--port') + 1]}"
    return urls
