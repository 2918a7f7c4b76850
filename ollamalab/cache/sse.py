"""The forms of an answer under ``/v1``: server-sent events with or without usage, or one object. Pure.

An unstreamed answer always tells its usage, a stream only if asked (``stream_options``). So that what
is kept can serve every form, a stream that will be kept is asked for with its usage, and the usage is
taken out for those who did not ask.

Source: Ollama's ``openai/openai.go`` and ``middleware/openai.go`` (v0.33).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ollamalab.errors import BadReply
from ollamalab.protocol.lines import MAX_LINE_BYTES

STREAM_TYPE = "text/event-stream"
WHOLE_TYPE = "application/json"

DONE = b"data: [DONE]\n\n"
END = b"\n\n"
_DATA = b"data: "
_USAGE = b'"usage":'
_NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
_CHAT, _CHAT_CHUNK = "chat.completion", "chat.completion.chunk"

_json = msgspec.json.Encoder().encode
_parse = msgspec.json.Decoder(dict[str, Any]).decode


def data_of(event: bytes) -> bytes:
    """Return what an event carries: JSON, or ``[DONE]``."""
    return event[len(_DATA) : -len(END)]


def wants_usage(fields: Mapping[str, Any]) -> bool:
    """Return whether a request's stream is to tell its usage."""
    options = fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def asking(fields: Mapping[str, Any], *, has_usage: bool) -> bytes:
    """Return the body of a request of these fields, for a stream that tells its usage or anything else."""
    asked = {name: value for name, value in fields.items() if name != "stream_options"}
    return _json({**asked, "stream_options": {"include_usage": True}} if has_usage else asked)


def without_usage(event: bytes) -> bytes:
    """Return an event without its usage; nothing if it carried nothing else."""
    if _USAGE not in event:  # within a text its quotes would be escaped
        return event
    try:
        fields = _parse(data_of(event))
    except msgspec.DecodeError:
        return event
    fields.pop("usage", None)
    return _event(fields) if fields.get("choices") else b""


class UsageFilter:
    """Takes the usage out of a stream of events, whatever the borders of its chunks."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> bytes:
        """Return the events that this chunk completes, without usage; b"" if it completes none.

        Raises:
            BadReply: An event grows past ``MAX_LINE_BYTES``.
        """
        held = self._held
        searched = max(0, len(held) - len(END) + 1)
        held += chunk
        end = held.rfind(END, searched) + len(END)
        if end < len(END):
            if len(held) > MAX_LINE_BYTES:
                raise BadReply(f"an event grew past {MAX_LINE_BYTES} bytes without an end")
            return b""
        events = bytes(held[:end])
        del held[:end]
        if _USAGE not in events:
            return events
        return b"".join(without_usage(event + END) for event in events[: -len(END)].split(END))

    def rest(self) -> bytes:
        """Return what follows the last event: the end of a cut stream, or nothing."""
        return bytes(self._held)


def joined(events: Sequence[bytes]) -> bytes | None:
    """Return a stream as the one object that the same request would have got unstreamed.

    Returns:
        None for what no stream of Ollama has: no usage, several choices, tool calls in parts.
    """
    chunks = [_parse(data_of(event)) for event in events if event != DONE]
    choices = [chunk["choices"][0] for chunk in chunks if chunk.get("choices")]
    usage = chunks[-1].get("usage")
    if not usage or not choices or any(len(chunk.get("choices") or ()) > 1 for chunk in chunks):
        return None
    head = {name: value for name, value in chunks[0].items() if name not in ("choices", "usage")}
    choice: dict[str, Any] = {"index": 0}
    if head.get("object") == _CHAT_CHUNK:
        head["object"] = _CHAT
        message = _message([choice.get("delta") or {} for choice in choices])
        if message is None:
            return None
        choice["message"] = message
    else:
        choice["text"] = "".join(part.get("text") or "" for part in choices)
    choice["finish_reason"] = choices[-1].get("finish_reason")
    if logprobs := [token for part in choices for token in (part.get("logprobs") or {}).get("content") or ()]:
        choice["logprobs"] = {"content": logprobs}
    return _json({**head, "choices": [choice], "usage": usage}) + b"\n"


def split(whole: bytes, *, include_usage: bool) -> tuple[bytes, ...] | None:
    """Return an unstreamed answer as a stream: its content, its end, its usage if asked, ``[DONE]``.

    Returns:
        None for what no answer of Ollama has: no usage, several choices.
    """
    answer = _parse(whole)
    usage, choices = answer.pop("usage", None), answer.pop("choices", ())
    if not usage or len(choices) != 1:
        return None
    choice, reason = choices[0], choices[0].get("finish_reason")
    logprobs = {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}
    if answer.get("object") == _CHAT:
        answer["object"] = _CHAT_CHUNK
        deltas = _deltas(choice.get("message") or {})
        said: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
        said[0].update(logprobs)
        said.append({"index": 0, "delta": {}, "finish_reason": reason})
        each: dict[str, Any] = {}
    else:
        said = [{"text": choice.get("text", ""), "index": 0, "finish_reason": None}]
        said.append({"text": "", "index": 0, "finish_reason": reason})
        each = {"usage": _NO_USAGE} if include_usage else {}
    events = [_event({**answer, "choices": [part], **each}) for part in said]
    if include_usage:
        events.append(_event({**answer, "choices": [], "usage": usage}))
    return (*events, DONE)


def _event(fields: Mapping[str, Any]) -> bytes:
    return _DATA + _json(fields) + END


def _message(deltas: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
    if not all(call.get("id") and (call.get("function") or {}).get("name") for call in calls):
        return None
    message: dict[str, Any] = {"role": "assistant"}
    message["content"] = "".join(delta.get("content") or "" for delta in deltas)
    if reasoning := "".join(delta.get("reasoning") or "" for delta in deltas):
        message["reasoning"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _deltas(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the message's chunks say; as in Ollama, reasoning goes apart from the rest."""
    delta = {name: value for name, value in message.items() if value is not None}
    reasoning = delta.pop("reasoning", None)
    if not reasoning:
        return [delta]
    role = {"role": delta.pop("role", "assistant")}
    if not delta.get("content") and not delta.get("tool_calls"):
        return [{**role, "content": "", "reasoning": reasoning}]
    return [{**role, "reasoning": reasoning}, delta]
