"""Which lines of a stream leave together."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ollamalab.errors import OutOfRange, SettingsError

_WINDOW = re.compile(r"(\d+(?:\.\d+)?)ms")
_MAX_LINES = 10_000
_MAX_WINDOW_MS = 60_000


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """How the lines of a stream are grouped: by number, by time, by load, or not at all.

    At most one of the three ways is chosen; none of them leaves every chunk as it comes.
    """

    lines: int = 1  #: so many lines leave together; 1 = does not count them
    window_s: float = 0.0  #: at most one group in so many seconds; 0 = no matter when
    is_adaptive: bool = False  #: lines gather only while the event loop or the client is behind
    max_bytes: int = 64 * 1024  #: of a group; it leaves as soon as it has as many

    def __post_init__(self) -> None:
        if not 1 <= self.lines <= _MAX_LINES:
            raise OutOfRange("lines", f"must be 1 to {_MAX_LINES}, got {self.lines!r}")
        if not 0 <= self.window_s <= _MAX_WINDOW_MS / 1000:
            raise OutOfRange("window_s", f"must be 0 to {_MAX_WINDOW_MS // 1000}, got {self.window_s!r}")
        if self.max_bytes < 1:
            raise OutOfRange("max_bytes", f"must be 1 or more, got {self.max_bytes!r}")
        if (self.lines > 1) + (self.window_s > 0) + self.is_adaptive > 1:
            raise SettingsError("choose one of lines, window_s and is_adaptive")

    @property
    def is_off(self) -> bool:
        """Whether nothing is grouped."""
        return self.lines == 1 and not self.window_s and not self.is_adaptive

    @property
    def text(self) -> str:
        """The text that ``parse`` reads back."""
        if self.is_adaptive:
            return "adaptive"
        if self.window_s:
            return f"{self.window_s * 1000:g}ms"
        return str(self.lines) if self.lines > 1 else "off"

    @classmethod
    def parse(cls, text: str) -> BatchSettings:
        """Return the settings of ``off``, ``10`` (lines), ``20ms`` (a time window) or ``adaptive``.

        Raises:
            SettingsError: Another text, or a number out of range.
        """
        cleaned = text.strip().lower()
        if cleaned == "off":
            return cls()
        if cleaned == "adaptive":
            return cls(is_adaptive=True)
        if cleaned.isascii() and cleaned.isdigit() and 1 <= int(cleaned) <= _MAX_LINES:
            return cls(lines=int(cleaned))
        window = _WINDOW.fullmatch(cleaned)
        if window and 0 < float(window[1]) <= _MAX_WINDOW_MS:
            return cls(window_s=float(window[1]) / 1000)
        raise OutOfRange(
            "batch",
            f"must be off, adaptive, a number of lines from 1 to {_MAX_LINES} such as 10, "
            f"or a time up to {_MAX_WINDOW_MS}ms such as 20ms; got {text!r}",
        )
