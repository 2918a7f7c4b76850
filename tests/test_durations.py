"""Durations and moments are read and written as Ollama does."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.errors import SettingsError
from ollamalab.protocol.durations import (
    FOREVER_S,
    local_stamp,
    parse_duration_s,
    parse_keep_alive_s,
    parse_lenient_duration_s,
    to_ns,
    to_s,
    utc_stamp,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10m", 600.0),
        ("1h30m", 5400.0),
        ("24h", 86400.0),
        ("1.5s", 1.5),
        (".5m", 30.0),
        ("-1m", -60.0),
        ("+2s", 2.0),
        ("0", 0.0),
        ("300ms", 0.3),
        ("2us", 2e-6),
        ("7ns", 7e-9),
    ],
)
def test_a_go_duration_is_read(text: str, seconds: float) -> None:
    assert parse_duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", 'time: invalid duration ""'),
        ("m", 'time: invalid duration "m"'),
        ("five", 'time: invalid duration "five"'),
        ("-", 'time: invalid duration "-"'),
        ("9999999h", 'time: invalid duration "9999999h"'),
        ("-1", 'time: missing unit in duration "-1"'),
        ("3600", 'time: missing unit in duration "3600"'),
        ("1d", 'time: unknown unit "d" in duration "1d"'),
        ("10 m", 'time: unknown unit " m" in duration "10 m"'),
        ("1h 3m", 'time: unknown unit "h " in duration "1h 3m"'),
        ("1hm", 'time: unknown unit "hm" in duration "1hm"'),
        ("1e3s", 'time: unknown unit "e" in duration "1e3s"'),
    ],
)
def test_what_is_not_a_go_duration_is_refused_in_go_s_words(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=f"^{re.escape(words)}$"):
        parse_duration_s(text)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        (0, 0.0),
        ("0", 0.0),
        (90, 90.0),
        (0.5, 0.5),
        (-1, FOREVER_S),
        (-0.1, FOREVER_S),
        ("-1m", FOREVER_S),
        ("10m", 600.0),
        (1e30, FOREVER_S),
        (math.inf, FOREVER_S),
    ],
)
def test_every_form_of_keep_alive_is_understood(value: object, seconds: float | None) -> None:
    assert parse_keep_alive_s(value) == seconds


@pytest.mark.parametrize("value", ["-1", "3600", "soon", True, False, [], {}, math.nan])
def test_keep_alive_of_another_form_is_refused(value: object) -> None:
    with pytest.raises(SettingsError):
        parse_keep_alive_s(value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300.0), ("90", 90.0), ("-1", FOREVER_S), (' "24h" ', 86400.0), ("soon", 42.0), ("", 42.0)],
)
def test_the_environment_is_read_more_laxly(text: str, seconds: float) -> None:
    assert parse_lenient_duration_s(text, default_s=42.0) == seconds


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_500_000_000, "1970-01-01T00:00:01.5Z"),
        (1_790_000_000_123_456_789, "2026-09-21T14:13:20.123456789Z"),
    ],
)
def test_a_utc_stamp_trims_its_zeros(unix_ns: int, text: str) -> None:
    assert utc_stamp(unix_ns) == text


@given(st.integers(min_value=0, max_value=4_000_000_000_000_000_000))
def test_a_local_stamp_has_a_zone(unix_ns: int) -> None:
    shape = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)"
    assert re.fullmatch(shape, local_stamp(unix_ns))


@given(st.integers(min_value=0, max_value=10**15))
def test_nanoseconds_survive_the_way_to_seconds_and_back(nanoseconds: int) -> None:
    seconds = to_s(nanoseconds)
    assert seconds is not None
    assert to_ns(seconds) == nanoseconds
    assert to_s(None) is None
