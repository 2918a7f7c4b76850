"""A kept answer given again, in either form. Bodies under ``/v1`` are a real Ollama's (v0.33)."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from held_upstream import FINAL, MODEL, STREAM, line, timeless
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.cache import Answer
from ollamalab.cache.replay import Form, Prepared, prepared
from ollamalab.cache.sse import UsageFilter
from ollamalab.errors import BadReply
from ollamalab.protocol.lines import MAX_LINE_BYTES

NOW_NS = 1_795_000_000_123_456_789
STAMP = "2026-11-18T11:06:40.123456789Z"
LOGPROB = {"token": "Hel", "logprob": -1.5, "bytes": [72, 101, 108]}


def kept(*pieces: bytes, is_openai: bool = False, is_stream: bool = True) -> Answer:
    return Answer(
        status=200,
        headers={},
        pieces=pieces,
        offsets_s=tuple(float(number) for number in range(len(pieces))),
        is_stream=is_stream,
        is_openai=is_openai,
        stored_s=0.0,
        ttl_s=1.0,
        stale_s=0.0,
        upstream_s=1.0,
        model_key="m",
        digest="d",
    )


def ready(answer: Answer, form: Form) -> Prepared:
    found = prepared(answer, form)
    assert found is not None
    return found


def replayed(answer: Answer, form: Form, model: str = MODEL) -> list[Any]:
    """Return the values of all lines, times included."""
    body = ready(answer, form).body(model, NOW_NS)
    return [json.loads(text) for text in body.splitlines()]


def test_a_stream_comes_again_line_for_line_with_a_fresh_time() -> None:
    lines = replayed(kept(*STREAM), Form.STREAM)
    assert [text.pop("created_at") for text in lines] == [STAMP] * 3
    assert lines == timeless(b"".join(STREAM))


@pytest.mark.parametrize("model", ["SMOLLM2:135M", "library/smollm2:135m", 'a"b\\'])
def test_the_asker_reads_its_own_spelling_of_the_model(model: str) -> None:
    for form in (Form.STREAM, Form.WHOLE):
        assert {text["model"] for text in replayed(kept(*STREAM), form, model)} == {model}


def test_what_a_model_says_of_times_and_models_stays_as_it_is() -> None:
    """Only the begin of a line is replaced: neither text nor a tool call's arguments."""
    text = f'{{"model":"{MODEL}","created_at":"2020"}}\n{{"model":"{MODEL}","created_at":"2020"'
    arguments = {"model": MODEL, "created_at": "2020"}
    call = {"function": {"name": "f", "arguments": arguments}}
    said = line("", message={"role": "assistant", "content": text, "tool_calls": [call]})
    [first, _] = replayed(kept(said, FINAL), Form.STREAM, "other")
    assert first["message"] == {"role": "assistant", "content": text, "tool_calls": [call]}
    assert (first["model"], first["created_at"]) == ("other", STAMP)


@pytest.mark.parametrize(
    "written",
    [
        b'{"created_at":"2020","model":"m","response":"Hi","done":false}\n',
        b'{"model": "m", "created_at": "2020", "response": "Hi", "done": false}\n',
    ],
)
def test_a_server_that_writes_otherwise_is_replayed_as_well(written: bytes) -> None:
    final = written.replace(b"false", b"true").replace(b"Hi", b"")
    [first, last] = replayed(kept(written, final), Form.STREAM, "other")
    assert first == {"model": "other", "created_at": STAMP, "response": "Hi", "done": False}
    assert last["done"] is True


def test_a_stream_made_whole_is_what_ollama_would_have_written() -> None:
    thinking = {"role": "assistant", "content": "", "thinking": "hm"}
    call = {"id": "call_1", "function": {"index": 0, "name": "f", "arguments": {"b": 1, "a": 2}}}
    answer = kept(
        line("", message=thinking),
        line("", message={**thinking, "thinking": "!"}),
        line("Hel", logprobs=[LOGPROB]),
        line("lo", logprobs=[LOGPROB]),
        line("", message={"role": "assistant", "content": "", "tool_calls": [call]}),
        FINAL,
    )
    [whole] = replayed(answer, Form.WHOLE)
    [final] = timeless(FINAL)
    assert whole == {
        **final,
        "created_at": STAMP,
        "message": {"role": "assistant", "content": "Hello", "thinking": "hm!", "tool_calls": [call]},
        "logprobs": [LOGPROB, LOGPROB],
    }
    body = ready(answer, Form.WHOLE).body(MODEL, NOW_NS)
    assert not body.endswith(b"\n")
    assert ready(answer, Form.WHOLE).content_type == "application/json; charset=utf-8"


GENERATED: dict[str, Any] = {
    "model": MODEL,
    "created_at": "2026-11-21T04:04:26Z",
    "response": "Hi there",
    "thinking": "hm",
    "done": True,
    "done_reason": "length",
    "context": [1, 2, 3],
    "total_duration": 5,
    "eval_count": 2,
    "logprobs": [LOGPROB],
}


def test_a_whole_answer_streams_as_one_content_line_and_the_final_line() -> None:
    answer = kept(json.dumps(GENERATED).encode(), is_stream=False)
    [content, final] = replayed(answer, Form.STREAM)
    head = {"model": MODEL, "created_at": STAMP}
    assert content == {
        **head,
        "response": "Hi there",
        "thinking": "hm",
        "done": False,
        "logprobs": [LOGPROB],
    }
    rest = ("done", "done_reason", "context", "total_duration", "eval_count")
    assert final == {**head, "response": "", **{name: GENERATED[name] for name in rest}}
    assert ready(answer, Form.STREAM).content_type == "application/x-ndjson"


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=6), st.booleans())
def test_whole_to_stream_to_whole_is_where_it_began(said: list[tuple[str, str]], is_chat: bool) -> None:
    def written(content: str, thinking: str, **rest: Any) -> bytes:
        thought = {"thinking": thinking} if thinking else {}
        if is_chat:
            return line("", message={"role": "assistant", "content": content, **thought}, **rest)
        value = json.loads(line("", response=content, **thought, **rest))
        del value["message"]
        return json.dumps(value).encode() + b"\n"

    stream = [written(*pair) for pair in said] + [written("", "", done=True, eval_count=3)]
    [whole] = replayed(kept(*stream), Form.WHOLE)
    again = kept(json.dumps(whole).encode(), is_stream=False)
    body = ready(again, Form.STREAM).body(MODEL, NOW_NS)
    assert body.count(b"\n") == (2 if any(content or thinking for content, thinking in said) else 1)
    assert replayed(kept(*body.splitlines(keepends=True)), Form.WHOLE) == [whole]


HEAD = (
    '"id":"chatcmpl-434","object":"chat.completion.chunk","created":1795234026,'
    '"model":"smollm2:135m","system_fingerprint":"fp_ollama"'
)
USAGE = {"prompt_tokens": 33, "completion_tokens": 4, "total_tokens": 37}
CHAT = (
    f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{"role":"assistant","content":"Hello"}},'
    f'"finish_reason":null}}]}}\n\n',
    f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{"content":"!"}},"finish_reason":null}}]}}\n\n',
    f'data: {{{HEAD},"choices":[{{"index":0,"delta":{{}},"finish_reason":"length"}}]}}\n\n',
    f'data: {{{HEAD},"choices":[],"usage":{json.dumps(USAGE)}}}\n\n',
    "data: [DONE]\n\n",
)
CHAT_BYTES = tuple(event.encode() for event in CHAT)
WHOLE_CHAT: dict[str, Any] = {
    "id": "chatcmpl-434",
    "object": "chat.completion",
    "created": 1795234026,
    "model": "smollm2:135m",
    "system_fingerprint": "fp_ollama",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "length"}
    ],
    "usage": USAGE,
}
COMPLETION_HEAD = (
    '"id":"cmpl-987","object":"text_completion","created":1795234031,"choices":[%s],'
    '"model":"smollm2:135m","system_fingerprint":"fp_ollama","usage":%s'
)
NONE = '{"prompt_tokens":0,"completion_tokens":0,"total_tokens":0}'


def completion_event(choice: str, usage: str) -> bytes:
    return b"data: {" + (COMPLETION_HEAD % (choice, usage)).encode() + b"}\n\n"


COMPLETION = (
    completion_event('{"text":"Hello","index":0,"finish_reason":null}', NONE),
    completion_event('{"text":"!","index":0,"finish_reason":null}', NONE),
    completion_event('{"text":"","index":0,"finish_reason":"length"}', NONE),
    completion_event("", json.dumps(USAGE)),
    b"data: [DONE]\n\n",
)


@pytest.mark.parametrize("events", [CHAT_BYTES, COMPLETION], ids=["chat", "completion"])
def test_events_come_again_as_they_were_or_without_their_usage(events: tuple[bytes, ...]) -> None:
    answer = kept(*events, is_openai=True)
    asked = ready(answer, Form.STREAM_WITH_USAGE).body(MODEL, NOW_NS)
    assert timeless(asked) == timeless(b"".join(events))
    bare = timeless(ready(answer, Form.STREAM).body(MODEL, NOW_NS))
    expected = [value for value in timeless(b"".join(events)) if value == "[DONE]" or value["choices"]]
    for value in expected[:-1]:
        value.pop("usage", None)
    assert bare == expected
    assert ready(answer, Form.STREAM).offsets_s == (0.0, 1.0, 2.0, 4.0)


def test_events_made_whole_are_what_ollama_would_have_written() -> None:
    body = ready(kept(*CHAT_BYTES, is_openai=True), Form.WHOLE).body("Other", NOW_NS)
    assert json.loads(body) == {**WHOLE_CHAT, "model": "Other"}
    assert body.endswith(b"\n")
    [completion] = replayed(kept(*COMPLETION, is_openai=True), Form.WHOLE)
    assert completion["choices"] == [{"text": "Hello!", "index": 0, "finish_reason": "length"}]
    assert completion["usage"] == USAGE


def whole(message: dict[str, Any], **choice: Any) -> Answer:
    value = {**WHOLE_CHAT, "choices": [{"index": 0, "message": message, "finish_reason": "stop", **choice}]}
    return kept(json.dumps(value).encode(), is_openai=True, is_stream=False)


def test_openais_whole_answer_streams_with_role_finish_usage_and_done() -> None:
    calls = [{"id": "call_1", "index": 0, "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    message = {"role": "assistant", "content": "Hi", "reasoning": "hm", "tool_calls": calls}
    answer = whole(message, logprobs={"content": [LOGPROB]})
    *events, usage, done = timeless(ready(answer, Form.STREAM_WITH_USAGE).body(MODEL, NOW_NS))
    assert [event["choices"][0]["delta"] for event in events] == [
        {"role": "assistant", "reasoning": "hm"},
        {"content": "Hi", "tool_calls": calls},
        {},
    ]
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]
    assert events[0]["choices"][0]["logprobs"] == {"content": [LOGPROB]}
    assert {event["object"] for event in (*events, usage)} == {"chat.completion.chunk"}
    assert (usage["choices"], usage["usage"], done) == ([], USAGE, "[DONE]")
    bare = timeless(ready(answer, Form.STREAM).body(MODEL, NOW_NS))
    assert bare == [*events, done]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "Hi"},
        {"role": "assistant", "content": "", "reasoning": "hm"},
        {"role": "assistant", "content": "Hi", "reasoning": "hm"},
    ],
)
def test_openais_whole_to_stream_to_whole_is_where_it_began(message: dict[str, Any]) -> None:
    body = ready(whole(message), Form.STREAM_WITH_USAGE).body(MODEL, NOW_NS)
    events = [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]
    [again] = replayed(kept(*events, is_openai=True), Form.WHOLE)
    [began] = replayed(whole(message), Form.WHOLE)
    assert again == began


def test_what_an_answer_does_not_tell_makes_it_a_miss_not_a_guess() -> None:
    no_usage = kept(*CHAT_BYTES[:3], CHAT_BYTES[4], is_openai=True)
    assert prepared(no_usage, Form.WHOLE) is None
    assert prepared(no_usage, Form.STREAM_WITH_USAGE) is None
    assert prepared(no_usage, Form.STREAM) is not None
    part = {"index": 0, "function": {"arguments": '{"a":'}}
    calls = CHAT_BYTES[1].replace(b'"content":"!"', b'"tool_calls":[' + json.dumps(part).encode() + b"]")
    assert prepared(kept(calls, *CHAT_BYTES[2:], is_openai=True), Form.WHOLE) is None


@given(st.sampled_from([CHAT_BYTES, COMPLETION]), st.lists(st.integers(0, 2_000), max_size=12))
def test_usage_is_taken_out_whatever_the_borders_of_the_chunks(
    events: tuple[bytes, ...], cuts: list[int]
) -> None:
    body = b"".join(events)
    borders = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    chunks = [body[start:end] for start, end in pairwise(borders)]
    usage = UsageFilter()
    shown = b"".join(usage.feed(chunk) for chunk in chunks) + usage.rest()
    assert timeless(shown) == timeless(ready(kept(*events, is_openai=True), Form.STREAM).body(MODEL, NOW_NS))


def test_a_damaged_or_newer_answer_is_none() -> None:
    packed = kept(*STREAM).to_bytes()
    assert Answer.from_bytes(packed) == kept(*STREAM)
    assert Answer.from_bytes(b"") is None
    assert Answer.from_bytes(packed[:-1]) is None
    assert Answer.from_bytes(packed[:20] + b"?" + packed[21:]) is None
    assert Answer.from_bytes(bytes([packed[0] + 1]) + packed[1:]) is None


def test_an_event_without_end_is_given_up_at_a_bound() -> None:
    """Not copied with every chunk, either: of 64 MiB that would take half a minute."""
    usage, chunk = UsageFilter(), b"x" * 2**16
    for _ in range(MAX_LINE_BYTES // len(chunk)):
        assert usage.feed(chunk) == b""
    with pytest.raises(BadReply, match="an event grew past"):
        usage.feed(chunk)
