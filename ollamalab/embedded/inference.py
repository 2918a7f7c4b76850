"""Runs one generation on an engine: slot, stream, pieces, ending."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ollamalab.embedded.answer import Parts
from ollamalab.embedded.dialect import Finished
from ollamalab.embedded.events import Ending, Piece, Reader
from ollamalab.embedded.prompts import tokenize
from ollamalab.embedded.scheduler import Lease
from ollamalab.errors import EngineError, RequestRefused

_BAD_REQUEST = 400


@dataclass(frozen=True, slots=True)
class Stopwatch:
    """Times one request, from the moment its handler was entered."""

    started_ns: int

    @classmethod
    def start(cls) -> Stopwatch:
        """Return a running one."""
        return cls(time.perf_counter_ns())

    def elapsed_ns(self) -> int:
        """Return nanoseconds since the start."""
        return time.perf_counter_ns() - self.started_ns


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCall:
    """What an engine is asked, and how its answer is read.

    Attributes:
        path: Of llama.cpp's server.
        body: For it.
        reader: For its events.
        context_prompt: The prompt, if the tokens of prompt and answer are wanted at the end.
    """

    path: str
    body: Mapping[str, Any]
    reader: Reader
    context_prompt: str | None = None


async def generate(lease: Lease, call: EngineCall, watch: Stopwatch, *, load_ns: int) -> Parts:
    """Give the pieces of an answer, then how it finished.

    Closing this generator hangs up on the engine, which stops and frees its slot.

    Args:
        lease: On the model.
        call: What to ask.
        watch: Started when the request arrived.
        load_ns: What it showed when the model was scheduled.

    Raises:
        RequestRefused: The engine refuses; its status, and its error object as text, as Ollama passes it.
        EngineError: The engine went away before the answer was finished.
    """
    ending: Ending | None = None
    content: list[str] = []
    async with lease.slot():
        try:
            async with lease.engine.stream(call.path, call.body) as stream:
                if stream.status >= _BAD_REQUEST:
                    raise RequestRefused(
                        stream.status, (await stream.read()).decode(errors="replace").strip()
                    )
                async for event in stream.events():
                    said = call.reader.read(event)
                    if isinstance(said, Piece):
                        if call.context_prompt is not None:
                            content.append(said.content)
                        yield said
                    elif said is not None:
                        ending = said
        except EngineError as error:
            raise EngineError(f"an error was encountered while running the model: {error}") from error
    if ending is None:
        raise EngineError("an error was encountered while running the model: unexpected EOF")
    total_ns = watch.elapsed_ns()
    context: tuple[int, ...] = ()
    if call.context_prompt is not None:
        text = "".join([call.context_prompt, *content, ending.piece.content])
        context = tuple(await tokenize(lease.engine, text))
    yield Finished(ending, total_ns, load_ns, context)
