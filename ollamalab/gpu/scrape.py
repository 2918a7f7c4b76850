"""GPUs of another machine, or of a container host, through a page of Prometheus text."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Self
from urllib.parse import urlsplit

from ollamalab.errors import SettingsError
from ollamalab.gpu.prometheus import read_page
from ollamalab.gpu.values import Readings

# No proxies, whatever the environment says, and no redirects: a page is where it was said to be.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_TIMEOUT_S = 2.0
_PAGE_BYTES = 16 * 2**20

#: Not asked more often: exporters renew their figures every second at best.
_EVERY_S = 0.5


class PrometheusSampler:
    """Reads a DCGM exporter, ``ollamalab monitor --serve``, or any page that repeats their metrics.

    Sources and values as ``GpuSampler``. DCGM's exporter answers with what it collected up to 30 s before
    (``--collect-interval``), and so does every figure here.

    Attributes:
        notes: When the page could not be read, and that it can be again.
        names: Source to the product's name.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Prepare; nothing is asked yet.

        Args:
            url: Of the page; without a path it is ``/metrics``.
            clock: Monotonic seconds.

        Raises:
            SettingsError: Not an address.
        """
        self.notes: list[str] = []
        self.names: dict[str, str] = {}
        self.url = _page_url(url)
        self._clock = clock
        self._due_s = float("-inf")
        self._trouble = ""

    def read(self) -> Readings:
        """Return the values of each GPU, twice a second at most; nothing while the page cannot be read."""
        now_s = self._clock()
        if now_s < self._due_s:
            return {}
        self._due_s = now_s + _EVERY_S
        try:
            found, self.names = read_page(self._page())
            trouble = "" if found else f"{self.url} tells no GPU: it has no metric of DCGM's or of ours"
        except (OSError, http.client.HTTPException, ValueError) as error:
            found, trouble = {}, f"{self.url} cannot be read ({_reason(error)}); it is asked again"
        if trouble != self._trouble:
            self.notes.append(trouble or f"{self.url} can be read again")
        self._trouble = trouble
        return found

    def _page(self) -> str:
        with _opener.open(self.url, timeout=_TIMEOUT_S) as reply:
            body = reply.read(_PAGE_BYTES + 1)
        if len(body) > _PAGE_BYTES:
            raise ValueError(f"more than {_PAGE_BYTES >> 20} MiB")
        return str(body, "utf-8")

    def close(self) -> None:
        """Do nothing: no connection is kept."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _page_url(text: str) -> str:
    example = "write for example http://gpu2:9400/metrics"
    try:
        parts = urlsplit(text.strip())
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise SettingsError(f"{text!r} is not an address ({error}); {example}") from error
    if parts.username is not None:  # its password would end up in notes
        raise SettingsError(f"address of {parts.hostname}: leave out the user name; {example}")
    if not is_usable:
        raise SettingsError(f"{text!r} is not the address of a page of metrics; {example}")
    return parts._replace(path=parts.path.rstrip("/") or "/metrics", fragment="").geturl()


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        with error:
            return f"{error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(getattr(cause, "strerror", None) or cause or type(error).__name__)
