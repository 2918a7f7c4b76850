"""``POST /api/show``: all that a model file says of itself."""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web

from ollamalab.embedded.listing import details, json_response
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.reading import read_body
from ollamalab.embedded.service import SERVICE
from ollamalab.errors import RequestRefused, SettingsError
from ollamalab.protocol.bodies import model_not_found
from ollamalab.protocol.durations import local_stamp
from ollamalab.protocol.names import parse_name
from ollamalab.protocol.requests import ShowRequest

_BAD_REQUEST = 400


async def show(request: web.Request) -> web.Response:
    """Answer ``POST /api/show``."""
    body = await read_body(request, ShowRequest)
    model = await find_shown(request, body.model or body.name)
    info = await asyncio.to_thread(model.model_info, verbose=body.verbose)
    return json_response(description(model, info, system=body.system))


async def find_shown(request: web.Request, name: str) -> ModelFile:
    """Return the model to show; unlike elsewhere an unknown one is called by its complete name.

    Raises:
        RequestRefused: No such model.
        ModelError: Its file cannot be used.
    """
    no_model = RequestRefused(_BAD_REQUEST, "model is required")
    return await request.app[SERVICE].find(name, if_empty=no_model, absent=model_not_found(_short(name)))


def description(model: ModelFile, info: dict[str, Any], *, system: str = "") -> dict[str, Any]:
    """Return the answer to a show request.

    Args:
        model: What to show.
        info: Its ``model_info``.
        system: A system prompt that the request would like to see in the Modelfile.
    """
    said = {"system": system} if system else {}
    return {
        "modelfile": _modelfile(model, system),
        "template": model.metadata.chat_template or "{{ .Prompt }}",
        **said,
        "details": details(model),
        "model_info": info,
        "tensors": [
            {"name": tensor.name, "type": tensor.type, "shape": tensor.shape}
            for tensor in model.metadata.tensors
        ],
        "capabilities": model.metadata.capabilities,
        "modified_at": local_stamp(model.modified_ns),
    }


def _modelfile(model: ModelFile, system: str) -> str:
    lines = [f"# {model.name.short}", f"FROM {model.path}", "TEMPLATE {{ .Prompt }}"]
    if system:
        lines.append(f"SYSTEM {system}")
    return "\n".join(lines) + "\n"


def _short(name: str) -> str:
    try:
        return parse_name(name).short
    except SettingsError:
        return name
