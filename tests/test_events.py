"""llama.cpp's events become pieces and an ending; the events were recorded from its server."""

from typing import Any

import msgspec
import pytest

from ollamalab.embedded.events import Call, ChatReader, CompletionReader, Ending, Piece, TokenProbability
from ollamalab.errors import EngineError

TIMINGS = {
    "cache_n": 5,
    "prompt_n": 31,
    "prompt_ms": 2862.359,
    "prompt_per_second": 10.8,
    "predicted_n": 3,
    "predicted_ms": 0.001,
}
HELLO = {
    "id": 19556,
    "token": "Hello",
    "bytes": [72, 101],
    "logprob": -1.25,
    "top_logprobs": [{"id": 1, "token": "Hi", "bytes": [72, 105], "logprob": -2.5}],
}


def chat_event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
    logprobs = {"logprobs": {"content": more.pop("content")}} if "content" in more else {}
    choice = {"finish_reason": finish, "index": 0, "delta": delta, **logprobs}
    return msgspec.json.encode({"choices": [choice], "created": 1, "model": "m", **more})


def completion_event(content: str, **more: Any) -> bytes:
    return msgspec.json.encode({"index": 0, "content": content, "tokens": [1], "stop": False, **more})


def test_a_chat_is_read_from_role_to_end() -> None:
    reader = ChatReader()
    assert reader.read(chat_event({"role": "assistant", "content": None})) is None
    assert reader.read(chat_event({"content": "Hello"})) == Piece("Hello")
    assert reader.read(chat_event({"reasoning_content": "hm"})) == Piece("", "hm")
    ending = reader.read(chat_event({}, "stop", timings=TIMINGS))
    assert reader.read(b"[DONE]") is None
    assert ending == Ending(
        done_reason="stop", prompt_tokens=36, prompt_ns=2_862_359_000, eval_tokens=3, eval_ns=1000
    )


def test_a_completion_is_read_to_its_end() -> None:
    reader = CompletionReader()
    assert reader.read(completion_event("Hello")) == Piece("Hello")
    assert reader.read(completion_event("")) is None
    ending = reader.read(completion_event("!", stop=True, stop_type="eos", timings=TIMINGS))
    assert isinstance(ending, Ending)
    assert (ending.piece, ending.done_reason, ending.prompt_tokens) == (Piece("!"), "stop", 36)


@pytest.mark.parametrize(
    ("finish", "stop_type", "reason"),
    [
        ("stop", "eos", "stop"),
        ("stop", "word", "stop"),
        ("tool_calls", "eos", "stop"),
        ("length", "limit", "length"),
    ],
)
def test_only_a_limit_is_a_length(finish: str, stop_type: str, reason: str) -> None:
    chat = ChatReader().read(chat_event({}, finish, timings=TIMINGS))
    completion = CompletionReader().read(completion_event("", stop=True, stop_type=stop_type))
    assert isinstance(chat, Ending)
    assert isinstance(completion, Ending)
    assert chat.done_reason == completion.done_reason == reason


def test_alternatives_are_given_only_if_asked_for() -> None:
    """The engine always sends one; Ollama drops it again."""
    chosen = TokenProbability(token="Hello", logprob=-1.25, bytes=[72, 101])
    other = TokenProbability(token="Hi", logprob=-2.5, bytes=[72, 105])
    both = msgspec.structs.replace(chosen, top_logprobs=[other])
    for asked, expected in ((False, chosen), (True, both)):
        chat = ChatReader(with_alternatives=asked).read(chat_event({"content": "Hello"}, content=[HELLO]))
        completion = CompletionReader(with_alternatives=asked).read(
            completion_event("Hello", completion_probabilities=[HELLO])
        )
        assert chat == completion == Piece("Hello", "", (expected,))


def test_tool_calls_come_in_parts_and_go_out_at_the_end() -> None:
    reader = ChatReader()
    begun = {"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}
    assert reader.read(chat_event({"tool_calls": [begun]})) is None
    first = {"index": 0, "id": "a", "function": {"name": "f", "arguments": '{"city":'}}
    assert reader.read(chat_event({"tool_calls": [first]})) is None
    assert (
        reader.read(chat_event({"tool_calls": [{"index": 0, "function": {"arguments": '"Rome"}'}}]})) is None
    )
    ending = reader.read(chat_event({}, "tool_calls", timings=TIMINGS))
    assert isinstance(ending, Ending)
    assert ending.calls == (
        Call(id="a", index=0, name="f", arguments={"city": "Rome"}),
        Call(id="b", index=1, name="g", arguments={}),
    )


def test_broken_arguments_of_a_tool_call_are_an_error() -> None:
    reader = ChatReader()
    reader.read(chat_event({"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}))
    with pytest.raises(EngineError, match='invalid tool call arguments for "f"'):
        reader.read(chat_event({}, "tool_calls"))


@pytest.mark.parametrize("reader", [ChatReader(), CompletionReader()])
def test_an_error_event_and_nonsense_are_errors(reader: ChatReader | CompletionReader) -> None:
    with pytest.raises(EngineError, match="context is full"):
        reader.read(b'{"error":{"code":500,"message":"context is full"}}')
    with pytest.raises(EngineError, match="cannot be read"):
        reader.read(b"{nonsense")
