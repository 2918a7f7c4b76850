"""A server process that we start, wait for, watch and end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ollamalab.errors import TargetError, UpstreamError
from ollamalab.host import ProcessTree
from ollamalab.hosts.web import get_json
from ollamalab.lifeline import GRACE_S, tethered

_START_S = 60.0  # a cold disk and Ollama's search for GPUs take seconds
_ANSWER_S = 2.0
_POLL_S = 0.005
_REAP_S = 10.0  # past the supervisor's own patience: it hangs
_TAIL_BYTES = 16_384
_LAST_WORDS = 3  # lines of a server that failed: the reason is not always in the very last

#: What both servers say once their socket is open; Ollama's line goes on with its version.
_LISTENING = re.compile(rb"[Ll]istening on (?:http://)?([\w.:\[\]]+:\d+)")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How a server is started.

    Attributes:
        name: What to call it in messages: "ollama serve".
        command: Program and arguments; it must name the port that it listens on in its output.
        environment: All its variables.
        advice: The next step when it does not start.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    advice: str


@dataclass(frozen=True, kw_only=True)
class Startup:
    """Moments of a start, on the clock of the tokens (``time.perf_counter``).

    Attributes:
        spawned_s: Just before the process was made; its supervisor takes the first 25 ms or so.
        listening_s: When it had said that its socket is open; seen to within 5 ms.
        answering_s: When it had answered its first request.
    """

    spawned_s: float
    listening_s: float
    answering_s: float


class ServerProcess:
    """A running server of ours, alone on its port, with its output in a file.

    Attributes:
        url: Base URL.
        startup: When it was started and answered.
    """

    url: str
    startup: Startup

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes], log: Path) -> None:
        self._launch = launch
        self._process = process
        self._tree = ProcessTree(process.pid)
        self._log = log

    @classmethod
    async def start(cls, launch: Launch, *, log_folder: Path) -> Self:
        """Start a server and return once it answers.

        Args:
            launch: What to start.
            log_folder: Gets a new file with all that the server says.

        Raises:
            TargetError: It ended, or did not answer within a minute; the message has its last lines.
        """
        spawned_s = time.perf_counter()
        server = cls(launch, *_spawn(launch, log_folder))
        try:
            async with asyncio.timeout(_START_S):
                server.url = await server._address()
                listening_s = time.perf_counter()
                await server._answer()
        except TimeoutError as error:
            await server.stop()
            raise server._failure(f"did not answer within {_START_S:g} s") from error
        except BaseException:
            await server.stop()
            raise
        server.startup = Startup(
            spawned_s=spawned_s, listening_s=listening_s, answering_s=time.perf_counter()
        )
        return server

    async def _address(self) -> str:
        """Wait until the server says where it listens; return that as a URL."""
        while True:
            # Ended first, then the output: what it said last is there when it has ended.
            ended = self._process.poll() is not None
            if found := _LISTENING.search(self._log.read_bytes()):
                return f"http://{found[1].decode()}"
            if ended:
                raise self._failure(f"ended with status {self._process.returncode}")
            await asyncio.sleep(_POLL_S)

    async def _answer(self) -> None:
        """Wait until the server answers."""
        while True:
            try:
                await asyncio.to_thread(get_json, f"{self.url}/api/version", timeout_s=_ANSWER_S)
                return
            except UpstreamError as error:
                if self._process.poll() is not None:
                    raise self._failure(f"ended with status {self._process.returncode}") from error
            await asyncio.sleep(_POLL_S)

    def _failure(self, what: str) -> TargetError:
        last = " | ".join(self.log_tail(_LAST_WORDS).splitlines()) or "nothing"
        return TargetError(f"`{self._launch.name}` {what}; it last said: {last}; {self._launch.advice}")

    def pids(self) -> tuple[int, ...]:
        """Return the pids of the server and all it started, parents first; empty if it has died."""
        return self._tree.pids()[1:]  # the first is the supervisor

    def output(self) -> str:
        """Return all that the server has said until now."""
        return self._log.read_text(errors="replace")

    def log_tail(self, lines: int) -> str:
        """Return the last lines of the server's output."""
        with self._log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    async def stop(self) -> None:
        """End the server and all it started; nothing happens if that has been done."""
        assert self._process.stdin is not None
        # Once this end is closed the supervisor does the rest, even if we are cancelled below.
        self._process.stdin.close()
        await asyncio.shield(asyncio.to_thread(self._reap))

    def _reap(self) -> None:
        try:
            self._process.wait(GRACE_S + _REAP_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the supervisor leads a group of its own
            self._process.wait()


def _spawn(launch: Launch, log_folder: Path) -> tuple[subprocess.Popen[bytes], Path]:
    """Start a server's supervisor; return it and the file that gets the output."""
    log_folder.mkdir(parents=True, exist_ok=True)
    stem = launch.name.replace(" ", "-")
    descriptor, log = tempfile.mkstemp(prefix=f"{stem}-", suffix=".log", dir=log_folder)
    with os.fdopen(descriptor, "wb") as output:
        process = subprocess.Popen(
            tethered(launch.command),
            stdin=subprocess.PIPE,  # the lifeline: open for as long as the server may live
            stdout=output,
            stderr=output,
            env=dict(launch.environment),
        )
    return process, Path(log)
