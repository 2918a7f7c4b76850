"""What answers tell of the work they took, whatever the borders of their chunks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.protocol.calls import Call, call_of
from ollamalab.protocol.endpoints import ENDPOINTS
from ollamalab.protocol.upstream import Request
from ollamalab.queueing.cost import cost_tokens, expected_output_tokens, expected_prompt_tokens
from ollamalab.queueing.event_meter import meter_of
from ollamalab.queueing.history import History
from ollamalab.queueing.work import Meter, Work

FINAL = {
    "done": True,
    "done_reason": "stop",
    "context": [1, 2, 3],
    "total_duration": 9_000_000_000,
    "load_duration": 1_000_000_000,
    "prompt_eval_count": 26,
    "prompt_eval_duration": 2_000_000_000,
    "eval_count": 290,
    "eval_duration": 4_000_000_000,
}
TOLD = Work(output_tokens=290, prompt_tokens=26, slot_wait_s=2.0, busy_s=6.0, prompt_s=2.0, load_s=1.0)
LINES = b"".join(json.dumps({"response": "a \\n \n word", "done": False}).encode() + b"\n" for _ in range(5))
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
USAGE = {"prompt_tokens": 7, "completion_tokens": 12, "total_tokens": 19}


def metered(chunks: list[bytes], *, is_stream: bool = True, is_openai: bool = False) -> Meter:
    meter = Meter(is_stream=is_stream, is_openai=is_openai)
    for chunk in chunks:
        meter.feed(chunk)
    return meter


def cut(text: bytes, data: st.DataObject) -> list[bytes]:
    """The text in chunks with arbitrary borders."""
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *borders], [*borders, len(text)], strict=True)]


@given(st.data())
def test_a_streams_final_line_tells_tokens_and_the_wait_for_a_slot(data: st.DataObject) -> None:
    text = LINES + json.dumps(FINAL).encode() + b"\n"
    assert metered(cut(text, data)).whole() == TOLD


@given(st.data())
def test_a_whole_answer_tells_the_same(data: st.DataObject) -> None:
    text = json.dumps({"response": "a long text", **FINAL}).encode()
    assert metered(cut(text, data), is_stream=False).whole() == TOLD


@given(st.data())
def test_a_stream_under_v1_counts_its_events(data: st.DataObject) -> None:
    text = 5 * EVENT + b'data: {"choices":[{"index":0,"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    assert metered(cut(text, data), is_openai=True).whole() == Work(output_tokens=5)


def test_a_whole_answer_under_v1_tells_its_usage() -> None:
    body = json.dumps({"choices": [{"finish_reason": "stop"}], "usage": USAGE}).encode()
    meter = metered([body], is_stream=False, is_openai=True)
    assert meter.whole() == Work(output_tokens=12, prompt_tokens=7)


def event(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields})}\n\n".encode()


DELTA = event("content_block_delta", index=0, delta={"type": "text_delta", "text": '"usage": {}'})
MESSAGES = (
    event("message_start", message={"content": [], "usage": {"input_tokens": 3, "output_tokens": 0}})
    + event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + 9 * DELTA
    + event("content_block_stop", index=0)
    + event(
        "message_delta", delta={"stop_reason": "end_turn"}, usage={"input_tokens": 33, "output_tokens": 9}
    )
    + event("message_stop")
)
ANSWER = {
    "status": "completed",
    "output": [{"content": [{"type": "output_text", "text": 9999 * "long"}]}],
    "usage": {"input_tokens": 33, "output_tokens": 9, "output_tokens_details": {"reasoning_tokens": 0}},
    "metadata": {},
}
RESPONSE = (
    event("response.created", response={"usage": None})
    + 9 * event("response.output_text.delta", delta="word")
    + event("response.completed", response=ANSWER)
)


@pytest.mark.parametrize(("path", "text"), [("/v1/messages", MESSAGES), ("/v1/responses", RESPONSE)])
@given(data=st.data())
def test_streams_of_named_events_tell_their_usage_at_the_end(
    path: str, text: bytes, data: st.DataObject
) -> None:
    meter = meter_of(ENDPOINTS[path], is_stream=True)
    for chunk in cut(text, data):
        meter.feed(chunk)
    assert meter.whole() == Work(output_tokens=9, prompt_tokens=33)


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
def test_whole_answers_of_these_apis_tell_theirs(path: str) -> None:
    meter = meter_of(ENDPOINTS[path], is_stream=False)
    meter.feed(json.dumps(ANSWER).encode())
    assert meter.whole() == Work(output_tokens=9, prompt_tokens=33)


@pytest.mark.parametrize(
    ("text", "is_stream"),
    [
        (MESSAGES[: MESSAGES.rindex(b"event:")], True),
        (RESPONSE[: RESPONSE.rindex(b"event:")], True),
        (MESSAGES + event("error", error={"message": "no"}), True),
        (b'{"type":"error","error":{"message":"no"}}', False),
        (json.dumps({**ANSWER, "status": "failed"}).encode(), False),
        (b'{"usage":', False),
    ],
)
def test_what_these_apis_break_off_is_not_called_whole(text: bytes, is_stream: bool) -> None:
    meter = meter_of(ENDPOINTS["/v1/messages"], is_stream=is_stream)
    meter.feed(text)
    assert meter.whole() is None


def test_without_usage_their_events_are_counted_but_for_the_first() -> None:
    meter = meter_of(ENDPOINTS["/v1/messages"], is_stream=True)
    meter.feed(2 * event("message_start") + 9 * DELTA)
    assert meter.so_far() == Work(output_tokens=7)
    meter.feed(event("message_stop"))
    assert meter.whole() == Work(output_tokens=8)


def test_a_load_tells_nothing() -> None:
    line = b'{"model":"m","response":"","done":true,"done_reason":"load"}\n'
    assert metered([line]).whole() == Work()


def test_prompt_tokens_all_from_the_cache_took_no_time() -> None:
    final = {name: value for name, value in FINAL.items() if name != "prompt_eval_duration"}
    work = metered([json.dumps(final).encode()], is_stream=False).whole()
    assert work is not None
    assert (work.busy_s, work.slot_wait_s) == (4.0, 4.0)


@pytest.mark.parametrize(
    ("text", "is_stream", "is_openai"),
    [
        (b"", True, False),
        (LINES, True, False),
        (LINES + b'{"error":"the engine is gone"}\n', True, False),
        (LINES + b'{"done":true', True, False),
        (LINES + b'{"done":true,"eval_count":"many"}\n', True, False),
        (LINES + b'["done"]\n', True, False),
        (b"<html>", False, False),
        (b'{"response":"half"', False, False),
        (b'{"response":"all","done":false}', False, False),
        (b"\xff\xfe", False, False),
        (3 * EVENT, True, True),
        (b'{"error":{"message":"no"}}', False, True),
        (b"[]", False, True),
    ],
)
def test_what_is_not_whole_is_not_called_so(text: bytes, is_stream: bool, is_openai: bool) -> None:
    assert metered([text], is_stream=is_stream, is_openai=is_openai).whole() is None


def test_of_what_broke_off_the_lines_are_counted() -> None:
    assert metered([LINES]).so_far() == Work(output_tokens=4)
    assert metered([LINES], is_stream=False).so_far() == Work()
    assert metered([]).so_far() == Work(output_tokens=0)


def asked(path: str = "/api/chat", **fields: Any) -> Call:
    return call_of(Request(method="POST", path=path, body=json.dumps({"model": "m", **fields}).encode()))


def test_a_prompt_costs_by_its_text_and_images_nothing() -> None:
    message = {"role": "user", "content": 20 * "word", "images": [1000 * "A"]}
    assert expected_prompt_tokens(asked(messages=[message, message])) == 40
    assert (
        expected_prompt_tokens(asked("/api/generate", prompt="12345678", system="1234", suffix="1234")) == 4
    )
    parts = [{"type": "text", "text": 8 * "word"}, {"type": "image_url", "image_url": {"url": "data:"}}]
    chat = asked("/v1/chat/completions", messages=[{"role": "user", "content": parts}])
    assert expected_prompt_tokens(chat) == 8
    response = asked("/v1/responses", instructions="1234", input=[{"role": "user", "content": parts}])
    assert expected_prompt_tokens(response) == 9
    assert expected_prompt_tokens(asked("/v1/responses", input="12345678")) == 2
    message = asked("/v1/messages", system=parts, messages=[{"role": "user", "content": "1234"}])
    assert expected_prompt_tokens(message) == 9
    assert expected_prompt_tokens(asked(messages=[None, 7, {"content": [None, {"text": 3}]}])) == 0


def test_an_answer_costs_what_is_usual_or_the_limit_if_that_is_less() -> None:
    open_ended, short = asked(), asked(options={"num_predict": 5})
    assert [
        expected_output_tokens(one, usual) for one in (open_ended, short) for usual in (None, 3, 200)
    ] == [
        *(128, 3, 200),
        *(5, 3, 5),
    ]


def test_nothing_is_served_for_free() -> None:
    assert cost_tokens(0, 0) == 1
    assert cost_tokens(10, 20) == 25


def test_a_lanes_usual_answer_follows_what_came_and_lanes_are_forgotten() -> None:
    history = History()
    assert (history.service_s("m"), history.output_tokens("m")) == (None, None)
    history.note("m", service_s=2.0, output_tokens=None)
    assert (history.service_s("m"), history.output_tokens("m")) == (2.0, None)
    for _ in range(100):
        history.note("m", service_s=4.0, output_tokens=50)
    assert history.service_s("m") == pytest.approx(4.0, rel=0.01)
    assert history.output_tokens("m") == 50
    for number in range(256):
        history.note(f"model {number}", service_s=1.0, output_tokens=1)
    assert history.service_s("m") is None
