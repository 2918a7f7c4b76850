"""The scripted server: slots, the exchanges in them, and the small routes."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from ollamalab.errors import SettingsError
from ollamalab.protocol.bodies import SERVER_BUSY, error_body, model_not_found
from ollamalab.protocol.durations import to_ns, utc_stamp
from ollamalab.protocol.lines import encode_line
from ollamalab.protocol.names import parse_name
from ollamalab.scripted.script import Fault, Script, ServedRequest
from ollamalab.scripted.wire import Connection

_INSTEAD_OF_A_REPLY = frozenset((Fault.BUSY, Fault.RESET, Fault.HANG, Fault.NOT_HTTP))
_HALFWAY = frozenset((Fault.STUCK, Fault.CUT, Fault.SILENT_END, Fault.ERROR_LINE, Fault.GARBAGE))


class ScriptedServer:
    """The server, on the running loop; used with ``async with``.

    Service times follow the *schedule*, not the timers: a request that waited begins at the moment
    its predecessor was due to end, so that timer lag does not add up and Lindley's recursion holds.

    Attributes:
        url: Where it listens.
        log: Every inference request so far, in order of arrival.
    """

    def __init__(self, script: Script | None = None, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.script = script or Script()
        self.url = ""
        self.log: list[ServedRequest] = []
        self._address = (host, port)
        self._free_slots = self.script.slots
        self._waiting: deque[_Exchange] = deque()
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._changed = asyncio.Event()
        self._names = {parse_name(name).key: parse_name(name).short for name in self.script.models}

    async def __aenter__(self) -> Self:
        host, port = self._address
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: Connection(self._handle, self._connections), host, port, backlog=1024
            )
        except OSError as error:
            raise SettingsError(f"cannot listen on {host}:{port} ({error}); choose a free port") from error
        self.url = f"http://{host}:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._server is not None:
            self._server.close()
            for connection in tuple(self._connections):
                connection.reset()
            await self._server.wait_closed()

    async def received(self, count: int) -> None:
        """Wait until so many inference requests have arrived."""
        while len(self.log) < count:
            await self._change()

    async def ended(self, count: int) -> None:
        """Wait until so many inference requests have ended, in whatever way."""
        while sum(served.ended_s is not None for served in self.log) < count:
            await self._change()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def note_change(self) -> None:
        """Wake those who wait for a request's arrival or end."""
        self._changed.set()

    def admit(self, exchange: _Exchange) -> None:
        """Begin a request's service now, or when a slot is free."""
        if self._free_slots is not None:
            if self._free_slots == 0:
                self._waiting.append(exchange)
                return
            self._free_slots -= 1
        exchange.begin(exchange.served.arrived_s)

    def release(self, exchange: _Exchange, at_s: float) -> None:
        """Take a request out of its slot, or out of the line for one; the next begins at ``at_s``."""
        if exchange in self._waiting:
            self._waiting.remove(exchange)
        elif self._waiting:
            self._waiting.popleft().begin(at_s)
        elif self._free_slots is not None:
            self._free_slots += 1

    def _handle(
        self, connection: Connection, method: str, path: str, body: bytes, at_s: float
    ) -> _Exchange | None:
        if method == "POST" and path in ("/api/chat", "/api/generate", "/api/show"):
            return self._handle_model(connection, path, body, at_s)
        details = {
            "format": "gguf",
            "family": "scripted",
            "parameter_size": "0",
            "quantization_level": "none",
        }
        models = [
            {"name": name, "model": name, "size": 0, "digest": "0" * 64, "details": details}
            for name in self._names.values()
        ]
        match method, path:
            case ("GET" | "HEAD", "/"):
                connection.respond(200, b"Ollama is running", content_type="text/plain")
            case "GET", "/api/version":
                connection.respond(200, encode_line({"version": "0.0.0-scripted"}))
            case "GET", "/api/tags" | "/api/ps":
                connection.respond(200, encode_line({"models": models}))
            case "GET", "/script/log":
                requests = [asdict(served) for served in self.log]
                connection.respond(200, encode_line({"requests": requests}))
            case _:
                connection.respond(404, b"404 page not found", content_type="text/plain")
        return None

    def _handle_model(self, connection: Connection, path: str, body: bytes, at_s: float) -> _Exchange | None:
        try:
            asked = json.loads(body)
            model = str(asked["model"])
            is_known = parse_name(model).key in self._names
        except (ValueError, TypeError, KeyError, SettingsError):
            connection.respond(400, encode_line(error_body("model is required")))
            return None
        if not is_known:
            connection.respond(404, encode_line(error_body(model_not_found(model))))
            return None
        if path == "/api/show":
            connection.respond(200, encode_line({"details": {"family": "scripted"}, "model_info": {}}))
            return None
        if not asked.get("messages" if path == "/api/chat" else "prompt"):
            reason = "unload" if asked.get("keep_alive") == 0 else "load"
            content = (
                {"message": {"role": "assistant", "content": ""}} if path == "/api/chat" else {"response": ""}
            )
            connection.respond(
                200, encode_line({"model": model, **content, "done": True, "done_reason": reason})
            )
            return None
        exchange = _Exchange(self, connection, path, asked, at_s)
        self.log.append(exchange.served)
        self.note_change()
        return exchange if exchange.take() else None


class _Exchange:
    """One inference request on its way through the schedule."""

    def __init__(
        self, server: ScriptedServer, connection: Connection, path: str, asked: Mapping[str, Any], at_s: float
    ) -> None:
        self._server = server
        self._connection = connection
        self._model = str(asked["model"])
        self._is_chat = path == "/api/chat"
        self._is_stream = asked.get("stream") is not False
        prompt = asked["messages"][-1].get("content", "") if self._is_chat else asked["prompt"]
        self._prompt_tokens = len(prompt.split())
        script, index = server.script, len(server.log)
        wanted = (asked.get("options") or {}).get("num_predict") or -1
        self._tokens = min(wanted, script.tokens) if wanted > 0 else script.tokens
        self._done_reason = "length" if self._tokens == wanted else "stop"
        self._fault = script.faults.get(index)
        self._due_s: list[float] = []
        self._timer: asyncio.TimerHandle | None = None
        self.served = ServedRequest(index=index, prompt=prompt[:80], arrived_s=at_s)

    def take(self) -> bool:
        """Enter the schedule, or do what the fault says instead; return whether the reply is to come."""
        if self._fault not in _INSTEAD_OF_A_REPLY:
            self._server.admit(self)
            return True
        match self._fault:
            case Fault.BUSY:
                self._connection.respond(503, encode_line(error_body(SERVER_BUSY)))
            case Fault.RESET:
                self._connection.reset()
            case Fault.NOT_HTTP:
                self._connection.break_protocol()
        if self._fault is not Fault.HANG:
            self._end()
        return self._fault is Fault.HANG

    def begin(self, start_s: float) -> None:
        """Enter a slot; ``start_s`` is when it was free by the schedule."""
        self.served.started_s = start_s
        self._due_s = self._server.script.due_moments(self.served.index, start_s, self._tokens)
        self._arm(0)

    def hang_up(self) -> None:
        """The client went away: free the slot, stop writing."""
        if self._timer is not None:
            self._timer.cancel()
        if self.served.ended_s is None:
            ended_s = self._end()
            if self._fault is not Fault.HANG:
                self._server.release(self, ended_s)

    def _arm(self, position: int) -> None:
        delay_s = self._due_s[position] - time.perf_counter()
        self._timer = asyncio.get_running_loop().call_later(max(0.0, delay_s), self._write, position)

    def _write(self, position: int) -> None:
        """Write the token that is due, and what follows the last one."""
        self._timer = None
        if self._is_stream:
            if position == 0:
                self._connection.start_stream()
            if self._fault in _HALFWAY and position == self._tokens // 2 and self._break_off():
                return
        if self._fault is not Fault.EMPTY:
            self.served.written_s.append(time.perf_counter())
            if self._is_stream:
                self._connection.write_line(self._line(f"{position} ", {"done": False}))
        if position + 1 < self._tokens:
            self._arm(position + 1)
            return
        self._leave(self._due_s[-1], is_complete=True)
        if self._is_stream:
            self._connection.write_line(self._line("", self._final()))
            self._connection.end_stream()
        else:
            text = "" if self._fault is Fault.EMPTY else "".join(f"{token} " for token in range(self._tokens))
            self._connection.respond(200, self._line(text, self._final()))

    def _break_off(self) -> bool:
        """Do what the fault says in the middle of a stream; return whether that was all."""
        match self._fault:
            case Fault.GARBAGE:
                self._connection.write_line(b"<html>502 Bad Gateway</html>\n")
                return False
            case Fault.STUCK:
                return True
            case Fault.CUT:
                self._connection.reset()
                return True
            case Fault.ERROR_LINE:
                self._connection.write_line(encode_line(error_body("model runner has unexpectedly stopped")))
        self._leave(time.perf_counter(), is_complete=False)
        self._connection.end_stream()
        return True

    def _leave(self, free_s: float, *, is_complete: bool) -> None:
        self.served.is_complete = is_complete
        self._end()
        self._server.release(self, free_s)

    def _end(self) -> float:
        self.served.ended_s = time.perf_counter()
        self._server.note_change()
        return self.served.ended_s

    def _line(self, content: str, rest: Mapping[str, Any]) -> bytes:
        said = (
            {"message": {"role": "assistant", "content": content}} if self._is_chat else {"response": content}
        )
        return encode_line({"model": self._model, "created_at": utc_stamp(time.time_ns()), **said, **rest})

    def _final(self) -> dict[str, Any]:
        """Return the last line's fields; the wait for a slot is in the total only, as in Ollama."""
        started_s = self.served.started_s or self.served.arrived_s
        decode_s = self._due_s[-1] - self._due_s[0]
        return {
            "done": True,
            "done_reason": self._done_reason,
            "total_duration": to_ns(self._due_s[-1] - self.served.arrived_s),
            "load_duration": 1,
            "prompt_eval_count": self._prompt_tokens,
            "prompt_eval_duration": to_ns(self._due_s[0] - started_s),
            # llama.cpp counts the end token, which is never sent, when the model ends by itself.
            "eval_count": self._tokens + (self._done_reason == "stop") if self.served.written_s else 0,
            "eval_duration": to_ns(decode_s),
        }
