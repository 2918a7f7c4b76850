"""What goes wrong on a connection, in our words, and whether to send again."""

from __future__ import annotations

import ssl

import httptools

from ollamalab.connection.settings import ConnectionSettings
from ollamalab.errors import BadReply, UpstreamError, UpstreamTimeout, UpstreamUnavailable

#: What a connection that is being made can raise. ``OSError`` has refusals, name lookups, TLS
#: (``ssl.SSLError``) and time-outs below it; ``UnicodeError`` comes of names that DNS cannot carry.
CONNECT_ERRORS = (OSError, UnicodeError)

#: What the parser can raise.
PARSE_ERRORS = (httptools.HttpParserError, httptools.HttpParserUpgrade)

#: A server that closes an idle connection just as we write on it lets us know within a round trip.
#: Later than this, it had the request and died of it, or gave up.
_CROSSING_S = 1.0

#: Generating twice costs time and changes nothing; deleting twice answers 404 the second time.
_REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "POST"))


class Unanswered(BadReply):
    """The connection ended before the first byte of an answer.

    Attributes:
        after_s: Seconds from the write to the end.
    """

    def __init__(self, message: str, *, url: str, after_s: float) -> None:
        super().__init__(message, url=url)
        self.after_s = after_s


def is_worth_sending_again(method: str, *, is_reused: bool, after_s: float) -> bool:
    """Return whether an unanswered request should go out once more, on another connection.

    Only where the close most likely crossed our write: on a connection that had been idle, at once.
    It is a guess, as with every client: a server that took the request and closed within the second
    gets it twice, which costs GPU time. The other guess costs a user a 502 whenever a server, or a
    proxy before it, restarts. Go's client and nginx never send a POST again: to them it may mean an
    order of goods, to us text.

    Args:
        method: Of the request.
        is_reused: Whether the connection had carried an exchange before.
        after_s: Seconds from the write to the end of the connection.
    """
    return is_reused and after_s < _CROSSING_S and method in _REPEATABLE


def error_type(foreign: type[BaseException], *, is_connected: bool) -> type[UpstreamError] | None:
    """Return what a foreign error becomes here; None if nobody thought of it.

    Args:
        foreign: Of the event loop, the operating system, TLS or the parser.
        is_connected: Whether the connection stood.
    """
    if not is_connected:
        return UpstreamUnavailable if issubclass(foreign, CONNECT_ERRORS) else None
    return BadReply if issubclass(foreign, (OSError, *PARSE_ERRORS)) else None


class Blame:
    """Words our errors: what, where, and the next step.

    Args:
        url: Of the server.
        settings: For the limits that were passed.
    """

    def __init__(self, url: str, settings: ConnectionSettings) -> None:
        self._url = url
        self._settings = settings

    def unreachable(self, error: BaseException) -> UpstreamError:
        """No connection could be made."""
        if isinstance(error, ssl.SSLError):
            reason = f"TLS: {getattr(error, 'verify_message', '') or error.reason or error}"
            step = "set ca_file to the authority that signed its certificate"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            step = "is `ollama serve` running there?"
        kind = error_type(type(error), is_connected=False) or UpstreamUnavailable
        return kind(f"cannot connect to {self._url} ({reason}); {step}", url=self._url)

    def not_connected_in_time(self, *, is_full: bool) -> UpstreamUnavailable:
        """Nothing was sent, so this is as good as refused."""
        limits = self._settings
        text = (
            f"none of {limits.max_connections} connections to {self._url} came free"
            f" within {limits.connect_timeout_s:g} s; raise max_connections?"
            if is_full
            else f"no connection to {self._url} within {limits.connect_timeout_s:g} s; is the host up?"
        )
        return UpstreamUnavailable(text, url=self._url)

    def no_progress(self) -> UpstreamTimeout:
        """The server has been silent for too long."""
        waited_s = self._settings.progress_timeout_s
        text = f"no byte from {self._url} in {waited_s:g} s; is the server overloaded or loading a model?"
        return UpstreamTimeout(text, url=self._url, after_s=waited_s)

    def closed(self) -> UpstreamUnavailable:
        """We closed while somebody waited for a connection."""
        return UpstreamUnavailable(f"the connection to {self._url} was closed", url=self._url)

    def unanswered(self, error: Exception | None, after_s: float) -> Unanswered:
        """The connection ended before the first byte of an answer."""
        how = _shown(error) if error else "closed"
        text = f"{self._url} hung up without an answer ({how}); did the server or its model runner crash?"
        failure = Unanswered(text, url=self._url, after_s=after_s)
        failure.__cause__ = error
        return failure

    def broken(self, error: BaseException | str) -> UpstreamError:
        """The answer broke off or is not HTTP."""
        if isinstance(error, str):
            cause, kind, how = None, None, error
        else:
            cause, kind, how = error, error_type(type(error), is_connected=True), _shown(error)
        text = f"the answer of {self._url} broke off or is not HTTP ({how})"
        failure = (kind or BadReply)(text, url=self._url)
        failure.__cause__ = cause
        return failure


def _shown(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
