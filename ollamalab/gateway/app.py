"""The gateway's routes: who may ask what, what is answered here, and what goes to the parts."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Coroutine, Mapping
from functools import lru_cache
from typing import Any, Protocol

import msgspec

from ollamalab.errors import OllamaLabError, RequestRefused
from ollamalab.gateway.exchange import Exchange
from ollamalab.gateway.failures import Whole, text_answer
from ollamalab.gateway.relay import Relay, fail
from ollamalab.gateway.served import HEALTH_PATH, Served
from ollamalab.gateway.server import Incoming, Outgoing
from ollamalab.protocol.calls import Heading, read_call, read_heading
from ollamalab.protocol.endpoints import Kind, endpoint_of
from ollamalab.protocol.origins import PREFLIGHT_HEADERS, AccessRules
from ollamalab.protocol.requests import TOO_DEEP
from ollamalab.protocol.upstream import Request

logger = logging.getLogger(__name__)

#: A page that the gateway makes itself: content type and body.
Page = Callable[[], tuple[str, bytes]]

#: A client's headers that stay on its side: its secrets, what the connection makes anew, what only a
#: browser's server should see, what speaks to the gateway, and the wish for a compressed answer, of which
#: the parts could read no line (a proxy in front of an upstream would grant it).
_KEPT_BACK = frozenset(("authorization", "proxy-authorization", "x-api-key", "api-key", "cookie")) | {
    *("origin", "referer", "cache-control", "content-length", "accept-encoding")
}
_OWN_PREFIX = "x-ollamalab-"

_KEPT_WAYS = 128  # heads of up to 64 KiB

_READ = ("GET", "HEAD")
_OK, _NO_CONTENT, _MOVED, _TEMPORARILY_MOVED = 200, 204, 301, 307
_BAD_REQUEST, _UNAUTHORISED, _FORBIDDEN, _NOT_FOUND, _NOT_ALLOWED = 400, 401, 403, 404, 405
_SLASHES = re.compile("/+")

_NO_KEY = "an API key is needed here: send it as `Authorization: Bearer KEY`"
_WRONG_KEY = "this API key is not known here"
_NO_CHANGES = (
    "this gateway does not let clients change models; do it on the server, or start `ollamalab serve --admin`"
)


class Keys(Protocol):
    """Who holds which API key."""

    def holder(self, authorization: str) -> str | None:
        """Return the name of the key in an ``Authorization`` header; None if it is not known."""
        ...


class _Way(msgspec.Struct, frozen=True):
    """How requests with one head go to the parts.

    Attributes:
        heading: What it says.
        headers: What of its headers goes on.
        cors: What a page is told with the answer.
    """

    heading: Heading
    headers: Mapping[str, str]
    cors: Mapping[str, str]


class Gateway:
    """Answers HTTP requests.

    Args:
        relay: Where inference and everything else of Ollama's goes.
        rules: Which web pages and host names are answered.
        pages: Path to a page that is made here.
        keys: Who may ask; None lets everybody.
        is_admin: Whether clients may change models.
        observe: Is told of each request once it is over.
    """

    def __init__(
        self,
        relay: Relay,
        *,
        rules: AccessRules,
        pages: Mapping[str, Page],
        keys: Keys | None,
        is_admin: bool,
        observe: Callable[[Served], None],
    ) -> None:
        self._relay = relay
        self._rules = rules
        self._pages = pages
        self._keys = keys
        self._is_admin = is_admin
        self._observe = observe
        self._way_of = lru_cache(maxsize=_KEPT_WAYS)(self._find_way)

    async def handle(self, incoming: Incoming, outgoing: Outgoing) -> None:
        """Answer one request; cancelled when its client hangs up."""
        exchange = Exchange(incoming, outgoing)
        try:
            answering = self._answer(incoming, exchange)
            if answering is not None:
                await answering
        except OllamaLabError as error:
            fail(error, exchange, is_openai=incoming.target.startswith("/v1/"))
        except RecursionError:  # what could just be read is too deep to be written again
            problem = RequestRefused(_BAD_REQUEST, TOO_DEEP)
            fail(problem, exchange, is_openai=incoming.target.startswith("/v1/"))
        except Exception as error:
            logger.exception("event=handler_failed path=%s", incoming.target.partition("?")[0])
            fault = OllamaLabError(f"internal error: {type(error).__name__}")
            fail(fault, exchange, is_openai=incoming.target.startswith("/v1/"))
        finally:
            self._observe(exchange.served())

    def holder(self, headers: Mapping[str, str]) -> str:
        """Return whose key a request has; "" where no keys are wanted.

        Raises:
            RequestRefused: 401 without a key, or with an unknown one.
        """
        if self._keys is None:
            return ""
        authorization = headers.get("authorization")
        if authorization is None:
            raise RequestRefused(_UNAUTHORISED, _NO_KEY)
        holder = self._keys.holder(authorization)
        if holder is None:
            raise RequestRefused(_UNAUTHORISED, _WRONG_KEY)
        return holder

    def _answer(self, incoming: Incoming, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        """Return what answers a request through the parts; None if it has been answered here."""
        if incoming.problem is not None:
            exchange.cors, _ = self._foreign(incoming.method, incoming.headers)  # a page may read it
            raise incoming.problem
        way = self._way_of(incoming.method, incoming.target, tuple(incoming.headers.items()))
        if way is None:
            self._answer_here(incoming, exchange)
            return None
        exchange.cors = way.cors
        call = exchange.call = read_call(
            way.heading,
            incoming.body,
            client=incoming.peer,
            tenant=self.holder(incoming.headers),
            arrived_s=incoming.received_s,
        )
        request = Request(
            method=incoming.method,
            path=incoming.target,
            headers=way.headers,
            body=incoming.body,
            call=call,
        )
        return self._relay.answer(request, exchange)

    def _answer_here(self, incoming: Incoming, exchange: Exchange) -> None:
        """Answer what does not go to the parts.

        Raises:
            RequestRefused: What is wrong with it.
        """
        path = incoming.target.partition("?")[0]
        exchange.cors, answer = self._foreign(incoming.method, incoming.headers)
        if answer is None and path != HEALTH_PATH:
            self.holder(incoming.headers)
        answer = answer or self._own(incoming.method, path)
        if answer is None:
            read_heading(incoming.target, incoming.headers)
            raise AssertionError(f"{path} has a way to the parts")
        exchange.whole(answer.status, answer.headers, answer.body)

    def _find_way(self, method: str, target: str, fields: tuple[tuple[str, str], ...]) -> _Way | None:
        """Return how a request goes to the parts; None if it is answered here, or refused.

        Args:
            method: HTTP method.
            target: Path and query.
            fields: Its headers; no lengths, which would make each head another.
        """
        headers, path = dict(fields), target.partition("?")[0]
        cors, answer = self._foreign(method, headers)
        try:
            if answer is not None or path in self._pages or self._own(method, path) is not None:
                return None
            return _Way(read_heading(target, headers), _passed(headers), cors)
        except RequestRefused:
            return None

    def _foreign(self, method: str, headers: Mapping[str, str]) -> tuple[Mapping[str, str], Whole | None]:
        """Return what a page is told, and the answer to a foreign one, or to one that asks beforehand."""
        host, origin = headers.get("host", ""), headers.get("origin")
        cors = self._rules.cors_headers(origin, host)
        if cors is None:
            return {}, Whole(status=_FORBIDDEN)
        if cors and method == "OPTIONS":
            return cors, Whole(status=_NO_CONTENT, headers=_lower(PREFLIGHT_HEADERS))
        return cors, None if self._rules.allows_host(host) else Whole(status=_FORBIDDEN)

    def _own(self, method: str, path: str) -> Whole | None:
        """Return what is answered here: the gateway's own pages, and what Ollama's router refuses."""
        page = self._pages.get(path)
        if page is not None and method in _READ:
            content_type, body = page()
            return Whole(status=_OK, body=body, headers={"content-type": content_type})
        endpoint = endpoint_of(path)
        if endpoint is None and page is None:
            return _elsewhere(method, path) or text_answer(_NOT_FOUND, "404 page not found")
        allowed = endpoint.methods if endpoint else _READ
        if method not in allowed:
            return text_answer(_NOT_ALLOWED, "405 method not allowed", {"allow": ", ".join(allowed)})
        if endpoint is not None and endpoint.kind is Kind.CHANGE and not self._is_admin:
            raise RequestRefused(_FORBIDDEN, _NO_CHANGES)
        return None


def _elsewhere(method: str, path: str) -> Whole | None:
    """Return a redirection if the path has a slash too many, as Ollama's router gives one."""
    tidy = _SLASHES.sub("/", path).rstrip("/") or "/"
    there = endpoint_of(tidy)
    if tidy == path or there is None or method not in there.methods:
        return None
    status = _MOVED if method == "GET" and "//" not in path else _TEMPORARILY_MOVED
    return Whole(status=status, headers={"location": tidy})


def _passed(headers: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in headers.items()
        if name not in _KEPT_BACK and not name.startswith(_OWN_PREFIX)
    }


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
