"""Endpoints that change models: this server has them by file, so all but a harmless pull is refused."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from ollamalab.embedded.dialect import NDJSON_TYPE
from ollamalab.embedded.listing import json_response
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.reading import read_body
from ollamalab.embedded.service import SERVICE
from ollamalab.errors import RequestRefused
from ollamalab.protocol.bodies import error_body
from ollamalab.protocol.requests import ModelRequest

_OK, _BAD_REQUEST, _NOT_FOUND, _INTERNAL_ERROR, _NOT_IMPLEMENTED = 200, 400, 404, 500, 501

UNCHANGEABLE = (
    "this embedded server does not change models; use `ollamalab models fetch` and "
    "`ollamalab models derive`, or start it with `--model PATH`"
)
NO_DOWNLOAD = (
    "pull model manifest: file does not exist; this embedded server downloads nothing: "
    "`ollamalab models fetch` brings smollm2:135m"
)


async def pull(request: web.Request) -> web.Response:
    """Answer ``POST /api/pull``: a model that is there has been pulled, any other cannot be.

    As in Ollama, a pull that fails says so in its stream, with status 200.
    """
    body = await read_body(request, ModelRequest)
    no_model = RequestRefused(_BAD_REQUEST, "invalid model name")
    steps: list[dict[str, Any]]
    try:
        model = await request.app[SERVICE].find(body.model or body.name, if_empty=no_model)
        steps, status = _pulled(model), _OK
    except RequestRefused as error:
        if error.status != _NOT_FOUND:
            raise
        steps, status = [{"status": "pulling manifest"}, error_body(NO_DOWNLOAD)], _INTERNAL_ERROR
    if not body.stream:
        return json_response(steps[-1], status=status)
    lines = b"".join(msgspec.json.encode(step) + b"\n" for step in steps)
    return web.Response(body=lines, headers={"Content-Type": NDJSON_TYPE})


async def refuse(_request: web.Request) -> web.Response:
    """Answer what cannot be done here."""
    raise RequestRefused(_NOT_IMPLEMENTED, UNCHANGEABLE)


def _pulled(model: ModelFile) -> list[dict[str, Any]]:
    layer = {
        "status": f"pulling {model.digest[:12]}",
        "digest": f"sha256:{model.digest}",
        "total": model.size_bytes,
        "completed": model.size_bytes,
    }
    ends = ("verifying sha256 digest", "writing manifest", "success")
    return [{"status": "pulling manifest"}, layer, *({"status": step} for step in ends)]
