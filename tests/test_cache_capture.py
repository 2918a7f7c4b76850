"""What counts as a complete answer."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from held_upstream import FINAL, STREAM, line
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.cache.capture import complete_pieces, piece_offsets_s

DELTA = {"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": None}
END = {"index": 0, "delta": {}, "finish_reason": "stop"}


def event(*choices: dict[str, Any], **fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c-1", "choices": choices, **fields}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


def test_a_stream_that_says_done_is_complete_line_by_line() -> None:
    assert complete_pieces(b"".join(STREAM), is_stream=True, is_openai=False) == STREAM


def test_a_final_line_without_newline_is_kept_as_it_came() -> None:
    pieces = complete_pieces(line("x") + FINAL.rstrip(), is_stream=True, is_openai=False)
    assert pieces == (line("x"), FINAL.rstrip())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        line("x"),
        line("x") + line("y"),
        line("x") + b'{"error":"model runner has unexpectedly stopped"}\n',
        line("x") + b'{"error":"too late","done":true}\n',
        line("x") + b"<html>502 Bad Gateway</html>\n" + FINAL,
        line("x") + FINAL[:-10],
        line("x") + b"\xff\xfe\n" + FINAL,
        line("x") + b"[]\n" + FINAL,
        line("x") + b"\n" + FINAL,
        FINAL + line("x"),
        line("x") + FINAL + FINAL,
        line("", done=True, done_reason="stop"),
        line("", done=True, done_reason="load", eval_count=1),
        b'{"model":"m","done":"true","response":"x"}\n',
        b'{"model":"m","done":true,"response":"x","message":null}\n',
        line("x") + line("y", done=True, logprobs="none"),
    ],
    ids=[
        "nothing",
        "no end",
        "still no end",
        "error line",
        "error with done",
        "garbage",
        "cut",
        "no Unicode",
        "no object",
        "blank line",
        "goes on after its end",
        "ends twice",
        "says nothing and counts nothing",
        "loads only",
        "wrong type",
        "no message",
        "logprobs that are no list",
    ],
)
def test_any_other_end_of_a_stream_is_none(body: bytes) -> None:
    assert complete_pieces(body, is_stream=True, is_openai=False) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (line("Hi", done=True, done_reason="stop"), True),
        (line("", done=True, message={"role": "assistant", "content": "", "thinking": "hm"}), True),
        (line("", done=True, message={"role": "assistant", "content": "", "tool_calls": [{}]}), True),
        (b'{"model":"m","response":"Hi","done":true}', True),
        # Ollama gives up on a model that repeats itself: 200, and done is false.
        (line("aaa", done=False), False),
        (line("Hi", done=True, done_reason="unload"), False),
        # A model that ends at once has counted its end.
        (line("", done=True, done_reason="stop", eval_count=1), True),
        (line("", done=True, done_reason="stop"), False),
        (b'{"error":"x"}', False),
        (b"Hi", False),
    ],
)
def test_a_whole_answer_is_complete_if_it_says_done(body: bytes, expected: bool) -> None:
    assert (complete_pieces(body, is_stream=False, is_openai=False) is not None) is expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (event(DELTA) + event(END) + DONE, True),
        (event(DELTA) + event(END) + event(usage={"total_tokens": 3}) + DONE, True),
        (event(DELTA) + event(END), False),  # no [DONE]: how Ollama ends after its engine died
        (event(DELTA) + DONE, False),
        (event(END) + DONE, False),
        (event(END) + event(usage={"completion_tokens": 0}) + DONE, False),
        (event(END) + event(usage={"completion_tokens": 1}) + DONE, True),
        (event(DELTA) + event(END, error={"message": "x"}) + DONE, False),
        (event(DELTA) + b'data: {"error":{"message":"x"}}\n\n' + event(END) + DONE, False),
        (event(DELTA) + event(END) + DONE + event(DELTA), False),
        (b": ping\n\n" + event(DELTA) + event(END) + DONE, False),
        (event(DELTA).replace(b"\n\n", b"\r\n\r\n") + event(END) + DONE, False),
        (event({"text": "", "index": 0, "finish_reason": "load"}) + DONE, False),
        (event({"text": "x", "index": 0, "finish_reason": "length"}) + DONE, True),
        (b"", False),
    ],
)
def test_events_are_complete_with_their_finish_and_done(body: bytes, expected: bool) -> None:
    assert (complete_pieces(body, is_stream=True, is_openai=True) is not None) is expected


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"message": {"content": "Hi"}, "finish_reason": "stop"}, True),
        ({"message": {"content": None, "tool_calls": [{}]}, "finish_reason": "tool_calls"}, True),
        ({"text": "Hi", "finish_reason": "length"}, True),
        # Ollama's answer for a model that repeats itself.
        ({"message": {"content": "aaa"}, "finish_reason": None}, False),
        ({"message": {"content": ""}, "finish_reason": "stop"}, False),
    ],
)
def test_openais_whole_answer_is_complete_with_its_finish(choice: dict[str, Any], expected: bool) -> None:
    body = json.dumps({"choices": [choice]}).encode() + b"\n"
    assert (complete_pieces(body, is_stream=False, is_openai=True) is not None) is expected


@given(st.lists(st.integers(1, 200), min_size=1, max_size=8))
def test_a_piece_was_there_when_its_last_byte_was(cuts: list[int]) -> None:
    """Whatever the borders of the chunks."""
    body = b"".join(STREAM)
    borders = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    chunks = [body[start:end] for start, end in pairwise(borders)]
    offsets = [float(number) for number in range(len(chunks))]
    found = piece_offsets_s(STREAM, chunks, offsets)
    end = 0
    for piece, offset_s in zip(STREAM, found, strict=True):
        end += len(piece)
        assert borders[int(offset_s)] < end <= borders[int(offset_s) + 1]
