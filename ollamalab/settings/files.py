"""The one door from outside: options of ``serve`` and keys of its file are the same names, read alike."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ollamalab.errors import OutOfRange, SettingsError
from ollamalab.settings.batching import BatchSettings
from ollamalab.settings.cache import CacheSettings
from ollamalab.settings.cluster import ClusterSettings
from ollamalab.settings.gateway import NO_CREDENTIALS, GatewaySettings, UpstreamSettings
from ollamalab.settings.limits import ServerLimits
from ollamalab.settings.queueing import QueueSettings
from ollamalab.settings.values import (
    read_bytes,
    read_flag,
    read_number,
    read_path,
    read_ratio,
    read_seconds,
    read_text,
    read_texts,
    read_whole,
)
from ollamalab.settings.warmup import WarmupSettings
from ollamalab.settings.yaml_keys import read_keys

Reader = Callable[[str, object], Any]


def _read_concurrency(name: str, value: object) -> int | None:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return None
    try:
        return read_whole(name, value)
    except SettingsError as error:
        raise SettingsError(f"{name} must be auto or a whole number from 1, got {value!r}") from error


def _read_batch(name: str, value: object) -> BatchSettings:
    if isinstance(value, bool):  # YAML reads a bare `off` so
        value = "adaptive" if value else "off"
    try:
        return BatchSettings.parse(str(value) if isinstance(value, int) else read_text(name, value))
    except OutOfRange as error:
        raise OutOfRange(name, error.rule) from error


def _read_keep(name: str, value: object) -> str:
    if isinstance(value, bool):  # as with batch
        return "auto" if value else "off"
    return read_text(name, value)


def _read_store(name: str, value: object) -> str:
    return "off" if value is False else read_text(name, value)


#: Key to where it goes and how it is read: a field of ``GatewaySettings``, or "part.field".
_KEYS: Mapping[str, tuple[str, Reader]] = {
    "host": ("host", read_text),
    "port": ("port", read_whole),
    "origins": ("origins", read_texts),
    "cache": ("store", _read_store),
    "cache_policy": ("cache.policy", read_text),
    "cache_ttl": ("cache.ttl_s", read_seconds),
    "cache_entries": ("cache.max_entries", read_whole),
    "cache_bytes": ("cache.max_bytes", read_bytes),
    "cache_answer_bytes": ("cache.max_answer_bytes", read_bytes),
    "cache_stale_if_error": ("cache.stale_if_error_s", read_seconds),
    "cache_pacing": ("cache.pacing", read_text),
    "max_concurrent": ("queue.max_concurrent", _read_concurrency),
    "max_queue": ("queue.max_queue", read_whole),
    "queue_timeout": ("queue.queue_timeout_s", read_seconds),
    "queue_share": ("queue.share_ratio", read_ratio),
    "queue_ageing": ("queue.ageing_s", read_seconds),
    "request_timeout": ("request_timeout_s", read_seconds),
    "load_timeout": ("load_timeout_s", read_seconds),
    "stop_timeout": ("stop_timeout_s", read_seconds),
    "route": ("route", read_text),
    "probe_interval": ("cluster.probe_interval_s", read_seconds),
    "probe_timeout": ("cluster.probe_timeout_s", read_seconds),
    "list_interval": ("cluster.list_interval_s", read_seconds),
    "max_attempts": ("cluster.max_attempts", read_whole),
    "batch": ("batch", _read_batch),
    "warm": ("warmup.models", read_texts),
    "warm_keep": ("warmup.keep", _read_keep),
    "warm_hold_cost": ("warmup.hold_cost", read_number),
    "api_key_file": ("api_key_file", read_path),
    "admin": ("is_admin", read_flag),
    "log_requests": ("logs_requests", read_flag),
    "max_body": ("limits.max_body_bytes", read_bytes),
    "max_header_bytes": ("limits.max_header_bytes", read_bytes),
    "max_headers": ("limits.max_headers", read_whole),
    "max_connections": ("limits.max_connections", read_whole),
    "idle_timeout": ("limits.idle_timeout_s", read_seconds),
    "head_timeout": ("limits.head_timeout_s", read_seconds),
    "body_timeout": ("limits.body_timeout_s", read_seconds),
    "write_timeout": ("limits.write_timeout_s", read_seconds),
}

_KEY_OF: Mapping[str, str] = {place: key for key, (place, _) in _KEYS.items()}

_UPSTREAM = "upstream"

_UPSTREAM_KEYS: Mapping[str, tuple[str, Reader]] = {
    "url": ("url", read_text),
    "name": ("name", read_text),
    "weight": ("weight", read_whole),
    "api_key_file": ("api_key_file", read_path),
    "api_key_env": ("api_key_env", read_text),
    "ca_file": ("ca_file", read_path),
    "verify": ("verify", read_flag),
}

_PARTS: Mapping[str, Any] = {
    "cache": CacheSettings,
    "queue": QueueSettings,
    "cluster": ClusterSettings,
    "limits": ServerLimits,
    "warmup": WarmupSettings,
}


def gateway_keys() -> tuple[str, ...]:
    """Return every key that the YAML file may have."""
    return (_UPSTREAM, *_KEYS)


def changed_keys(before: GatewaySettings, after: GatewaySettings) -> tuple[str, ...]:
    """Return the keys whose values differ, in the order of ``gateway_keys``."""
    places = {_UPSTREAM: "upstreams", **{key: place for key, (place, _reader) in _KEYS.items()}}
    return tuple(key for key, place in places.items() if _at(before, place) != _at(after, place))


def gateway_settings(
    file: Path | None = None, options: Mapping[str, object] | None = None
) -> GatewaySettings:
    """Return the settings of a gateway.

    Args:
        file: YAML with any of ``gateway_keys``; a dash in a key counts as an underscore.
        options: The same keys as given on a command line; None values are left out, the others win.

    Raises:
        SettingsError: A key is unknown, or a value has the wrong type or is out of range.
    """
    values = read_keys(file) if file else {}
    given = {key: value for key, value in (options or {}).items() if value is not None and value != []}
    try:
        from_file = _settings_of({key: value for key, value in values.items() if key not in given}, str)
    except SettingsError as error:
        raise SettingsError(f"{file}: {error}") from error
    fields = {**from_file, **_settings_of(given, _option)}
    try:
        return _build(fields)
    except OutOfRange as error:
        key = error.name
        raise SettingsError(f"{_option(key) if key in given else f'{file}: {key}'} {error.rule}") from error


def parse_upstream(text: str) -> UpstreamSettings:
    """Return the upstream that ``URL[,weight=W][,name=N]`` describes.

    Raises:
        SettingsError: An address that is none, an unknown part, or a value out of range.
    """
    url, *parts = text.split(",")
    fields: dict[str, object] = {"url": url}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or key.strip() not in ("weight", "name"):
            if "@" in text:
                raise SettingsError(NO_CREDENTIALS)
            raise SettingsError(f"upstream {url}: {part!r} is not weight=NUMBER or name=NAME")
        fields[key.strip()] = value.strip()
    return _upstream(fields)


def _settings_of(values: Mapping[str, object], name_of: Callable[[str], str]) -> dict[str, Any]:
    """Return fields of the settings, by their place, for keys and values as written.

    Args:
        values: By key.
        name_of: Returns what whoever wrote a key calls it.
    """
    fields: dict[str, Any] = {}
    for key, value in values.items():
        if key == _UPSTREAM:
            entries = value if isinstance(value, list | tuple) else [value]
            fields["upstreams"] = tuple(
                parse_upstream(entry) if isinstance(entry, str) else _upstream(entry) for entry in entries
            )
            continue
        if key not in _KEYS:
            raise SettingsError(f"unknown key {key!r}{_nearest(key, gateway_keys())}")
        place, reader = _KEYS[key]
        fields[place] = reader(name_of(key), value)
    return fields


def _build(fields: Mapping[str, Any]) -> GatewaySettings:
    """Return the settings of these fields.

    Raises:
        OutOfRange: By the name of its key.
        SettingsError: They cannot be used together.
    """
    own = {place: value for place, value in fields.items() if "." not in place}
    own.setdefault("upstreams", ())
    for part, kind in _PARTS.items():
        inner = {
            place.partition(".")[2]: value for place, value in fields.items() if place.startswith(f"{part}.")
        }
        with _named_by_key(f"{part}."):
            own[part] = replace(kind(), **inner)
    with _named_by_key(""):
        return GatewaySettings(**own)


@contextmanager
def _named_by_key(prefix: str) -> Iterator[None]:
    """Name a setting that is out of range by its key, which is all that users know of it."""
    try:
        yield
    except OutOfRange as error:
        raise OutOfRange(_KEY_OF[prefix + error.name], error.rule) from error


def _option(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _at(settings: GatewaySettings, place: str) -> object:
    part, dot, field = place.partition(".")
    return getattr(getattr(settings, part), field) if dot else getattr(settings, part)


def _upstream(entry: object) -> UpstreamSettings:
    if not isinstance(entry, Mapping):
        raise SettingsError(f"upstream must be an address or keys such as url and weight, got {entry!r}")
    fields = {}
    for key, value in entry.items():
        known = _UPSTREAM_KEYS.get(str(key).replace("-", "_"))
        if known is None:
            raise SettingsError(
                f"upstream has an unknown key {key!r}{_nearest(str(key), tuple(_UPSTREAM_KEYS))}"
            )
        field, reader = known
        fields[field] = reader(f"upstream {key}", value)
    if "url" not in fields:
        raise SettingsError(f"upstream {entry!r} has no url")
    return UpstreamSettings(**fields)


def _nearest(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
