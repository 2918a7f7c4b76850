"""Which lines of a stream leave together. Pure.

A *line* is what a client acts on: a line of NDJSON, or an event of SSE, which ends with a blank line.
A *frame* is what leaves in one write. Each costs a write here, a read at the client and a packet between
them, and most of a stream's lines are small; so frames of several lines are cheaper, and their earlier
lines later. Three ways to choose:

- *lines*: a frame leaves when it has so many.
- *window*: at most one frame in so many seconds. A line that comes after a quieter time leaves at once,
  so this never delays a stream that is slower than its window.
- *adaptive*: every chunk leaves at once; but when it turns out that the event loop or the client is
  behind, the stream is left alone for a moment after each frame, in which its connection gathers lines
  for next to nothing. See ``_rest_after``.

Always: bytes and their order stay, the first line is never held, the final line and errors leave at once
with everything before them, and a frame is bounded in bytes. Chunks may begin and end anywhere; what is
behind the last whole line leaves with it.
"""

from __future__ import annotations

from dataclasses import dataclass

from ollamalab.settings.batching import BatchSettings

#: First rest of a stream that is behind; event loops do not wake more exactly than this.
MIN_REST_S = 0.001

#: Longest rest: at 60 frames a second text still flows.
MAX_REST_S = 0.016

#: So many lines in a chunk that no rest preceded: by being late alone, enough of them gather.
GATHERED_LINES = 8

#: What the last line of a stream contains. Inside a JSON text the quotes would be escaped, and where
#: one appears by chance, in a tool's arguments say, lines merely leave sooner.
_ENDS = (b'"done":true', b'"done": true', b'{"error"')
_OPENAI_ENDS = (b"data: [DONE]", b"data:[DONE]", b'{"error"')

#: Bytes of the last chunk to look at again: a mark may lie across the border.
_EDGE_BYTES = max(map(len, (*_ENDS, *_OPENAI_ENDS))) - 1


@dataclass(slots=True)
class BatchTally:
    """What went through one or more batchers."""

    lines: int = 0
    frames: int = 0
    bytes: int = 0


class StreamBatcher:
    """Groups the lines of one stream.

    Whoever drives it writes what ``feed`` returns, calls ``flush`` at the moment ``due_s``, should it
    come before the next chunk, and once more when the chunks end or break off; and takes the next chunk no
    sooner than ``rest_until_s``, unless it is the last.

    Args:
        settings: How to group.
        is_openai: Whether the stream is SSE instead of NDJSON.
        tally: Counts what passes; several streams may share one.
    """

    __slots__ = (
        "_edge",
        "_ends",
        "_has_line",
        "_held",
        "_held_bytes",
        "_held_lines",
        "_is_ending",
        "_is_openai",
        "_rest_s",
        "_settings",
        "_window_end_s",
        "rest_until_s",
        "tally",
    )

    def __init__(
        self, settings: BatchSettings, *, is_openai: bool = False, tally: BatchTally | None = None
    ) -> None:
        self.tally = BatchTally() if tally is None else tally
        self.rest_until_s: float | None = None  #: do not take the next chunk sooner; None = take it
        self._settings = settings
        self._ends = _OPENAI_ENDS if is_openai else _ENDS
        self._is_openai = is_openai
        self._edge = b""
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._held_lines = 0
        self._has_line = False
        self._is_ending = False
        self._window_end_s = float("-inf")
        self._rest_s = 0.0

    @property
    def due_s(self) -> float | None:
        """Moment at which what is held must leave; None if nothing is held, or only by number."""
        return self._window_end_s if self._held and self._settings.window_s else None

    def feed(self, chunk: bytes, now_s: float, *, backlog_bytes: int = 0) -> bytes:
        """Take a chunk; return what is to be sent now, maybe nothing.

        Args:
            chunk: The next bytes of the stream.
            now_s: When they were taken.
            backlog_bytes: Sent earlier and not yet taken by the client.
        """
        lines = self._look_at(chunk)
        self.tally.lines += lines
        self.tally.bytes += len(chunk)
        settings = self._settings
        if settings.is_adaptive:
            self._rest_s = self._rest_after(lines, backlog_bytes)
            self.rest_until_s = now_s + self._rest_s if self._rest_s and not self._is_ending else None
            self.tally.frames += 1
            return chunk
        is_first = not self._has_line
        self._has_line = self._has_line or lines > 0
        self._held.append(chunk)
        self._held_bytes += len(chunk)
        self._held_lines += lines
        if not (is_first or self._is_ending or self._is_full(now_s)):
            return b""
        self._window_end_s = now_s
        return self.flush()

    def flush(self) -> bytes:
        """Return what is held, maybe nothing; to be called at ``due_s`` and at the end."""
        if not self._held:
            return b""
        frame = self._held[0] if len(self._held) == 1 else b"".join(self._held)
        self._held.clear()
        self._held_bytes = self._held_lines = 0
        self._window_end_s += self._settings.window_s
        self.tally.frames += 1
        return frame

    def _is_full(self, now_s: float) -> bool:
        settings = self._settings
        if settings.is_off or self._held_bytes >= settings.max_bytes:
            return True
        if settings.window_s:
            return now_s >= self._window_end_s
        return self._held_lines >= settings.lines

    def _look_at(self, chunk: bytes) -> int:
        """Return how many lines end in a chunk; note whether the stream's end is in sight."""
        edge = self._edge
        text = edge + chunk
        self._edge = text[-_EDGE_BYTES:]
        if not self._is_ending:
            last = text[text.rfind(b"\n", 0, len(text.rstrip(b"\r\n"))) + 1 :]  # the end is always last
            first, second, third = self._ends
            self._is_ending = first in last or second in last or third in last
        if not self._is_openai:
            return chunk.count(b"\n")
        start = max(0, len(edge) - 1)
        return text.count(b"\n\n", start) + text.count(b"\n\r\n", max(0, start - 1))

    def _rest_after(self, lines: int, backlog_bytes: int) -> float:
        """Return how long to leave the stream alone after a chunk, in seconds.

        Two lines in a chunk mean that the second came before the first was taken: the loop is behind this
        stream, or the stream ahead of every reader. Then it rests; a rest in which again two lines or more
        came was worth it, and the next is twice as long; one that brought a single line halves the next,
        down to none. So a stream of 50 tokens/s rests only while the loop needs more than 20 ms to come
        round to it, and stops within five lines of its recovery.

        A chunk of ``GATHERED_LINES`` or more that came without a rest needs none: by the time the loop comes
        round, enough has gathered, and a rest would cost a timer and two system calls to gather no more.

        Neither the loop's lateness nor its share of processor time would tell as much: a millisecond late is
        nothing to that stream, and thirty lines of a fast one; and where others use the processor too, a
        loop is behind without being busy.
        """
        if lines >= GATHERED_LINES and not self._rest_s and not backlog_bytes:
            return 0.0
        if lines > 1 or backlog_bytes:
            return min(max(2 * self._rest_s, MIN_REST_S), MAX_REST_S)
        return self._rest_s / 2 if self._rest_s > MIN_REST_S else 0.0
