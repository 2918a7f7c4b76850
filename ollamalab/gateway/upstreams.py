"""The upstreams of the settings as members of a cluster: opened, kept over a reload, closed."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace

from ollamalab.cluster import Member
from ollamalab.connection import ConnectionSettings, OllamaConnection
from ollamalab.errors import SettingsError
from ollamalab.gateway.progress import Progress
from ollamalab.settings import UpstreamSettings

#: The queue bounds what waits for a model; this only keeps file descriptors for everything else.
_MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class _Link:
    settings: UpstreamSettings
    key: str | None
    member: Member
    close: Callable[[], Awaitable[None]]


class Upstreams:
    """Makes members of upstreams' settings; the same settings stay the same member.

    Args:
        request_timeout_s: Longest silence of an upstream.
        load_timeout_s: The same while it loads a model.
    """

    def __init__(self, *, request_timeout_s: float, load_timeout_s: float) -> None:
        self._request_timeout_s = request_timeout_s
        self._load_timeout_s = load_timeout_s
        self._links: dict[str, _Link] = {}
        self._open: set[OllamaConnection] = set()  # of members that are leaving too

    async def members(self, wanted: Iterable[UpstreamSettings]) -> list[Member]:
        """Return the members of these settings, in their order.

        What is the same but for its weight stays; another key in its file makes another. Nothing is open
        or changed if any of it cannot be used.

        Raises:
            SettingsError: A file or variable that settings name cannot be used.
        """
        links: list[tuple[UpstreamSettings, _Link]] = []
        async with AsyncExitStack() as undo:
            for settings in wanted:
                key = _key_of(settings)
                link = self._kept(settings, key)
                if link is None:
                    link = await self._opened(settings, key)
                    undo.push_async_callback(link.close)
                links.append((settings, link))
            undo.pop_all()
        for settings, link in links:
            link.member.view.weight = settings.weight
        self._links = {settings.name: link for settings, link in links}
        return [link.member for _, link in links]

    def open_connections(self) -> Counter[str]:
        """Return how many connections are open, idle ones included, by address."""
        found: Counter[str] = Counter()
        for connection in self._open:
            found[connection.url] += connection.open_connections
        return found

    def _kept(self, settings: UpstreamSettings, key: str | None) -> _Link | None:
        link = self._links.get(settings.name)
        if link is None or (replace(link.settings, weight=settings.weight), link.key) != (settings, key):
            return None
        return link

    async def _opened(self, settings: UpstreamSettings, key: str | None) -> _Link:
        """Return a new member; no connection is made before there is something to send."""
        connection = _connection_to(settings, key)
        await connection.__aenter__()
        self._open.add(connection)
        progress = Progress(
            connection,
            name=settings.name,
            request_timeout_s=self._request_timeout_s,
            load_timeout_s=self._load_timeout_s,
        )

        async def close() -> None:
            await connection.__aexit__(None, None, None)
            self._open.discard(connection)

        member = Member(settings.name, progress, url=connection.url, close=close)
        return _Link(settings, key, member, close)


def _connection_to(upstream: UpstreamSettings, key: str | None) -> OllamaConnection:
    """Return the connection pool of an upstream; how long to wait is not its decision."""
    settings = ConnectionSettings(
        max_connections=_MAX_CONNECTIONS,
        progress_timeout_s=math.inf,
        resend_stale=True,
        ca_file=upstream.ca_file,
        verify=upstream.verify,
    )
    return OllamaConnection(upstream.url, settings, headers={"authorization": f"Bearer {key}"} if key else {})


def _key_of(upstream: UpstreamSettings) -> str | None:
    """Return the bearer token that an upstream wants; None for most.

    Raises:
        SettingsError: The file or variable that should hold it does not.
    """
    if upstream.api_key_env:
        key = os.environ.get(upstream.api_key_env, "").strip()
        if not key:
            raise SettingsError(f"upstream {upstream.name}: the variable {upstream.api_key_env} is not set")
        return key
    if upstream.api_key_file is None:
        return None
    try:
        key = upstream.api_key_file.expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise SettingsError(
            f"upstream {upstream.name}: cannot read {upstream.api_key_file}: {reason}"
        ) from error
    if not key or len(key.split()) != 1:
        raise SettingsError(
            f"upstream {upstream.name}: {upstream.api_key_file} must hold one key and nothing else"
        )
    return key
