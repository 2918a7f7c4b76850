"""What llama.cpp's event streams say: pieces of an answer, then its ending. Pure.

An *event* is the payload of one server-sent event. Only the fields that are needed are decoded:
this runs once per token. Chunks are not tokens: one event may carry several, or none.

Source of the mapping: Ollama's ``llm/llama_server.go`` (v0.33).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from ollamalab.errors import EngineError


class TokenProbability(msgspec.Struct, omit_defaults=True):
    """A token with its log probability, as Ollama writes it.

    Attributes:
        token: Its text; pieces of a multi-byte character are not whole text, so see ``bytes``.
        logprob: Natural logarithm of its probability.
        bytes: Its bytes, one number each.
        top_logprobs: The likeliest tokens in its place, if asked for.
    """

    token: str
    logprob: float
    bytes: list[int] = []
    top_logprobs: list[TokenProbability] = []


class Piece(msgspec.Struct, frozen=True, gc=False):
    """A part of an answer. A struct, since one is made for each token: six times as fast as a dataclass."""

    content: str = ""
    thinking: str = ""
    logprobs: tuple[TokenProbability, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A tool that the model wants called; ``arguments`` is a JSON object."""

    id: str
    index: int
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How an answer ended.

    Attributes:
        piece: What text came with the end, mostly none.
        done_reason: "stop" or "length".
        prompt_tokens: Tokens of the prompt, those taken from the cache included.
        prompt_ns: Time to evaluate those that were not cached.
        eval_tokens: Tokens generated.
        eval_ns: Time to generate them.
        calls: Tools to call, in the model's order.
    """

    piece: Piece = field(default_factory=Piece)
    done_reason: str = "stop"
    prompt_tokens: int = 0
    prompt_ns: int = 0
    eval_tokens: int = 0
    eval_ns: int = 0
    calls: tuple[Call, ...] = ()


class Reader(Protocol):
    """Turns the events of one answer into its pieces and its ending."""

    def read(self, event: bytes) -> Piece | Ending | None:
        """Return what an event says; None if it says nothing.

        Raises:
            EngineError: The engine reports an error, or the event makes no sense.
        """
        ...


class _Timings(msgspec.Struct):
    cache_n: int = 0
    prompt_n: int = 0
    prompt_ms: float = 0.0
    predicted_n: int = 0
    predicted_ms: float = 0.0


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _CallPart(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_CallPart] = []


class _Logprobs(msgspec.Struct):
    content: list[TokenProbability] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _ChatEvent(msgspec.Struct):
    choices: list[_Choice] = []
    timings: _Timings | None = None
    error: Any = None


class _CompletionEvent(msgspec.Struct):
    content: str = ""
    stop: bool = False
    stop_type: str = ""
    timings: _Timings | None = None
    completion_probabilities: list[TokenProbability] = []
    error: Any = None


_NO_TIMINGS = _Timings()

_chat_event = msgspec.json.Decoder(_ChatEvent)
_completion_event = msgspec.json.Decoder(_CompletionEvent)


class ChatReader:
    """Reads the events of ``/v1/chat/completions``; tool calls come in parts and go out at the end."""

    def __init__(self, *, with_alternatives: bool = False) -> None:
        """Take whether alternatives per token were asked for; the engine always sends one."""
        self._with_alternatives = with_alternatives
        self._calls: dict[int, list[str]] = {}

    def read(self, event: bytes) -> Piece | Ending | None:
        """Return what an event says; None if it says nothing.

        Raises:
            EngineError: The engine reports an error, or the event makes no sense.
        """
        if event == b"[DONE]":
            return None
        said = _decode(_chat_event, event)
        if not said.choices:
            return None
        choice = said.choices[0]
        delta = choice.delta
        for part in delta.tool_calls:
            call = self._calls.setdefault(part.index, ["", "", ""])
            call[0] += part.id or ""
            call[1] += part.function.name or ""
            call[2] += part.function.arguments or ""
        listed = choice.logprobs.content if choice.logprobs and choice.logprobs.content else ()
        piece = Piece(
            delta.content or "",
            delta.reasoning_content or "",
            _probabilities(listed, self._with_alternatives) if listed else (),
        )
        if choice.finish_reason is not None:
            is_cut = choice.finish_reason == "length"
            return _ending(piece, is_cut=is_cut, timings=said.timings, calls=self._finished_calls())
        return piece if piece.content or piece.thinking or piece.logprobs else None

    def _finished_calls(self) -> tuple[Call, ...]:
        calls = []
        for index, (call_id, name, text) in sorted(self._calls.items()):
            try:
                arguments = msgspec.json.decode(text or "{}", type=dict[str, Any])
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise EngineError(
                    f'llama-server returned invalid tool call arguments for "{name}": {error}'
                ) from error
            calls.append(Call(id=call_id, index=index, name=name, arguments=arguments))
        return tuple(calls)


class CompletionReader:
    """Reads the events of ``/completion``."""

    def __init__(self, *, with_alternatives: bool = False) -> None:
        """Take whether alternatives per token were asked for; the engine always sends one."""
        self._with_alternatives = with_alternatives

    def read(self, event: bytes) -> Piece | Ending | None:
        """Return what an event says; None if it says nothing.

        Raises:
            EngineError: The engine reports an error, or the event makes no sense.
        """
        said = _decode(_completion_event, event)
        listed = said.completion_probabilities
        piece = Piece(said.content, "", _probabilities(listed, self._with_alternatives) if listed else ())
        if said.stop:
            return _ending(piece, is_cut=said.stop_type == "limit", timings=said.timings)
        return piece if piece.content else None


def _decode(decoder: msgspec.json.Decoder[Any], event: bytes) -> Any:
    try:
        said = decoder.decode(event)
    except msgspec.DecodeError as error:
        raise EngineError(f"llama-server sent an event that cannot be read: {error}") from error
    if said.error is not None:
        raise EngineError(error_text(said.error))
    return said


def error_text(error: object) -> str:
    """Return the message of an ``error`` object of llama.cpp, or all of it if it has none."""
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)


def _ending(piece: Piece, *, is_cut: bool, timings: _Timings | None, calls: tuple[Call, ...] = ()) -> Ending:
    timings = timings or _NO_TIMINGS
    return Ending(
        piece=piece,
        done_reason="length" if is_cut else "stop",
        prompt_tokens=timings.cache_n + timings.prompt_n,
        prompt_ns=round(timings.prompt_ms * 1e6),
        eval_tokens=timings.predicted_n,
        eval_ns=round(timings.predicted_ms * 1e6),
        calls=calls,
    )


def _probabilities(listed: list[TokenProbability], with_alternatives: bool) -> tuple[TokenProbability, ...]:
    if not with_alternatives:
        for item in listed:
            item.top_logprobs = []
    return tuple(listed)
