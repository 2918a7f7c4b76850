"""What is asked of a server: to load a model, and which are loaded.

Hanging up aborts a load, so nothing here has a time limit: that is for the upstream to have, and it
should be a long one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import msgspec

from ollamalab.errors import BadReply, ModelNotFound, UpstreamRejected
from ollamalab.protocol.loaded import LoadedModel, loaded_models
from ollamalab.protocol.upstream import Request, Upstream
from ollamalab.warmup.preload import Preload

_OK, _BAD_REQUEST, _NOT_FOUND = 200, 400, 404
_CANNOT_GENERATE = "does not support generate"


async def send_preload(upstream: Upstream, preload: Preload) -> None:
    """Load a model, or renew its stay; return once it is in memory.

    Args:
        upstream: The server.
        preload: What to load. If it turns out that the model only makes vectors, it is loaded so.

    Raises:
        ModelNotFound: The server does not have it.
        UpstreamRejected: The server refused, or the load failed.
        UpstreamError: No good answer came.
    """
    status, _headers, body = await _exchange(upstream, preload.request())
    if status == _BAD_REQUEST and not preload.is_embedding and _CANNOT_GENERATE in _error_text(body):
        await send_preload(upstream, replace(preload, is_embedding=True))
    elif status == _NOT_FOUND:
        raise ModelNotFound(
            f"{_error_text(body)}; `ollama list` shows what the server has, "
            f"`ollama pull {preload.model}` fetches more"
        )
    elif status != _OK:
        text = f"the server answered {status} to the load of {preload.model}: {_error_text(body)}"
        raise UpstreamRejected(text, status=status)


async def list_loaded(upstream: Upstream) -> tuple[tuple[LoadedModel, ...], Mapping[str, str]]:
    """Return the models in memory, and the headers of the answer, which tell the server's time.

    Raises:
        UpstreamError: No good answer came.
    """
    status, headers, body = await _exchange(upstream, Request(method="GET", path="/api/ps"))
    if status != _OK:
        raise UpstreamRejected(f"the server answered {status} to /api/ps: {_error_text(body)}", status=status)
    return loaded_models(body), headers


async def _exchange(upstream: Upstream, request: Request) -> tuple[int, Mapping[str, str], bytes]:
    """Return status, headers and body."""
    async with await upstream.send(request) as reply:
        body = b"".join([chunk async for chunk in reply.chunks()])
        return reply.status, reply.headers, body


def _error_text(body: bytes) -> str:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadReply(f"the answer is not JSON ({error}); is it an Ollama server?") from error
    return str(value.get("error", "no reason given")) if isinstance(value, dict) else "no reason given"
