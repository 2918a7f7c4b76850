"""Sends a case over a connection of its own, as it is written: no redirects, no header of a library's."""

from __future__ import annotations

import http.client
import json
from urllib.parse import urlsplit

from cases import MODEL, Case
from shapes import Answer

_DEADLINE_S = 120.0


def ask(url: str, case: Case, model: str) -> Answer:
    """Return a server's answer to a case."""
    address = urlsplit(url)
    assert address.hostname
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=_DEADLINE_S)
    body = case.body
    if body is not None and not isinstance(body, bytes):
        body = json.dumps(body).replace(MODEL, model).encode()
    # A path may begin with two slashes, and Host may be somebody else: no part of http.client decides.
    connection.putrequest(case.method, address.path + case.path.replace(MODEL, model), True, True)
    for name, value in ({"Host": address.netloc} | dict(case.headers)).items():
        connection.putheader(name, value)
    if body is not None or case.method == "POST":
        connection.putheader("Content-Length", str(len(body or b"")))
    try:
        connection.endheaders(body)
        reply = connection.getresponse()
        headers: dict[str, str] = {}
        for name, value in reply.getheaders():
            known = headers.get(name.lower())
            headers[name.lower()] = value if known is None else f"{known}, {value}"
        return Answer(reply.status, headers, reply.read())
    finally:
        connection.close()
