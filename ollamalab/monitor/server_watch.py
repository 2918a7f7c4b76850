"""Asking a server how it is, again and again: thin I/O round ``server_state``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import msgspec

from ollamalab.errors import BadReply, UpstreamError
from ollamalab.hosts.web import get_json
from ollamalab.monitor.server_state import (
    Load,
    ServerState,
    SlotLook,
    load_of_gateway,
    look_at_slots,
    tokens_per_s,
)
from ollamalab.protocol.loaded import loaded_models

_TIMEOUT_S = 1.0

_GATEWAY, _EMBEDDED, _OLLAMA = "gateway", "embedded server", "Ollama"


class ServerWatch:
    """Asks one server; which kind it is shows in which pages it has, and is asked again after an outage."""

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: Its base URL.
            headers: Sent with every question, such as ``Authorization``.
            clock: Monotonic seconds.
        """
        self._clock = clock
        self._headers = dict(headers or {})
        self._state = ServerState(url=url)
        self._before: SlotLook | None = None

    def look(self) -> ServerState:
        """Return how the server is now; while it does not answer, what was known, with the trouble.

        Blocks for some seconds at most.
        """
        try:
            self._state = self._asked(self._state)
        except UpstreamError as error:
            self._before = None
            # What was in memory then need not be now.
            self._state = ServerState(url=self._state.url, trouble=str(error))
        return self._state

    def _asked(self, state: ServerState) -> ServerState:
        models = loaded_models(msgspec.json.encode(self._get("/api/ps")))
        if not state.kind:
            kind = self._kind()
            # A gateway's /api/version is that of the servers behind it.
            version = self._get("/lab/status" if kind == _GATEWAY else "/api/version")
            known = str(version.get("version", "")) if isinstance(version, dict) else ""
            state = replace(state, kind=kind, version=known)
        return replace(state, models=models, trouble=None, **asdict(self._load(state.kind)))

    def _kind(self) -> str:
        for path, kind in (("/lab/status", _GATEWAY), ("/lab/engines", _EMBEDDED)):
            try:
                self._get(path)
            except BadReply:
                continue
            return kind
        return _OLLAMA

    def _load(self, kind: str) -> Load:
        try:
            if kind == _GATEWAY:
                return load_of_gateway(self._get("/lab/status"))
            if kind == _EMBEDDED:
                load, look = look_at_slots(self._get("/lab/engines"), self._clock())
                rate = tokens_per_s(self._before, look)
                self._before = look
                return replace(load, tokens_per_s=rate)
        except (LookupError, TypeError, AttributeError) as error:
            raise BadReply(f"{self._state.url} has a page that is not ours ({error!r})") from error
        return Load()

    def _get(self, path: str) -> Any:
        return get_json(f"{self._state.url}{path}", timeout_s=_TIMEOUT_S, headers=self._headers)
