"""Which web pages and host names a server answers: Ollama's Host and Origin rules. Pure.

A page in a browser can send requests to 127.0.0.1, and a name under its owner's control can be made to
point there. So a foreign ``Origin`` is refused, and a server on a loopback address refuses a foreign
``Host``.

Source: Ollama's ``server/routes.go`` and ``envconfig/config.go`` (v0.33).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")
_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")

#: Always allowed; ``*`` stands for any text.
DEFAULT_ORIGINS = (
    *(
        f"{scheme}://{host}{port}"
        for host in _LOCAL_HOSTS
        for scheme in ("http", "https")
        for port in ("", ":*")
    ),
    *(f"{scheme}://*" for scheme in ("app", "file", "tauri", "vscode-webview", "vscode-file")),
    *(f"{scheme}://*" for scheme in ("chrome-extension", "safari-extension", "moz-extension")),
)

_HEADERS = (
    "Authorization,Content-Type,User-Agent,Accept,X-Requested-With,Openai-Beta,"
    "X-Stainless-Arch,X-Stainless-Async,X-Stainless-Custom-Poll-Interval,X-Stainless-Helper-Method,"
    "X-Stainless-Lang,X-Stainless-Os,X-Stainless-Package-Version,X-Stainless-Poll-Helper,"
    "X-Stainless-Retry-Count,X-Stainless-Runtime,X-Stainless-Runtime-Version,X-Stainless-Timeout"
)

#: What a preflight request is told beside the origin.
PREFLIGHT_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "Access-Control-Allow-Headers": _HEADERS,
        "Access-Control-Allow-Methods": "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS",
        "Access-Control-Max-Age": "43200",
        "Vary": "Origin, Access-Control-Request-Method, Access-Control-Request-Headers",
    }
)


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """The rules of one server.

    Attributes:
        origins: Allowed beside the default ones, as in ``OLLAMA_ORIGINS``; "*" allows every page.
        is_loopback: Whether the server listens on a loopback address; elsewhere any ``Host`` will do.
        host_names: Names of this machine, in lower case.
        addresses: Addresses of this machine.
    """

    origins: tuple[str, ...] = ()
    is_loopback: bool = True
    host_names: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()

    def allows_host(self, host: str) -> bool:
        """Whether a request with this ``Host`` header is answered; a port in it does not matter."""
        if not self.is_loopback:
            return True
        return self._is_near(host)

    @lru_cache(maxsize=256)  # noqa: B019 - rules live as long as their server, and hosts repeat
    def _is_near(self, host: str) -> bool:
        name = _without_port(host.strip()).lower()
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            is_local = name in ("", "localhost") or name.endswith(_LOCAL_SUFFIXES)
            return is_local or name in self.host_names
        is_near = address.is_loopback or address.is_private or address.is_unspecified
        return is_near or str(address) in self.addresses

    def cors_headers(self, origin: str | None, host: str) -> Mapping[str, str] | None:
        """Return the headers that let a page read the answer; None if it must not even ask.

        Args:
            origin: The ``Origin`` header; None if there is none, as from anything but a page.
            host: The ``Host`` header: a page of this very server needs no permission.
        """
        if not origin or origin in (f"http://{host}", f"https://{host}"):
            return {}
        if "*" in self.origins:
            return {"Access-Control-Allow-Origin": "*"}
        if any(_matches(origin, pattern) for pattern in (*self.origins, *DEFAULT_ORIGINS)):
            return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
        return None


def _matches(origin: str, pattern: str) -> bool:
    start, star, end = pattern.partition("*")
    if not star:
        return origin == pattern
    return len(origin) >= len(start) + len(end) and origin.startswith(start) and origin.endswith(end)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0] if host.count(":") == 1 else host
