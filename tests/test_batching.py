"""StreamBatcher: which lines leave together, and that nothing else about a stream changes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.batching import GATHERED_LINES, MAX_REST_S, MIN_REST_S, BatchTally, StreamBatcher
from ollamalab.errors import SettingsError
from ollamalab.settings import BatchSettings

FINAL = b'{"model":"m","done":true,"done_reason":"stop","eval_count":9}\n'


def line(number: int) -> bytes:
    return b'{"model":"m","response":"%d","done":false}\n' % number


def event(number: int) -> bytes:
    return b'data: {"choices":[{"delta":{"content":"%d"}}]}\n\n' % number


def drive(batcher: StreamBatcher, chunks: list[bytes], gap_s: float = 0.001) -> list[bytes]:
    """Feed chunks at a steady pace, flush when due and at the end; return the frames."""
    frames, now_s = [], 0.0
    for chunk in chunks:
        if batcher.due_s is not None and batcher.due_s <= now_s:
            frames.append(batcher.flush())
        frames.append(batcher.feed(chunk, now_s))
        now_s += gap_s
    frames.append(batcher.flush())
    return [frame for frame in frames if frame]


class TestParse:
    @pytest.mark.parametrize(
        ("text", "settings"),
        [
            ("off", BatchSettings()),
            ("1", BatchSettings()),
            ("10", BatchSettings(lines=10)),
            ("20ms", BatchSettings(window_s=0.02)),
            ("0.5ms", BatchSettings(window_s=0.0005)),
            (" Adaptive ", BatchSettings(is_adaptive=True)),
        ],
    )
    def test_the_command_lines_text_is_read(self, text: str, settings: BatchSettings) -> None:
        assert BatchSettings.parse(text) == settings
        assert BatchSettings.parse(settings.text) == settings

    @pytest.mark.parametrize(
        "text", ["", "0", "-1", "1.5", "0ms", "20s", "20 ms", "60001ms", "10001", "auto", "²", "nanms"]
    )
    def test_other_text_is_refused_by_name(self, text: str) -> None:
        with pytest.raises(SettingsError) as caught:
            BatchSettings.parse(text)
        assert repr(text) in str(caught.value)
        assert "20ms" in str(caught.value)

    def test_only_one_way_can_be_chosen(self) -> None:
        with pytest.raises(SettingsError, match="choose one"):
            BatchSettings(lines=5, is_adaptive=True)

    def test_off_is_off(self) -> None:
        assert BatchSettings.parse("off").is_off
        assert not any(BatchSettings.parse(text).is_off for text in ("2", "1ms", "adaptive"))


class TestByNumber:
    def test_the_first_line_leaves_alone_and_the_rest_in_groups(self) -> None:
        lines = [line(number) for number in range(24)] + [FINAL]
        frames = drive(StreamBatcher(BatchSettings(lines=10)), lines)
        assert [frame.count(b"\n") for frame in frames] == [1, 10, 10, 4]

    def test_what_arrived_together_is_not_parted(self) -> None:
        batcher = StreamBatcher(BatchSettings(lines=3))
        assert batcher.feed(line(0), 0.0)
        five = b"".join(map(line, range(5)))
        assert batcher.feed(five, 0.0) == five

    def test_no_moment_is_due(self) -> None:
        batcher = StreamBatcher(BatchSettings(lines=3))
        batcher.feed(line(0), 0.0)
        batcher.feed(line(1), 0.0)
        assert batcher.due_s is None

    def test_events_are_counted_not_newlines(self) -> None:
        batcher = StreamBatcher(BatchSettings(lines=3), is_openai=True)
        frames = drive(batcher, [event(number) for number in range(8)] + [b"data: [DONE]\n\n"])
        assert [frame.count(b"\n\n") for frame in frames] == [1, 3, 3, 2]

    @pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n"])
    def test_an_event_may_end_across_the_border_of_chunks(self, end: bytes) -> None:
        for cut in range(1, len(end)):
            batcher = StreamBatcher(BatchSettings(lines=2), is_openai=True)
            drive(batcher, [b'data: {"a":1}' + end[:cut], end[cut:], b'data: {"a":2}' + end])
            assert batcher.tally.lines == 2


class TestByTime:
    def test_at_most_one_frame_in_each_window(self) -> None:
        batcher = StreamBatcher(BatchSettings(window_s=0.010))
        frames = drive(batcher, [line(number) for number in range(30)], gap_s=0.001)
        assert [frame.count(b"\n") for frame in frames] == [1, 9, 10, 10]

    def test_a_stream_slower_than_the_window_is_not_delayed(self) -> None:
        batcher = StreamBatcher(BatchSettings(window_s=0.010))
        assert [batcher.feed(line(number), number * 0.011) for number in range(9)] == list(
            map(line, range(9))
        )

    def test_what_is_held_is_due_at_the_windows_end(self) -> None:
        batcher = StreamBatcher(BatchSettings(window_s=0.010))
        batcher.feed(line(0), 5.0)
        assert batcher.due_s is None
        assert batcher.feed(line(1), 5.004) == b""
        assert batcher.due_s == pytest.approx(5.010)
        assert batcher.flush() == line(1)
        assert batcher.due_s is None

    def test_the_next_window_begins_when_a_due_frame_left(self) -> None:
        batcher = StreamBatcher(BatchSettings(window_s=0.010))
        batcher.feed(line(0), 0.0)
        batcher.feed(line(1), 0.004)
        batcher.flush()  # at 0.010
        assert batcher.feed(line(2), 0.011) == b""
        assert batcher.due_s == pytest.approx(0.020)


class TestAdaptive:
    ADAPTIVE = BatchSettings(is_adaptive=True)

    def test_nothing_is_ever_held(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        chunk = b"".join(map(line, range(50)))
        assert batcher.feed(chunk, 0.0, backlog_bytes=10**6) == chunk
        assert batcher.due_s is None
        assert batcher.flush() == b""

    def test_an_idle_loop_lets_each_line_pass_without_a_rest(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        for number in range(50):
            assert batcher.feed(line(number), number * 0.02) == line(number)
            assert batcher.rest_until_s is None
        assert (batcher.tally.lines, batcher.tally.frames) == (50, 50)

    def test_two_lines_in_a_chunk_show_a_loop_behind_and_the_rest_grows_to_its_bound(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        batcher.feed(line(0), 0.0)
        now_s, rests = 1.0, []
        for _ in range(7):
            batcher.feed(line(0) + line(1), now_s)
            assert batcher.rest_until_s is not None
            rests.append(batcher.rest_until_s - now_s)
            now_s = batcher.rest_until_s + 0.1
        assert rests == pytest.approx([0.001, 0.002, 0.004, 0.008, 0.016, 0.016, 0.016])
        assert (MIN_REST_S, MAX_REST_S) == (0.001, 0.016)

    def test_a_client_behind_is_enough(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        batcher.feed(line(0), 0.0)
        assert batcher.rest_until_s is None
        batcher.feed(line(1), 0.1, backlog_bytes=1)
        assert batcher.rest_until_s == pytest.approx(0.1 + MIN_REST_S)

    def test_a_rest_that_brought_one_line_halves_the_next_down_to_none(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        for _ in range(9):
            batcher.feed(line(0) * 5, 0.0)
        rests = []
        while batcher.rest_until_s is not None:
            rests.append(batcher.rest_until_s)
            batcher.feed(line(0), 0.0)
        assert rests == pytest.approx([0.016, 0.008, 0.004, 0.002, 0.001])

    def test_a_pair_of_lines_alone_costs_one_rest_of_a_millisecond(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        batcher.feed(line(0), 0.0)
        batcher.feed(line(1) + line(2), 1.0)
        assert batcher.rest_until_s == pytest.approx(1.0 + MIN_REST_S)
        batcher.feed(line(3), 1.5)
        assert batcher.rest_until_s is None

    def test_chunks_that_gather_by_being_late_need_no_rest(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        for number in range(9):
            batcher.feed(line(0) * GATHERED_LINES, number * 0.1)
            assert batcher.rest_until_s is None
        batcher.feed(line(0) * (GATHERED_LINES - 1), 1.0)
        assert batcher.rest_until_s == pytest.approx(1.0 + MIN_REST_S)
        batcher.feed(line(0) * 40, 1.1)  # gathered by the rest: it was worth it
        assert batcher.rest_until_s == pytest.approx(1.1 + 2 * MIN_REST_S)

    def test_a_client_behind_has_its_rest_however_much_has_gathered(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        batcher.feed(line(0) * GATHERED_LINES, 1.0, backlog_bytes=1)
        assert batcher.rest_until_s == pytest.approx(1.0 + MIN_REST_S)

    def test_there_is_no_rest_after_the_final_line(self) -> None:
        batcher = StreamBatcher(self.ADAPTIVE)
        batcher.feed(line(0) * 5, 0.0)
        assert batcher.rest_until_s is not None
        batcher.feed(line(1) * 5 + FINAL, 0.01)
        assert batcher.rest_until_s is None


MODES = st.one_of(
    st.integers(1, 20).map(lambda lines: BatchSettings(lines=lines, max_bytes=200)),
    st.floats(0.001, 0.05).map(lambda window_s: BatchSettings(window_s=window_s, max_bytes=200)),
    st.just(BatchSettings(is_adaptive=True)),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bool, list[bytes], list[float]]:
    """Any stream of either form, cut anywhere, with any gaps between its chunks."""
    is_openai = draw(st.booleans())
    texts = draw(st.lists(st.text(max_size=30), max_size=20))
    if is_openai:
        whole = b"".join(b"data: %s\n\n" % json.dumps({"content": text}).encode() for text in texts)
        whole += b"data: [DONE]\n\n"
    else:
        whole = b"".join(
            b"%s\n" % json.dumps({"response": text, "done": False}, ensure_ascii=False).encode()
            for text in texts
        )
        whole += b'{"done":true}\n'
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=30)))
    chunks = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    gaps = draw(st.lists(st.floats(0, 0.1), min_size=len(chunks), max_size=len(chunks)))
    return is_openai, chunks, gaps


class TestAnyStream:
    @given(MODES, streams())
    def test_bytes_are_those_of_the_unbatched_stream(
        self, settings: BatchSettings, stream: tuple[bool, list[bytes], list[float]]
    ) -> None:
        is_openai, chunks, gaps = stream
        batcher = StreamBatcher(settings, is_openai=is_openai)
        end = b"\n\n" if is_openai else b"\n"
        came, sent, now_s = b"", b"", 0.0
        for chunk, gap_s in zip(chunks, gaps, strict=True):
            now_s += gap_s
            if batcher.due_s is not None and batcher.due_s <= now_s:
                sent += batcher.flush()
            is_first = end not in came
            came += chunk
            sent += batcher.feed(chunk, now_s)
            assert came.startswith(sent)
            assert sent == came or not is_first, "the first line is never held"
            assert len(came) - len(sent) < settings.max_bytes
        assert sent == came == b"".join(chunks), "the final line leaves at once"
        assert batcher.flush() == b""
        assert (batcher.tally.lines, batcher.tally.bytes) == (sent.count(end), len(sent))

    @given(MODES, st.integers(0, 40), st.integers(0, 40))
    def test_an_error_line_leaves_at_once_wherever_it_is_cut(
        self, settings: BatchSettings, lines: int, cut: int
    ) -> None:
        error = b'{"error":"an error was encountered while running the model"}\n'
        batcher = StreamBatcher(settings)
        stream = [line(number) for number in range(lines)] + [error[:cut], error[cut:]]
        sent = b"".join(batcher.feed(chunk, 0.0) for chunk in stream if chunk)
        assert sent == b"".join(stream)


def test_several_streams_count_together() -> None:
    tally = BatchTally()
    for _ in range(3):
        drive(StreamBatcher(BatchSettings(lines=4), tally=tally), [line(0), line(1), FINAL])
    assert tally == BatchTally(lines=9, frames=6, bytes=3 * len(line(0) + line(1) + FINAL))
