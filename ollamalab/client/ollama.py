"""A small client for one Ollama server, whose every reply says where its time went."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec

from ollamalab.client.capture import Capture, error_text
from ollamalab.client.stages import Moments, StageLedger, stage_ledger
from ollamalab.client.transport import Lookup, StagedTransport, system_lookup
from ollamalab.errors import BadReply, ModelNotFound, UpstreamRejected
from ollamalab.metrics import stages
from ollamalab.protocol.upstream import Request
from ollamalab.protocol.urls import server_url
from ollamalab.records import Outcome, RequestRecord

_NOT_FOUND = 404
_FIRST_BAD_STATUS = 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A finished reply.

    Attributes:
        text: Content and thinking, joined.
        final: The final line as the server sent it.
        line_times_s: Arrival of every line, the final one included (``time.perf_counter``).
        record: The request's moments and counts, for ``metrics``.
        stages: Where its time went.
    """

    text: str
    final: Mapping[str, Any]
    line_times_s: tuple[float, ...]
    record: RequestRecord
    stages: StageLedger


class OllamaClient:
    """One Ollama server, one request at a time or several; used with ``async with``.

    ::

        async with OllamaClient("http://127.0.0.1:11434") as client:
            answer = await client.chat("smollm2:135m", "Why is the sky blue?", options={"num_predict": 32})
            print(answer.text, answer.stages.parts())

    For load use ``loadgen``: httpx costs milliseconds per stream where many run at once.

    Args:
        url: Address of the server, as ``server_url`` reads it.
        headers: Sent with every request, such as ``Authorization``.
        connect_timeout_s: For looking up the name and for connecting, each.
        progress_timeout_s: Without a byte, before the reply or inside it; covers a model's load.
        ssl_context: For https; None trusts the usual authorities.
        lookup: Looks names up; another one may know names that the system does not, or take its time.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        connect_timeout_s: float = 5.0,
        progress_timeout_s: float = 300.0,
        ssl_context: ssl.SSLContext | None = None,
        lookup: Lookup = system_lookup,
    ) -> None:
        self.url = server_url(url)
        self._transport = StagedTransport(
            self.url,
            headers=dict(headers or {}),
            connect_timeout_s=connect_timeout_s,
            progress_timeout_s=progress_timeout_s,
            ssl_context=ssl_context,
            lookup=lookup,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._transport.close()

    async def chat(self, model: str, messages: str | Sequence[Mapping[str, Any]], **fields: Any) -> Answer:
        """Return the answer of ``POST /api/chat``, streamed unless ``stream=False``.

        Args:
            model: Name of the model.
            messages: As Ollama takes them, or the text of one user message.
            fields: Of the request's body: ``options``, ``keep_alive``, ``format``, ``stream`` ...

        Raises:
            ModelNotFound: The server does not have the model.
            UpstreamRejected: Another status of 300 or more.
            UpstreamError: No good answer.
        """
        said = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        return await self._infer("/api/chat", {"model": model, "messages": said, **fields})

    async def generate(self, model: str, prompt: str, **fields: Any) -> Answer:
        """Return the answer of ``POST /api/generate``; else as ``chat``."""
        return await self._infer("/api/generate", {"model": model, "prompt": prompt, **fields})

    async def version(self) -> str:
        """Return the server's version."""
        return str(await self._get("/api/version", "version"))

    async def tags(self) -> list[dict[str, Any]]:
        """Return the models that the server has, newest first."""
        return list(await self._get("/api/tags", "models"))

    async def ps(self) -> list[dict[str, Any]]:
        """Return the models that are loaded."""
        return list(await self._get("/api/ps", "models"))

    async def show(self, model: str) -> dict[str, Any]:
        """Return what the server knows of a model.

        Raises:
            ModelNotFound: The server does not have it.
        """
        return await self._call("POST", "/api/show", {"model": model})

    async def preload(
        self,
        model: str,
        *,
        options: Mapping[str, Any] | None = None,
        keep_alive: float | str | None = None,
    ) -> float:
        """Load a model without generating; return the seconds until it was ready, seen from here.

        The server's reply has no durations.

        Args:
            model: Name of the model.
            options: Those of the traffic: other load-time options would load it again.
            keep_alive: Seconds or a Go duration; None leaves it to the server.

        Raises:
            ModelNotFound: The server does not have it.
        """
        body: dict[str, Any] = {"model": model, "messages": [], "options": dict(options or {})}
        if keep_alive is not None:
            body["keep_alive"] = keep_alive
        start_s = time.perf_counter()
        await self._call("POST", "/api/chat", body)
        return time.perf_counter() - start_s

    async def unload(self, model: str) -> None:
        """Ask the server to unload a model as soon as it is idle; it answers before that is done."""
        await self._call("POST", "/api/chat", {"model": model, "messages": [], "keep_alive": 0})

    async def _infer(self, path: str, body: Mapping[str, Any]) -> Answer:
        moments = Moments(called_s=time.perf_counter())
        encoded = msgspec.json.encode(body)
        capture = await self._exchange(Request(method="POST", path=path, body=encoded), moments)
        reading = capture.read()
        moments.parsed_s = time.perf_counter()
        moments.final_s = reading.final_s
        record = capture.record(self.url, reading)
        if reading.final is None or record.outcome not in (Outcome.OK, Outcome.EMPTY):
            raise BadReply(f"{self.url}{path}: {record.error}", url=self.url)
        return Answer(
            text="".join(reading.texts),
            final=reading.final,
            line_times_s=tuple(reading.line_times_s),
            record=record,
            stages=stage_ledger(moments, stages(record)),
        )

    async def _get(self, path: str, name: str) -> Any:
        reply = await self._call("GET", path)
        if name not in reply:
            text = f"{self.url}{path} answered without {name!r}; is it an Ollama server?"
            raise BadReply(text, url=self.url)
        return reply[name]

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        encoded = b"" if body is None else msgspec.json.encode(body)
        request = Request(method=method, path=path, body=encoded)
        capture = await self._exchange(request, Moments(called_s=time.perf_counter()))
        try:
            return msgspec.json.decode(capture.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            text = f"{self.url}{path} did not answer with a JSON object ({error}); is it an Ollama server?"
            raise BadReply(text, url=self.url) from error

    async def _exchange(self, request: Request, moments: Moments) -> Capture:
        """Send a request and read the whole reply; a bad status is an exception."""
        capture = Capture(request=request, intended_s=moments.called_s)
        async with self._transport.exchange(request.method, request.path, request.body, moments) as (
            capture.status,
            chunks,
        ):
            async for chunk in chunks:
                capture.reads.append((time.perf_counter(), chunk))
        capture.end_s = moments.body_end_s = time.perf_counter()
        capture.sent_s = moments.prepared_s
        capture.connected_s = moments.secured_s or moments.connected_s
        capture.sent_end_s, capture.headers_s = moments.sent_end_s, moments.headers_s
        if capture.status >= _FIRST_BAD_STATUS:
            raise await self._refusal(request, capture.status, error_text(capture.body))
        return capture

    async def _refusal(self, request: Request, status: int, text: str) -> Exception:
        """Return the exception for a bad status; a model that is missing gets the list of those there."""
        if status != _NOT_FOUND or not text.startswith("model"):
            message = f"{self.url} answered {status} to {request.path}: {text}"
            return UpstreamRejected(message, url=self.url, status=status)
        names = [str(model["name"]) for model in await self.tags()]
        there = f"it has {', '.join(names)}" if names else "it has none"
        return ModelNotFound(f"{self.url}: {text}; {there}; `ollama pull` fetches more")
