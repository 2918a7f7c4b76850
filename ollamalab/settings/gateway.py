"""What ``ollamalab serve`` is started with."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ollamalab.errors import OutOfRange, SettingsError
from ollamalab.protocol.urls import server_url
from ollamalab.settings.batching import BatchSettings
from ollamalab.settings.cache import CacheSettings
from ollamalab.settings.cluster import ClusterSettings
from ollamalab.settings.limits import ServerLimits
from ollamalab.settings.queueing import QueueSettings
from ollamalab.settings.warmup import WarmupSettings

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_MAX_WEIGHT = 1000

#: Said without the address: whatever of it were shown could be a part of the password.
NO_CREDENTIALS = (
    "upstream: leave credentials out of the address; set api_key_file or api_key_env in the YAML file"
)
_MAX_PORT = 65535


@dataclass(frozen=True, kw_only=True)
class UpstreamSettings:
    """One Ollama behind the gateway."""

    url: str  #: http or https, without path and credentials
    name: str = ""  #: as replies and reports call it; by default its host and port
    weight: int = 1  #: its share under weighted routing
    api_key_file: Path | None = None  #: holds a bearer token that this upstream wants
    api_key_env: str = ""  #: or the environment variable that does
    ca_file: Path | None = None  #: who signed its certificate; None = the system's authorities
    verify: bool = True  #: whether its certificate is checked

    def __post_init__(self) -> None:
        if "@" in self.url:
            raise SettingsError(NO_CREDENTIALS)
        url = server_url(self.url)
        if urlsplit(url).path:
            raise SettingsError(f"upstream {self.url!r} has a path; write only http://host:port")
        object.__setattr__(self, "url", url)
        object.__setattr__(self, "name", self.name or url.partition("://")[2])
        if not _NAME.fullmatch(self.name):
            raise SettingsError(
                f"upstream name must be up to 63 letters, digits and . _ : -, got {self.name!r}"
            )
        if not 1 <= self.weight <= _MAX_WEIGHT:
            raise SettingsError(
                f"upstream {self.name}: weight must be a whole number from 1 to {_MAX_WEIGHT}, "
                f"got {self.weight!r}"
            )
        if self.api_key_file is not None and self.api_key_env:
            raise SettingsError(f"upstream {self.name}: set api_key_file or api_key_env, not both")
        if not url.startswith("https://") and (self.ca_file is not None or not self.verify):
            raise SettingsError(
                f"upstream {self.name}: ca_file and verify are for https, the address is {url}"
            )


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """The whole gateway; every field has a key in its YAML file."""

    upstreams: tuple[UpstreamSettings, ...]  #: at least one
    host: str = "127.0.0.1"  #: address to listen on
    port: int = 11435  #: 0 takes a free one
    origins: tuple[str, ...] = ()  #: web pages allowed beside Ollama's own, as in OLLAMA_ORIGINS
    store: str = "off"  #: where answers are kept: off, memory, disk:PATH, redis://...
    cache: CacheSettings = field(default_factory=CacheSettings)  #: which answers, for how long
    queue: QueueSettings = field(default_factory=QueueSettings)  #: who waits, and for how long
    batch: BatchSettings = field(default_factory=BatchSettings)  #: which lines leave together
    warmup: WarmupSettings = field(default_factory=WarmupSettings)  #: which models are kept in memory
    route: str = "round-robin"  #: which upstream takes a request
    cluster: ClusterSettings = field(default_factory=ClusterSettings)  #: how upstreams are watched
    request_timeout_s: float = 120.0  #: without progress of an upstream
    load_timeout_s: float = 300.0  #: the same while it loads a model
    limits: ServerLimits = field(default_factory=ServerLimits)  #: what one client may take
    api_key_file: Path | None = None  #: who may ask, one "name key" per line; None lets everybody
    is_admin: bool = False  #: whether clients may pull, create and delete models
    stop_timeout_s: float = 30.0  #: streams under way get so long to finish when it is stopped
    logs_requests: bool = False  #: one line per inference request, without what was said

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise SettingsError("no upstream is given; write for example --upstream http://127.0.0.1:11434")
        names = [upstream.name for upstream in self.upstreams]
        urls = [upstream.url for upstream in self.upstreams]
        for what, values in (("name", names), ("address", urls)):
            twice = next((value for value in values if values.count(value) > 1), None)
            if twice is not None:
                raise SettingsError(f"two upstreams have the {what} {twice}; each needs its own")
        if not 0 <= self.port <= _MAX_PORT:
            raise OutOfRange("port", f"must be 0 to {_MAX_PORT}, got {self.port!r}")
        for name in ("request_timeout_s", "load_timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise OutOfRange(name, f"must be > 0 and finite, got {getattr(self, name)!r}")
        if self.stop_timeout_s < 0:
            raise OutOfRange("stop_timeout_s", f"must be 0 or more, got {self.stop_timeout_s!r}")
