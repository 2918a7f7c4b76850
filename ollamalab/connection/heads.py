"""The head of a request as bytes; what belongs to one hop is made here and never passed on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import urlsplit

from ollamalab.errors import SettingsError
from ollamalab.protocol.upstream import Request

#: Belong to one connection and are made anew for each hop (RFC 9110 §7.6.1).
HOP_HEADERS = frozenset(
    ("connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade")
)

#: Ours to say towards a server: Ollama answers 403 to a foreign Host, and a client's framing is not ours.
_OURS = HOP_HEADERS | {"content-length", "expect", "host"}

_KEPT_BLOCKS = 64  # the server limits a head to 64 KiB

_DEFAULT_PORTS = {"http": 80, "https": 443}
_METHODS_WITH_BODY = frozenset(("POST", "PUT", "PATCH"))  # of length 0 where there is none
_REQUEST_LINE = re.compile(r"[A-Z]+ /[!-~]*")
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class RequestHeads:
    """Writes the heads of requests to one server.

    Args:
        url: Its base URL, as ``server_url`` gives it; a path in it is put before each request's.
        headers: Sent with every request; they win over a request's own.

    Raises:
        SettingsError: A header that cannot be sent.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        host = parts.netloc
        if parts.port == _DEFAULT_PORTS[parts.scheme]:  # every client leaves it out, and proxies compare
            host = host.rpartition(":")[0]
        own = {_field_name(name): value for name, value in headers.items()}
        self._base_path = parts.path
        self._fixed = [f"host: {host}", *(f"{name}: {value}" for name, value in own.items())]
        self._skipped = _OURS | own.keys()
        self._block_of = lru_cache(maxsize=_KEPT_BLOCKS)(self._written)
        self.head_of(Request(method="GET", path="/"))  # so that a bad header of ours shows now

    def head_of(self, request: Request) -> bytes:
        """Return request line and headers, with the empty line that ends them.

        Raises:
            SettingsError: A method, path or header that HTTP cannot carry, such as one with a line break.
        """
        block = self._block_of(
            request.method, request.path, tuple(request.headers.items()), bool(request.body)
        )
        if request.body:
            return b"%bcontent-length: %d\r\n\r\n" % (block, len(request.body))
        return block + b"\r\n"

    def _written(self, method: str, path: str, headers: tuple[tuple[str, str], ...], has_body: bool) -> bytes:
        """Return a head without its length and its last line; clients send the same ones over and over."""
        line = f"{method} {self._base_path}{path}"
        if not _REQUEST_LINE.fullmatch(line):
            raise SettingsError(f"{line!r} cannot be asked over HTTP; percent-encode what is not ASCII")
        fields = {_field_name(name): value for name, value in headers}
        skipped = self._skipped
        if "connection" in fields:  # it names further fields of that hop
            skipped = skipped | {name.strip().lower() for name in fields["connection"].split(",")}
        lines = [f"{line} HTTP/1.1", *self._fixed]
        lines += [f"{name}: {value}" for name, value in fields.items() if name not in skipped]
        if has_body:
            if "content-type" not in fields and "content-type" not in self._skipped:
                lines.append("content-type: application/json")
        elif method in _METHODS_WITH_BODY:
            lines.append("content-length: 0")
        head = "\r\n".join(lines) + "\r\n"
        what = f"a header of {method} {path}"
        if not head.count("\n") == head.count("\r") == len(lines) or "\0" in head:
            raise SettingsError(f"{what} has a line break or a zero byte in it; leave it out")
        try:
            return head.encode("latin-1")  # as our server reads them, so that bytes pass unchanged
        except UnicodeEncodeError as error:
            raise SettingsError(
                f"{what} has {head[error.start]!r} in it; headers carry Latin-1 only"
            ) from error


@lru_cache(maxsize=1024)
def _field_name(name: str) -> str:
    """Return a header's name in lower case."""
    if not _FIELD_NAME.fullmatch(name):
        raise SettingsError(f"{name!r} is no name of a header")
    return name.lower()
