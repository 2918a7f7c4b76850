"""Cache-Control, and which calls the cache has a part in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ollamalab.cache.policy import CacheControl, is_deterministic, may_cache, parse_cache_control
from ollamalab.errors import SettingsError
from ollamalab.protocol.calls import Call, call_of
from ollamalab.protocol.upstream import Request
from ollamalab.settings import CacheSettings


def call(path: str, **fields: Any) -> Call:
    return call_of(Request(method="POST", path=path, body=json.dumps({"model": "m", **fields}).encode()))


@pytest.mark.parametrize(
    ("text", "control"),
    [
        ("", CacheControl()),
        ("no-cache", CacheControl(no_cache=True)),
        ("No-Store , NO-CACHE", CacheControl(no_cache=True, no_store=True)),
        ("max-age=60", CacheControl(max_age_s=60)),
        ('max-age="60"', CacheControl(max_age_s=60)),
        ("max-age=60, max-age=5", CacheControl(max_age_s=5)),
        ("max-age=0,only-if-cached", CacheControl(max_age_s=0, only_if_cached=True)),
        ("max-age=-1", CacheControl()),
        ("max-age=soon, no-transform, =, ,;", CacheControl()),
        ("max-age=²", CacheControl()),
        (f"max-age={'9' * 5000}", CacheControl(max_age_s=float("inf"))),
    ],
)
def test_directives_are_read_and_the_unreadable_ignored(text: str, control: CacheControl) -> None:
    assert parse_cache_control(text) == control


HI = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/api/chat", {"messages": HI}, True),
        ("/api/generate", {"prompt": "hi"}, True),
        ("/v1/chat/completions", {"messages": HI}, True),
        ("/v1/completions", {"prompt": "hi"}, True),
        ("/api/chat", {"messages": []}, False),
        ("/api/chat", {"prompt": "hi"}, False),
        ("/api/generate", {}, False),
        ("/api/generate", {"prompt": "", "keep_alive": 0}, False),
        ("/v1/completions", {"prompt": ""}, False),
        ("/api/embed", {"input": "hi"}, False),
        ("/api/chat", {"messages": HI, "model": "a b"}, False),
        ("/api/chat", {"messages": HI, "keep_alive": "3600"}, False),
        ("/api/chat", {"messages": HI, "keep_alive": "5m"}, True),
        ("/v1/chat/completions", {"messages": HI, "stream_options": {"include_usage": 1}}, False),
        ("/v1/chat/completions", {"messages": HI, "stream_options": "x"}, False),
    ],
)
def test_only_questions_that_the_upstream_would_answer_are_cached(
    path: str, fields: dict[str, Any], expected: bool
) -> None:
    assert may_cache(call(path, **fields), "all") is expected


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.1}, False),
        ({"seed": 7}, True),
        ({"seed": 0}, True),
        ({"seed": -1}, False),
        ({"seed": "7"}, False),
        ({"temperature": False}, False),
        ({"seed": True}, False),
    ],
)
def test_deterministic_is_temperature_zero_or_a_seed(fields: dict[str, Any], expected: bool) -> None:
    ollama = call("/api/chat", messages=HI, options=fields)
    openai = call("/v1/chat/completions", messages=HI, **fields)
    for asked in (ollama, openai):
        assert is_deterministic(asked) is expected
        assert may_cache(asked, "deterministic") is expected
        assert may_cache(asked, "all")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("policy", "some"),
        ("pacing", "slow"),
        ("ttl_s", 0),
        ("ttl_s", float("nan")),
        ("ttl_s", float("inf")),
        ("stale_if_error_s", -1),
        ("max_entries", 0),
        ("max_bytes", 0),
        ("max_answer_bytes", 0),
    ],
)
def test_settings_out_of_range_name_their_value(name: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=f"{name} must be .*, got {value!r}"):
        CacheSettings(**{name: value})
