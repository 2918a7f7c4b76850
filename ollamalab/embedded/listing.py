"""What there is and what is loaded: ``/api/tags``, ``/api/ps``, ``/api/version``, ``/lab/engines``."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any

import msgspec
from aiohttp import web

from ollamalab.embedded.dialect import JSON_TYPE
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.service import SERVICE
from ollamalab.errors import EngineError
from ollamalab.protocol.durations import local_stamp

#: The Ollama whose protocol is spoken; clients compare it with what they need.
PROTOCOL_VERSION = "0.33.0"


async def root(_request: web.Request) -> web.Response:
    """Answer ``GET /``."""
    return web.Response(text="Ollama is running")


async def version(_request: web.Request) -> web.Response:
    """Answer ``GET /api/version``."""
    return json_response({"version": PROTOCOL_VERSION})


async def tags(request: web.Request) -> web.Response:
    """Answer ``GET /api/tags``: the models there are, the newest first."""
    models = await asyncio.to_thread(request.app[SERVICE].store.list)
    return json_response({"models": [_tag(model) for model in models]})


async def ps(request: web.Request) -> web.Response:
    """Answer ``GET /api/ps``: the models in memory, the one that stays longest first."""
    running = request.app[SERVICE].scheduler.running()
    models = [
        {
            "name": each.model.name.short,
            "model": each.model.name.short,
            "size": each.size_bytes,
            "digest": each.model.digest,
            "details": details(each.model),
            "expires_at": local_stamp(each.expires_ns),
            "size_vram": each.size_vram_bytes,
            "context_length": each.context_length,
        }
        for each in running
    ]
    return json_response({"models": models})


async def engines(request: web.Request) -> web.Response:
    """Answer ``GET /lab/engines``, which is ours: each engine with its own account of its slots.

    Only to this machine: the addresses in it are of use nowhere else.
    """
    if not ipaddress.ip_address(request.remote or "0.0.0.0").is_loopback:
        raise web.HTTPNotFound
    found = []
    for engine in request.app[SERVICE].scheduler.engines():
        try:
            slots = await engine.slots()
        except EngineError:
            continue  # it ended meanwhile
        found.append({"model": engine.model.name.short, "pid": engine.pid, "url": engine.url, "slots": slots})
    return json_response(found)


def details(model: ModelFile) -> dict[str, Any]:
    """Return the ``details`` of a model."""
    family = model.metadata.architecture
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": model.metadata.parameter_size,
        "quantization_level": model.metadata.quantization_level,
    }


def json_response(value: object, *, status: int = 200) -> web.Response:
    """Return a response as Ollama writes JSON: no spaces, no newline at the end."""
    return web.Response(status=status, body=msgspec.json.encode(value), headers={"Content-Type": JSON_TYPE})


def _tag(model: ModelFile) -> dict[str, Any]:
    lengths = {
        "context_length": model.metadata.context_length,
        "embedding_length": model.metadata.embedding_length,
    }
    known = {name: length for name, length in lengths.items() if length is not None}
    return {
        "name": model.name.short,
        "model": model.name.short,
        "modified_at": local_stamp(model.modified_ns),
        "size": model.size_bytes,
        "digest": model.digest,
        "details": {**details(model), **known},
        "capabilities": model.metadata.capabilities,
    }
