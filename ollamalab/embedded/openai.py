"""The routes under ``/v1``: OpenAI's requests, answered by the same code as Ollama's."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from ollamalab.embedded.chat import answer_chat
from ollamalab.embedded.embed import embed_texts
from ollamalab.embedded.generate import answer_generate
from ollamalab.embedded.inference import Stopwatch
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.openai_dialect import JSON_TYPE, OpenAIChat, OpenAICompletion
from ollamalab.embedded.reading import Unreadable, read_body
from ollamalab.embedded.service import SERVICE
from ollamalab.embedded.show import find_shown
from ollamalab.errors import SettingsError
from ollamalab.protocol.durations import NS_PER_S
from ollamalab.protocol.openai import (
    ChatCompletionRequest,
    CompletionRequest,
    EmbeddingsRequest,
    to_chat,
    to_embed,
    to_generate,
)
from ollamalab.protocol.requests import Body


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer ``POST /v1/chat/completions``."""
    watch = Stopwatch.start()
    asked = await _read(request, ChatCompletionRequest)
    try:
        body = to_chat(asked)
    except SettingsError as error:
        raise Unreadable(str(error)) from error
    dialect = OpenAIChat(body.model, include_usage=asked.stream_options.include_usage)
    return await answer_chat(request, body, dialect, watch)


async def completions(request: web.Request) -> web.StreamResponse:
    """Answer ``POST /v1/completions``."""
    watch = Stopwatch.start()
    asked = await _read(request, CompletionRequest)
    dialect = OpenAICompletion(asked.model, include_usage=asked.stream_options.include_usage)
    return await answer_generate(request, to_generate(asked), dialect, watch)


async def embeddings(request: web.Request) -> web.Response:
    """Answer ``POST /v1/embeddings``."""
    watch = Stopwatch.start()
    asked = await _read(request, EmbeddingsRequest)
    try:
        body = to_embed(asked)
    except SettingsError as error:
        raise Unreadable(str(error)) from error
    answer = await embed_texts(request, body, watch)
    is_packed = asked.encoding_format.lower() == "base64"
    data = [
        {"object": "embedding", "embedding": packed(vector) if is_packed else vector, "index": index}
        for index, vector in enumerate(answer["embeddings"])
    ]
    tokens = answer["prompt_eval_count"]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return _response({"object": "list", "data": data, "model": asked.model, "usage": usage})


async def models(request: web.Request) -> web.Response:
    """Answer ``GET /v1/models``; ``data`` is null without models, as in Ollama."""
    listed = await asyncio.to_thread(request.app[SERVICE].store.list)
    data = [_model(model, model.name.short) for model in listed]
    return _response({"object": "list", "data": data or None})


async def model(request: web.Request) -> web.Response:
    """Answer ``GET /v1/models/{model}``."""
    name = request.match_info["model"]
    return _response(_model(await find_shown(request, name), name))


async def _read(request: web.Request, kind: type[Body]) -> Body:
    """Return the body of a request.

    Raises:
        Unreadable: It is not what it should be; Ollama's words.
    """
    if not await request.read():
        raise Unreadable("EOF")  # /api says "missing request body"
    return await read_body(request, kind)


def packed(vector: Sequence[float]) -> str:
    """Return a vector as base64 of little-endian 32-bit floats."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def _model(file: ModelFile, name: str) -> dict[str, Any]:
    created = file.modified_ns // NS_PER_S
    return {"id": name, "object": "model", "created": created, "owned_by": file.name.namespace}


def _response(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", headers={"Content-Type": JSON_TYPE})
