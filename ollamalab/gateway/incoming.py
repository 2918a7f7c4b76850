"""One request as it came in, and reading requests from a connection's bytes. Pure: no socket, no clock.

llhttp parses, in its strict mode: two lengths, a length beside a transfer coding, folded headers, space
before a colon, bare line feeds and control characters are refused, so that no two servers in a row can
read one byte stream as different requests (RFC 9112 §11.2). Left for us are the limits, and what llhttp
leaves to its caller: ``Host``, ``Expect``, ``Upgrade``, absolute targets, unknown transfer codings.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping
from functools import lru_cache

import msgspec
from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser

from ollamalab.errors import RequestRefused
from ollamalab.settings.limits import ServerLimits

_BAD_REQUEST, _NOT_ALLOWED, _TIMEOUT = 400, 405, 408
_TOO_LARGE, _TARGET_TOO_LONG, _EXPECTATION_FAILED, _HEADERS_TOO_LARGE = 413, 414, 417, 431
_NOT_IMPLEMENTED, _VERSION_NOT_SUPPORTED = 501, 505

#: What llhttp says of a version that it does not speak, HTTP/2's preface included.
_VERSION_REASONS = ("Invalid HTTP version", "Pause on PRI/Upgrade")
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://(?:[^/?#@]*@)?([^/?#]*)(.*)", re.DOTALL)


#: Of a body, read before its request has to pass the gate: refused at its end, it costs no connection.
_UNGATED_BYTES = 64 * 1024

#: Raises ``RequestRefused`` for headers whose request is not worth reading to the end.
Gate = Callable[[Mapping[str, str]], object]


class Incoming(msgspec.Struct):
    """One request, its body read to the end.

    Attributes:
        method: "GET", "POST", in upper case.
        target: Path with its leading slash and query as sent, or "*"; "" if it never came.
        headers: Names in lower case; of a repeated header, all values joined by ", ". Trailers are dropped,
            and so is the length, which the body has.
        body: Whole, without its transfer coding.
        peer: The client's address.
        received_s: When its first bytes were read (``time.perf_counter``).
        problem: Why the rest of it could not be read; answered, and then the connection closes.
        is_last: Whether the connection closes after its answer.
        is_http_1_0: Whether the client speaks HTTP/1.0, which knows no chunks.
    """

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    peer: str
    received_s: float
    problem: RequestRefused | None = None
    is_last: bool = False
    is_http_1_0: bool = False


class RequestReader:
    """Turns a connection's bytes into requests.

    Args:
        limits: What one client may take.
        peer: The client's address.
        gate: Asked about a request with a long body before that is read; None lets everybody send it.

    Attributes:
        ready: Requests that are whole, first come first.
        is_over: Whether nothing more is read: the client announced its last request, or sent one that
            cannot be read.
        is_inside: Whether a request has begun and is not whole.
        has_head: Whether the headers of that request are whole.
        began_s: When its first bytes were read.
        wants_continue: Whether the client waits to be told to send that request's body.
    """

    __slots__ = (
        "_body",
        "_gate",
        "_gate_ahead",
        "_head_again",
        "_head_bytes",
        "_header_count",
        "_headers",
        "_is_http_1_0",
        "_is_last",
        "_limits",
        "_max_header_bytes",
        "_max_headers",
        "_method",
        "_now_s",
        "_parser",
        "_peer",
        "_silent_bytes",
        "_target",
        "_unchecked_bytes",
        "began_s",
        "has_head",
        "is_inside",
        "is_over",
        "ready",
        "wants_continue",
    )

    is_inside: bool
    has_head: bool
    wants_continue: bool
    _target: bytes
    _headers: dict[str, str]
    _body: bytes | bytearray

    def __init__(self, limits: ServerLimits, peer: str, gate: Gate | None = None) -> None:
        self.ready: deque[Incoming] = deque()
        self.is_over = False
        self.began_s = 0.0
        self._gate = gate
        self._limits = limits
        self._max_header_bytes = limits.max_header_bytes
        self._max_headers = limits.max_headers
        self._unchecked_bytes = min(_UNGATED_BYTES, limits.max_body_bytes)
        self._peer = peer
        self._now_s = 0.0
        self._head_again = b""
        self._parser = HttpRequestParser(self)
        self._expect_request()

    def feed(self, data: bytes, now_s: float) -> None:
        """Read what arrived at a moment; whole requests are in ``ready`` then."""
        if self.is_over:
            return
        self._now_s = now_s
        if self.is_inside:
            self._silent_bytes += len(data)
        try:
            self._parse(data)
            # What llhttp and httptools hold of a header, trailer or chunk line that does not end.
            if self._silent_bytes > self._max_header_bytes:
                raise self._headers_too_large()
        except HttpParserCallbackError as error:
            if not isinstance(error.__context__, RequestRefused):
                raise
            self.refuse(error.__context__)
        except HttpParserError as error:
            if not self.is_over:  # else it is what follows the last request
                self.refuse(_refusal(error))
        except RequestRefused as problem:
            self.refuse(problem)

    def refuse(self, problem: RequestRefused) -> None:
        """Give up on the request that is being read; nothing after it is read either."""
        self.ready.append(
            Incoming(
                self._method,
                self._target.decode("latin-1"),
                self._headers,
                b"",
                self._peer,
                self.began_s if self.is_inside else self._now_s,
                problem,
                is_last=True,
                is_http_1_0=self._is_http_1_0,
            )
        )
        self.is_over = True
        self._expect_request()

    def refuse_as_too_slow(self) -> None:
        """Give up on the request that is being read since its client took too long."""
        part = "body" if self.has_head else "headers"
        self.refuse(RequestRefused(_TIMEOUT, f"the request's {part} did not come in time"))

    # What httptools calls.

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target."""
        if self.is_inside:
            self._target += url
        else:
            self.is_inside = True
            self.began_s = self._now_s
            self._target = url
        if len(self._target) > self._max_header_bytes:
            limit = self._max_header_bytes
            raise RequestRefused(_TARGET_TOO_LONG, f"the request's target has more than {limit} bytes")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header, or a trailer."""
        self._head_bytes += len(name) + len(value) + 4
        self._header_count += 1
        if self._head_bytes > self._max_header_bytes:
            raise self._headers_too_large()
        if self._header_count > self._max_headers:
            limit = self._max_headers
            raise RequestRefused(_HEADERS_TOO_LARGE, f"the request has more than {limit} headers")
        if self.has_head:
            return  # a trailer
        key, text = _field(name, value) if len(value) <= _SHORT_BYTES else _field_of(name, value)
        if key not in self._headers:
            self._headers[key] = text
        elif key == "host":
            raise RequestRefused(_BAD_REQUEST, "too many Host headers")
        else:
            self._headers[key] = f"{self._headers[key]}, {text}"

    def on_headers_complete(self) -> None:
        """Judge the head; a body may follow."""
        headers, parser = self._headers, self._parser
        self.has_head = True
        self._method = parser.get_method().decode("ascii")
        version = parser.get_http_version()
        self._is_http_1_0 = version == "1.0"
        self._is_last = not parser.should_keep_alive()
        if version != "1.1" and not self._is_http_1_0:
            raise RequestRefused(_VERSION_NOT_SUPPORTED, f"HTTP/{version} is not spoken here; use HTTP/1.1")
        if self._method == "CONNECT":
            raise RequestRefused(_NOT_ALLOWED, "CONNECT is not offered here: this is no proxy")
        if "host" not in headers and not self._is_http_1_0:
            raise RequestRefused(_BAD_REQUEST, "missing required Host header")
        if parser.should_upgrade():
            self._head_again = self._head_without_upgrade()
            return
        coding, length = headers.get("transfer-encoding"), headers.pop("content-length", None)
        if coding is not None:
            self._check_coding(coding)
        elif length is not None:
            self._check_length(int(length))
        if "expect" in headers and not self._is_http_1_0:
            if headers["expect"].lower() != "100-continue":
                raise RequestRefused(
                    _EXPECTATION_FAILED, f"Expect: {headers['expect'][:80]} is not known here"
                )
            self.wants_continue = coding is not None or (length or "0") != "0"
            self._pass_gate()

    def on_body(self, data: bytes) -> None:
        """Take a piece of the body."""
        self._silent_bytes = 0
        self.wants_continue = False
        if not self._body:
            self._body = data
        elif isinstance(self._body, bytes):
            self._body = bytearray(self._body + data)
        else:
            self._body += data  # not a list of pieces: a client that sends two bytes a time would fill it
        if len(self._body) > self._unchecked_bytes:
            self._check_length(len(self._body))

    def on_message_complete(self) -> None:
        """Put the request with those that are whole."""
        if not self._head_again:
            target, body = self._target.decode("ascii"), self._body
            if target[0] != "/" and target != "*":
                target = self._origin_form(target)
            self.ready.append(
                Incoming(
                    self._method,
                    target,
                    self._headers,
                    body if isinstance(body, bytes) else bytes(body),
                    self._peer,
                    self.began_s,
                    is_last=self._is_last,
                    is_http_1_0=self._is_http_1_0,
                )
            )
            self.is_over = self._is_last
        self._expect_request()

    def _expect_request(self) -> None:
        self.is_inside = self.has_head = self.wants_continue = False
        self._gate_ahead = self._gate
        self._is_last = self._is_http_1_0 = False
        self._method = ""
        self._target = b""
        self._headers = {}
        self._header_count = self._head_bytes = 0
        self._body = b""
        self._silent_bytes = 0

    def _parse(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        while True:
            try:
                self._parser.feed_data(rest)
                return
            except HttpParserUpgrade as upgrade:
                # llhttp takes what follows for another protocol, a body included; Java's client asks
                # for an upgrade with every POST. So the request is read again without that wish.
                rest = memoryview(rest)[upgrade.args[0] :]
                head, self._head_again = self._head_again, b""
                self._parser = HttpRequestParser(self)
                self._parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        headers = {
            name: value for name, value in self._headers.items() if name not in ("connection", "upgrade")
        }
        if self._is_last or self._is_http_1_0:
            headers["connection"] = "close" if self._is_last else "keep-alive"
        version = "1.0" if self._is_http_1_0 else "1.1"
        lines = [f"{self._method} {self._target.decode('ascii')} HTTP/{version}"]
        lines.extend(f"{name}: {value}" for name, value in headers.items())
        return "\r\n".join((*lines, "", "")).encode("latin-1")

    def _origin_form(self, target: str) -> str:
        """Return path and query of an absolute target, whose host counts instead of ``Host``."""
        match = _ABSOLUTE.fullmatch(target)
        if match is None:
            raise RequestRefused(_BAD_REQUEST, f"the request's target {target[:80]!r} is no path")
        self._headers["host"] = match[1]
        return match[2] if match[2].startswith("/") else f"/{match[2]}"

    def _check_coding(self, coding: str) -> None:
        if self._is_http_1_0:
            raise RequestRefused(_BAD_REQUEST, "HTTP/1.0 has no Transfer-Encoding")
        if coding.lower() != "chunked":
            problem = f"Transfer-Encoding {coding[:80]!r} is not read here; send chunked or a Content-Length"
            raise RequestRefused(_NOT_IMPLEMENTED, problem)

    def _check_length(self, least_bytes: int) -> None:
        """Judge a request by how long its body is at least."""
        if least_bytes > self._limits.max_body_bytes:
            raise self._body_too_large()
        if least_bytes > _UNGATED_BYTES:
            self._pass_gate()

    def _pass_gate(self) -> None:
        gate, self._gate_ahead = self._gate_ahead, None
        if gate is not None:
            gate(self._headers)

    def _headers_too_large(self) -> RequestRefused:
        limit = self._limits.max_header_bytes
        return RequestRefused(_HEADERS_TOO_LARGE, f"the request's headers have more than {limit} bytes")

    def _body_too_large(self) -> RequestRefused:
        limit = self._limits.max_body_bytes
        return RequestRefused(_TOO_LARGE, f"the request's body has more than {limit} bytes")


def _field_of(name: bytes, value: bytes) -> tuple[str, str]:
    return name.decode("ascii").lower(), value.decode("latin-1").rstrip(" \t")


#: A client sends mostly the same headers, and clients of a kind do.
_field = lru_cache(maxsize=1024)(_field_of)
_SHORT_BYTES = 256


def _refusal(error: HttpParserError) -> RequestRefused:
    reason = str(error)
    if reason in _VERSION_REASONS:
        return RequestRefused(_VERSION_NOT_SUPPORTED, "this version of HTTP is not spoken here; use HTTP/1.1")
    return RequestRefused(_BAD_REQUEST, f"malformed HTTP request: {reason}")
