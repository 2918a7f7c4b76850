"""NDJSON is cut into the same lines whatever the borders of the chunks."""

import itertools
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.errors import BadReply
from ollamalab.protocol.lines import (
    MAX_LINE_BYTES,
    LineSplitter,
    StreamTail,
    content_of,
    encode_line,
    timings_of,
)

values = st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.none(), max_size=3)


@given(st.lists(values, max_size=8), st.randoms(use_true_random=False))
def test_lines_survive_any_cut(objects: list[dict[str, object]], random: object) -> None:
    stream = b"".join(encode_line(value) for value in objects)
    splitter, lines, start = LineSplitter(), [], 0
    while start < len(stream):
        end = start + random.randint(1, 7)  # type: ignore[attr-defined]
        lines += splitter.feed(stream[start:end])
        start = end
    assert [json.loads(line) for line in lines] == objects
    assert splitter.rest() == b""


def test_a_cut_stream_leaves_its_rest() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b'{"a":1}\n\n{"b"') == [b'{"a":1}']
    assert splitter.rest() == b'{"b"'


def test_a_line_without_end_is_refused_at_its_limit() -> None:
    splitter = LineSplitter(max_line_bytes=10)
    with pytest.raises(BadReply, match="10 bytes"):
        splitter.feed(b"x" * 11)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ({"message": {"role": "assistant", "content": "hi"}}, "hi"),
        ({"message": {"role": "assistant", "content": "", "thinking": "hm"}}, "hm"),
        ({"response": "hi"}, "hi"),
        ({"response": "", "thinking": "hm"}, "hm"),
        ({"message": {"role": "assistant", "content": ""}, "done": True}, ""),
        ({"error": "x"}, ""),
    ],
)
def test_content_is_found_in_both_families(line: dict[str, object], text: str) -> None:
    assert content_of(line) == text


def test_metrics_left_out_stay_absent() -> None:
    timings = timings_of({"total_duration": 1_500_000_000, "eval_count": 7})
    assert timings.total_s == 1.5
    assert timings.eval_tokens == 7
    assert timings.load_s is None
    assert timings.prompt_tokens is None


NDJSON = b'{"response":"a","done":false}\n{"response":"","done":true,"eval_count":1}\n'
SSE = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\ndata: [DONE]\n\n'


MESSAGES = b"".join(
    b'event: %b\ndata: {"type":"%b"%b}\n\n' % (name, name, rest)
    for name, rest in (
        (b"message_start", b',"message":{"content":[]}'),
        (b"content_block_delta", b',"delta":{"type":"text_delta","text":"message_stop"}'),
        (b"message_stop", b""),
    )
)
RESPONSE = (
    b'event: response.created\ndata: {"response":{"error":null},"type":"response.created"}\n\n'
    b'event: response.completed\ndata: {"response":{"error":null},"type":"response.completed"}\n\n'
)


@pytest.mark.parametrize(
    ("stream", "is_openai"), [(NDJSON, False), (SSE, True), (MESSAGES, True), (RESPONSE, True)]
)
def test_a_stream_is_whole_at_its_end_only(stream: bytes, is_openai: bool):
    """Cut anywhere and fed in any two pieces: whole means the last line is the final one.

    What is put behind an event without its empty line would be a part of it.
    """
    line_end = b"\n\n" if is_openai else b"\n"
    for end in range(len(stream) + 1):
        for border in range(end + 1):
            tail = StreamTail(is_openai=is_openai)
            tail.feed(stream[:border])
            tail.feed(stream[border:end])
            is_complete = end >= len(stream.rstrip(b"\n"))
            assert tail.is_whole is is_complete, (end, border)
            assert tail.is_mid_line is (end > 0 and not stream[:end].endswith(line_end)), (end, border)


@given(st.lists(st.integers(0, len(NDJSON)), max_size=8))
def test_the_final_line_is_found_whatever_the_borders_of_chunks(cuts: list[int]):
    tail = StreamTail(is_openai=False)
    borders = [0, *sorted(cuts), len(NDJSON)]
    for start, end in itertools.pairwise(borders):
        tail.feed(NDJSON[start:end])
    final = tail.final()
    assert final is not None
    assert final["eval_count"] == 1


@pytest.mark.parametrize(
    "last", [b'{"error":"done"}\n', b'"done"\n', b'{"done":false}\n', b'{"done":true', b"\xff\n", b""]
)
def test_what_only_looks_like_an_end_is_none(last: bytes):
    tail = StreamTail(is_openai=False)
    tail.feed(NDJSON[: NDJSON.index(b"\n") + 1])
    tail.feed(last)
    assert not tail.is_whole


def test_a_line_without_end_takes_bounded_memory_and_is_no_end_of_a_stream():
    """In place: copied with every chunk, 64 MiB would take half a minute."""
    tail = StreamTail(is_openai=False)
    chunk, chunks = b'{"done":true}' + b" " * 2**20, 2 * MAX_LINE_BYTES // 2**20
    tracemalloc.start()
    try:
        for _ in range(chunks):
            tail.feed(chunk)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1.5 * MAX_LINE_BYTES
    assert tail.is_mid_line
    assert not tail.is_whole


@pytest.mark.parametrize(
    ("line", "is_openai"),
    [
        (b'{"error":"x"}\n', False),
        (b'data: {"error":{}}\n\n', True),
        (b'event: error\ndata: {"type":"error","error":{"type":"api_error","message":"x"}}\n\n', True),
        (b'event: error\ndata: {"type":"error","code":"x"}\n\n', True),
        (b'event: x\ndata: {"type":"response.failed","response":{"error":{"code":"x"}}}\n\n', True),
    ],
)
def test_a_stream_that_ends_with_an_error_says_so(line: bytes, is_openai: bool):
    tail = StreamTail(is_openai=is_openai)
    tail.feed(b'{"response":"an \\"error\\""}\n')
    assert not tail.is_error
    tail.feed(line)
    assert (tail.is_error, tail.is_whole) == (True, False)
