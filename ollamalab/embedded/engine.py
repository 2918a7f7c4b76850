"""One llama.cpp process with its own HTTP port on loopback, and how we talk to it.

The process hangs on a lifeline (``ollamalab.lifeline``): it ends with us, also after ``kill -9``.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ollamalab.embedded import engine_http
from ollamalab.embedded.engine_http import EngineReply
from ollamalab.embedded.engine_log import EngineLog, MemoryUse, failure_reason, memory_use
from ollamalab.embedded.load import Launch, LoadOptions
from ollamalab.embedded.models import ModelFile
from ollamalab.errors import BadReply, EngineError
from ollamalab.lifeline import tethered
from ollamalab.protocol.durations import FOREVER_S

__all__ = ["Engine", "EngineStream", "LoadOptions"]

logger = logging.getLogger(__name__)

MAX_EVENT_BYTES = 8 * 1024 * 1024  #: of one server-sent event, as in Ollama
HEALTH_TIMEOUT_S = 10.0  #: an engine that is silent for longer counts as hung, as in Ollama

_POLL_S = 0.02  # Ollama sleeps 250 ms here, which is the grain of its load_duration
_LAST_WORDS_S = 1.0  # between a broken connection and the news that the process has ended
_OK = 200


class Engine:
    """One loaded model.

    Attributes:
        model: What it has loaded.
        load: With which options.
        url: Where the process serves, ``http://127.0.0.1:PORT``.
        pid: The process that computes.
        memory: What it takes, from its own log; the file's size if the log does not say.
        embedding_turn: Held for each embedding: llama.cpp mixes up the pooled vectors of texts that it
            embeds at the same time in several slots (b11549; a completion beside them does no harm).
    """

    def __init__(self, model: ModelFile, load: LoadOptions, process: asyncio.subprocess.Process) -> None:
        self.model = model
        self.load = load
        self.url = ""
        self.pid = 0
        self.memory = MemoryUse(size_bytes=model.size_bytes, size_vram_bytes=0)
        self.embedding_turn = asyncio.Lock()
        self._process = process
        self._log = EngineLog()
        self._on_exit: Callable[[Engine], None] | None = None
        self._ended = asyncio.create_task(self._read_log())

    @classmethod
    async def start(
        cls,
        model: ModelFile,
        load: LoadOptions,
        *,
        llama_server: Path | None = None,
        load_timeout_s: float = 300.0,
        on_exit: Callable[[Engine], None] | None = None,
    ) -> Engine:
        """Start a process, load the model, and return when it answers.

        If this is cancelled or fails, nothing is left of the process.

        Args:
            model: What to load.
            load: How.
            llama_server: The binary to use; None for the built-in llama.cpp.
            load_timeout_s: Seconds that a load may last *without a sign of life*: each log line
                starts them anew. 0 or less waits for ever.
            on_exit: Called once if the process ends without ``stop``.

        Raises:
            EngineError: It could not be started, ended, or stalled; the message has the log's reason.
        """
        own_pooling = f"{model.metadata.architecture}.pooling_type" in model.metadata.fields
        launch = Launch(
            model_path=str(model.path),
            load=load,
            mean_pooling=load.embedding and not own_pooling,
            llama_server=str(llama_server) if llama_server else None,
        )
        command = tethered([sys.executable, "-m", "ollamalab.embedded.engine_process", launch.to_json()])
        pipe = asyncio.subprocess.PIPE
        try:
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment()
            )
        except OSError as error:
            raise EngineError(f"cannot start a process for {model.name.short}: {error.strerror}") from error
        engine = cls(model, load, process)
        try:
            await engine._become_ready(load_timeout_s)
        except BaseException:
            await engine.stop()
            raise
        engine._on_exit = on_exit
        return engine

    async def health(self) -> bool:
        """Whether the engine answers: not dead, not hung, not still loading."""
        if self._ended.done():
            return False
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                reply = await engine_http.send(self.url, "GET", "/health")
        except (OSError, BadReply):  # a timeout is an OSError
            return False
        reply.close()
        return reply.status == _OK

    async def slots(self) -> list[dict[str, Any]]:
        """Return llama.cpp's own account of its slots, one object each, in order of id.

        Raises:
            EngineError: The engine is gone.
        """
        _, reply = await self._call("GET", "/slots")
        slots: list[dict[str, Any]] = json.loads(reply)
        return slots

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Make a short call, such as ``/tokenize``, and return its status and body.

        Raises:
            EngineError: The engine is gone.
        """
        return await self._call("POST", path, body)

    def stream(self, path: str, body: Mapping[str, Any]) -> EngineStream:
        """Return a call whose answer arrives event by event; enter it with ``async with``."""
        return EngineStream(lambda: self._send("POST", path, body), self._failure)

    async def stop(self) -> None:
        """End the process, whatever it is doing, and wait until it is gone. May be called again."""
        self._on_exit = None
        if self.pid and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        assert self._process.stdin
        self._process.stdin.close()
        await asyncio.shield(self._ended)

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> tuple[int, bytes]:
        async with EngineStream(lambda: self._send(method, path, body), self._failure) as stream:
            return stream.status, await stream.read()

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> EngineReply:
        if self._ended.done():  # its port may be somebody else's by now
            raise ConnectionRefusedError("the engine has ended")
        data = b"" if body is None else json.dumps(body).encode()
        return await engine_http.send(self.url, method, path, data)

    async def _become_ready(self, load_timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        stall_s = load_timeout_s if 0 < load_timeout_s < FOREVER_S else None
        try:
            async with asyncio.timeout(stall_s) as deadline:

                def prolong() -> None:
                    if stall_s is not None and not deadline.expired():
                        deadline.reschedule(loop.time() + stall_s)

                self._log.on_output = prolong
                await self._read_report()
                while not await self.health():
                    if self._ended.done():
                        raise EngineError(await self._obituary("did not start"))
                    await asyncio.sleep(_POLL_S)
        except TimeoutError as error:
            raise EngineError(
                f"loading {self.model.name.short} made no progress for {load_timeout_s:g} s "
                f"(last words: {failure_reason(self._log.text)}); OLLAMA_LOAD_TIMEOUT sets the limit"
            ) from error
        finally:
            self._log.on_output = None
        self.memory = memory_use(self._log.text) or self.memory
        self._log.forget_loading()
        logger.info("event=engine_ready model=%s pid=%d url=%s", self.model.name.short, self.pid, self.url)

    async def _read_report(self) -> None:
        """Learn address and pid from the line that the process writes."""
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            raise EngineError(await self._obituary("did not start"))
        report = json.loads(line)
        self.url, self.pid = report["url"], report["pid"]

    async def _read_log(self) -> None:
        """Take the log until the process has ended."""
        assert self._process.stderr
        while chunk := await self._process.stderr.read(65536):
            self._log.feed(chunk)
        await self._process.wait()
        if self._on_exit:
            reason = failure_reason(self._log.text)
            logger.warning(
                "event=engine_ended model=%s pid=%d reason=%s", self.model.name.short, self.pid, reason
            )
            self._on_exit(self)

    async def _failure(self, error: Exception) -> EngineError:
        """Return what a failed call means: the process has ended, or it speaks nonsense."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                return EngineError(await self._obituary("ended unexpectedly"))
        return EngineError(f"the engine of {self.model.name.short} broke off at {self.url}: {error}")

    async def _obituary(self, event: str) -> str:
        """Wait for the end of the process and say what is known of it."""
        await asyncio.shield(self._ended)
        code = self._process.returncode or 0
        killed = code - 128 in signal.valid_signals()  # how the supervisor passes it on
        how = f"killed by {signal.Signals(code - 128).name}" if killed else f"exit status {code}"
        return (
            f"the engine of {self.model.name.short} {event} ({how}): {failure_reason(self._log.text)}; "
            f"its file is {self.model.path}"
        )


class EngineStream:
    """An answer that is still arriving.

    Leaving it before the end hangs up, which stops the generation and frees the engine's slot.

    Attributes:
        status: HTTP status; from 400 on, ``read`` has the engine's error object.
    """

    def __init__(
        self,
        send: Callable[[], Awaitable[EngineReply]],
        failure: Callable[[Exception], Awaitable[EngineError]],
    ) -> None:
        """Take how to send the request, and what a broken connection means."""
        self.status = 0
        self._send = send
        self._failure = failure
        self._reply: EngineReply

    async def __aenter__(self) -> Self:
        try:
            self._reply = await self._send()
        except (OSError, BadReply) as error:
            raise await self._failure(error) from error
        self.status = self._reply.status
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reply.close()

    async def events(self) -> AsyncIterator[bytes]:
        """Give the payload of each event, the part after ``data: ``; pings are left out.

        Raises:
            EngineError: The engine went away, or an event is longer than ``MAX_EVENT_BYTES``.
        """
        rest = b""
        try:
            while chunk := await self._reply.chunk():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    if line.startswith(b"data: "):
                        yield line[6:]
                if len(rest) > MAX_EVENT_BYTES:
                    raise BadReply(f"an event grew past {MAX_EVENT_BYTES} bytes")
        except (OSError, BadReply) as error:
            raise await self._failure(error) from error

    async def read(self) -> bytes:
        """Return the whole body.

        Raises:
            EngineError: The engine went away.
        """
        try:
            return await self._reply.read()
        except (OSError, BadReply) as error:
            raise await self._failure(error) from error


def _environment() -> dict[str, str]:
    # Threads of an OpenMP build meet at some 400 barriers per token, and spin there for milliseconds
    # by default. Fine on idle cores; but if anything else wants one of them (a client, a second
    # engine, a neighbour in CI), the spinners wait for a thread that is not running. Measured with
    # 2 cores, milliseconds per token without and with two busy neighbours: default 7.4 and 208,
    # a short spin 7.9 and 18, never spinning (OMP_WAIT_POLICY=passive) 20 and 27.
    return {"GOMP_SPINCOUNT": "300", **os.environ}
