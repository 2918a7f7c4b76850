"""Durations and moments as Ollama writes them: Go durations, nanoseconds, RFC 3339."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from functools import lru_cache

from ollamalab.errors import SettingsError

NS_PER_S = 1_000_000_000

#: Go's largest duration, about 292 years; what Ollama means by "for ever".
FOREVER_S = (2**63 - 1) / NS_PER_S

_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+\.?\d*|\.\d+)([^\d.]*)")


def parse_duration_s(text: str) -> float:
    """Return the seconds of a Go duration such as "1h30m", "-1m", "1.5s" or "0".

    Raises:
        SettingsError: Not a Go duration, in Go's words; a number without unit (other than "0") is refused.
    """
    sign = -1.0 if text.startswith("-") else 1.0
    body = text[1:] if text[:1] in ("-", "+") else text
    if body == "0":
        return 0.0
    total, end = 0.0, 0
    for part in _PART.finditer(body):
        if part.start() != end:
            break
        number, unit = part.groups()
        if not unit:
            raise SettingsError(f'time: missing unit in duration "{text}"')
        if unit not in _UNIT_S:
            raise SettingsError(f'time: unknown unit "{unit}" in duration "{text}"')
        total += float(number) * _UNIT_S[unit]
        end = part.end()
    if not body or end != len(body) or total > FOREVER_S:
        raise SettingsError(f'time: invalid duration "{text}"')
    return sign * total


def parse_keep_alive_s(value: object) -> float | None:
    """Return how long a request wants its model kept, in seconds.

    Args:
        value: The JSON value of ``keep_alive``: absent or null, a number of seconds, or a Go
            duration. Negative means for ever.

    Returns:
        None for "no change", 0.0 for "unload when idle", ``FOREVER_S`` for ever, else seconds.

    Raises:
        SettingsError: Any other value, in Ollama's words; so a text of digits without a unit.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        go_type = {bool: "bool", list: "[]interface {}"}.get(type(value), "map[string]interface {}")
        raise SettingsError(f"Unsupported type: '{go_type}'")
    seconds = parse_duration_s(value) if isinstance(value, str) else float(value)
    if math.isnan(seconds):
        raise SettingsError("keep_alive is not a number")
    return FOREVER_S if seconds < 0 else min(seconds, FOREVER_S)


def parse_lenient_duration_s(text: str, *, default_s: float) -> float:
    """Return the seconds of an environment value: a Go duration or bare seconds.

    Ollama is laxer with ``OLLAMA_KEEP_ALIVE`` than with the request field: bare integers are
    seconds, and what cannot be read is the default. Negative means for ever.
    """
    cleaned = text.strip().strip("\"'")
    try:
        seconds = float(int(cleaned))
    except ValueError:
        try:
            seconds = parse_duration_s(cleaned)
        except SettingsError:
            return default_s
    return FOREVER_S if seconds < 0 else min(seconds, FOREVER_S)


def to_ns(seconds: float) -> int:
    """Return whole nanoseconds, as Ollama's metrics carry them."""
    return round(seconds * NS_PER_S)


def to_s(nanoseconds: int | float | None) -> float | None:
    """Return seconds; None stays None."""
    return None if nanoseconds is None else nanoseconds / NS_PER_S


def utc_stamp(unix_ns: int) -> str:
    """Return RFC 3339 in UTC with "Z" and up to nine fractional digits, trailing zeros trimmed."""
    whole, fraction = divmod(unix_ns, NS_PER_S)
    digits = f"{fraction:09d}".rstrip("0")
    return f"{_utc_second(whole)}.{digits}Z" if digits else f"{_utc_second(whole)}Z"


@lru_cache(maxsize=1)  # each token is stamped, and formatting its second is the dear part
def _utc_second(whole: int) -> str:
    return datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def local_stamp(unix_ns: int) -> str:
    """Return RFC 3339 in local time with its offset, as ``expires_at`` and ``modified_at`` are."""
    whole, fraction = divmod(unix_ns, NS_PER_S)
    moment = datetime.fromtimestamp(whole, UTC).astimezone()
    offset = moment.strftime("%z")
    zone = "Z" if offset in ("+0000", "") else f"{offset[:3]}:{offset[3:5]}"
    digits = f"{fraction:09d}".rstrip("0")
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    return f"{text}.{digits}{zone}" if digits else f"{text}{zone}"
