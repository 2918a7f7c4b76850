"""Reads one setting as people write it, on a command line or in YAML. Pure.

Each reader takes the setting's name and what was written, and says in its error what would be right.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from ollamalab.errors import SettingsError

_SHARE = re.compile(r"\d*\.?\d+")
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB)?")
_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SIZES |= {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_DURATIONS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_bytes(name: str, value: object) -> int:
    """Return a size: ``256MiB``, ``64kB``, or a bare number of bytes."""
    match = _SIZE.fullmatch(_text_of(value))
    if match is None:
        raise SettingsError(f"{name} must be a size such as 256MiB, got {value!r}")
    return round(float(match[1]) * _SIZES[match[2] or "B"])


def read_seconds(name: str, value: object) -> float:
    """Return a duration: ``60``, ``60s``, ``5m``, ``250ms``; a bare number is seconds."""
    match = _DURATION.fullmatch(_text_of(value))
    if match is None:
        raise SettingsError(f"{name} must be seconds or a duration such as 60 or 5m, got {value!r}")
    return float(match[1]) * _DURATIONS_S[match[2] or "s"]


def read_whole(name: str, value: object) -> int:
    """Return a whole number, 0 or more."""
    text = _text_of(value)
    if not (text.isascii() and text.isdigit()):
        raise SettingsError(f"{name} must be a whole number, got {value!r}")
    return int(text)


def read_number(name: str, value: object) -> float:
    """Return a number, 0 or more."""
    try:
        number = float(_text_of(value))
    except ValueError:
        number = math.nan
    if not 0 <= number < math.inf:
        raise SettingsError(f"{name} must be a number from 0, got {value!r}")
    return number


def read_ratio(name: str, value: object) -> float:
    """Return a share from 0 to 1."""
    text = _text_of(value)
    if not _SHARE.fullmatch(text) or float(text) > 1:
        raise SettingsError(f"{name} must be a share from 0 to 1 such as 0.5, got {value!r}")
    return float(text)


def read_flag(name: str, value: object) -> bool:
    """Return ``true`` or ``false``."""
    if not isinstance(value, bool):
        raise SettingsError(f"{name} must be true or false, got {value!r}")
    return value


def read_text(name: str, value: object) -> str:
    """Return a text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise SettingsError(f"{name} must be a text, got {value!r}")
    return value.strip()


def read_path(name: str, value: object) -> Path:
    """Return a path, ``~`` expanded."""
    return Path(value if isinstance(value, Path) else read_text(name, value)).expanduser()


def read_texts(name: str, value: object) -> tuple[str, ...]:
    """Return a list of texts; one text alone counts as a list of one."""
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(read_text(name, item) for item in values)


def _text_of(value: object) -> str:
    """Return how a number or text is written; nothing for what is neither."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return ""
    return str(value).strip()
