"""One GET for JSON, blocking: for samplers, which run in a thread, and for start-up checks."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from ollamalab.errors import BadReply, UpstreamTimeout, UpstreamUnavailable

# No proxies, whatever the environment says: a measured server is reached directly.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get_json(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Any:
    """Return the JSON that a GET gives.

    Args:
        url: The whole address.
        timeout_s: For connecting, and for each read.
        headers: Sent with it, such as ``Authorization``; not to where a redirect leads.

    Raises:
        UpstreamUnavailable: No connection.
        UpstreamTimeout: No answer in time.
        BadReply: Another status than 200, or not JSON.
    """
    request = urllib.request.Request(url)
    for name, value in (headers or {}).items():
        request.add_unredirected_header(name, value)
    try:
        with _opener.open(request, timeout=timeout_s) as reply:
            return json.load(reply)
    except urllib.error.HTTPError as error:
        with error:
            raise BadReply(f"{url} answered {error.code} {error.reason}", url=url) from error
    except TimeoutError as error:
        raise UpstreamTimeout(
            f"no answer from {url} in {timeout_s:g} s", url=url, after_s=timeout_s
        ) from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, TimeoutError):
            text = f"no connection to {url} in {timeout_s:g} s"
            raise UpstreamTimeout(text, url=url, after_s=timeout_s) from error
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise UpstreamUnavailable(f"cannot connect to {url} ({reason})", url=url) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise BadReply(
            f"{url} did not answer with JSON ({type(error).__name__}: {error})", url=url
        ) from error
