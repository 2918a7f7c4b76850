"""What an answer that passes by tells of the work it took. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from ollamalab.protocol.durations import NS_PER_S
from ollamalab.protocol.lines import StreamTail


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer took, as far as it tells.

    Attributes:
        output_tokens: Tokens generated; None if not known.
        prompt_tokens: Tokens of the prompt, cached ones included; None if not known.
        slot_wait_s: Seconds it waited for a slot inside the server; None if the server did not tell.
        busy_s: Seconds it then took, for prompt and output; None if the server did not tell.
        prompt_s: Of these, for the prompt.
        load_s: Seconds until the model was loaded, next to nothing if it was; None if the server did
            not tell.
    """

    output_tokens: int | None = None
    prompt_tokens: int | None = None
    slot_wait_s: float | None = None
    busy_s: float | None = None
    prompt_s: float | None = None
    load_s: float | None = None


#: Of a request that got nothing but an error.
NO_WORK = Work(output_tokens=0, prompt_tokens=0)

#: Of a request whose answer says nothing of it.
NOTHING_TOLD = Work()


class _Final(msgspec.Struct):
    """What a final line, or a whole answer, of ``/api`` says of itself; durations in nanoseconds."""

    done: bool
    total_duration: int | None = None
    load_duration: int = 0
    prompt_eval_count: int | None = None
    prompt_eval_duration: int = 0
    eval_count: int | None = None
    eval_duration: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(msgspec.Struct):
    """A whole answer of ``/v1``."""

    choices: list[msgspec.Raw]
    usage: _Usage | None = None


class Meter:
    """Watches the bytes of one answer; parses nothing before its end.

    Args:
        is_stream: Whether it comes in lines.
        is_openai: Whether it has OpenAI's form.
    """

    __slots__ = ("_chunks", "_is_openai", "_newlines", "_tail")

    def __init__(self, *, is_stream: bool, is_openai: bool) -> None:
        self._is_openai = is_openai
        self._tail = StreamTail(is_openai=is_openai) if is_stream else None
        self._newlines = 0
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        if self._tail is None:
            self._chunks.append(chunk)
        else:
            self._newlines += chunk.count(b"\n")
            self._tail.feed(chunk)

    def so_far(self) -> Work:
        """Return what an answer took that broke off: of a stream, about a token a line."""
        return NOTHING_TOLD if self._tail is None else Work(output_tokens=self._lines())

    def whole(self) -> Work | None:
        """Return what the answer took, at its body's end; None if the answer is not whole."""
        if self._tail is None:
            return work_of_whole(b"".join(self._chunks), is_openai=self._is_openai)
        if not self._is_openai:
            return _of_final(self._tail.final())
        return self.so_far() if self._tail.is_whole else None

    def _lines(self) -> int:
        """Return how many lines or events came, without what follows the last token."""
        if self._is_openai:
            return max(0, self._newlines // 2 - 2)  # the reason to finish and [DONE]
        return max(0, self._newlines - 1)


def work_of_whole(body: bytes, *, is_openai: bool) -> Work | None:
    """Return what an unstreamed answer took; None if it is not whole."""
    return _of_completion(body) if is_openai else _of_final(body)


def _of_final(said: bytes | dict[str, Any] | None) -> Work | None:
    try:
        final = msgspec.json.decode(said, type=_Final) if isinstance(said, bytes) else _converted(said)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if not final.done:
        return None
    slot_wait_s = busy_s = prompt_s = load_s = None
    if final.total_duration is not None and final.eval_duration is not None:
        busy_ns = final.prompt_eval_duration + final.eval_duration
        busy_s, load_s = busy_ns / NS_PER_S, final.load_duration / NS_PER_S
        prompt_s = final.prompt_eval_duration / NS_PER_S
        slot_wait_s = max(0, final.total_duration - final.load_duration - busy_ns) / NS_PER_S
    return Work(
        output_tokens=final.eval_count,
        prompt_tokens=final.prompt_eval_count,
        slot_wait_s=slot_wait_s,
        busy_s=busy_s,
        prompt_s=prompt_s,
        load_s=load_s,
    )


def _converted(said: dict[str, Any] | None) -> _Final:
    return msgspec.convert(said, type=_Final)


def _of_completion(body: bytes) -> Work | None:
    try:
        usage = msgspec.json.decode(body, type=_Completion).usage or _Usage()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return Work(output_tokens=usage.completion_tokens, prompt_tokens=usage.prompt_tokens)
