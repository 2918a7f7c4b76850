"""``POST /api/embed``, and ``/api/embeddings``, its older form."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from ollamalab.embedded.dialect import JSON_TYPE
from ollamalab.embedded.events import error_text
from ollamalab.embedded.inference import Stopwatch
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.prompts import detokenize, tokenize
from ollamalab.embedded.reading import read_body, read_options
from ollamalab.embedded.scheduler import Lease
from ollamalab.embedded.service import SERVICE
from ollamalab.errors import RequestRefused
from ollamalab.protocol.bodies import model_not_found, model_not_pulled
from ollamalab.protocol.requests import EmbeddingRequest, EmbedRequest

EMBEDDINGS_PATH = "/v1/embeddings"

INPUT_TOO_LONG = "the input length exceeds the context length"

_BAD_REQUEST, _NOT_FOUND = 400, 404
_TOO_LONG_MARKS = ("too large", "context size", "context length", "physical batch size", "available context")


async def embed(request: web.Request) -> web.Response:
    """Answer ``POST /api/embed``."""
    watch = Stopwatch.start()
    answer = await embed_texts(request, await read_body(request, EmbedRequest), watch)
    return web.Response(body=msgspec.json.encode(answer), headers={"Content-Type": JSON_TYPE})


async def embeddings(request: web.Request) -> web.Response:
    """Answer ``POST /api/embeddings``: one text, one vector, no metrics."""
    body = await read_body(request, EmbeddingRequest)
    service = request.app[SERVICE]
    no_model = RequestRefused(_BAD_REQUEST, "model is required")
    model = await service.find(body.model, if_empty=no_model, absent=model_not_pulled(body.model))
    vector: list[float] = []
    options = read_options(body.options)
    async with service.lease(model, options, body.keep_alive, embedding=True) as lease:
        if body.prompt:
            vector, _ = await _embedding(lease, body.prompt)
    return web.Response(body=msgspec.json.encode({"embedding": vector}), headers={"Content-Type": JSON_TYPE})


async def embed_texts(request: web.Request, body: EmbedRequest, watch: Stopwatch) -> dict[str, Any]:
    """Return the answer to an embed request, for ``/api`` as it stands.

    Raises:
        RequestRefused: It cannot be answered.
        QueueFull: Too many wait to be scheduled.
        EngineError: The model cannot be loaded, or its engine died.
    """
    service = request.app[SERVICE]
    texts = input_texts(body.input)
    no_model = RequestRefused(_NOT_FOUND, model_not_found(""))
    model = await service.find(body.model, if_empty=no_model, absent=model_not_pulled(body.model))
    options = read_options(body.options)
    async with service.lease(model, options, body.keep_alive, embedding=True) as lease:
        load_ns = watch.elapsed_ns()
        if not texts:
            return {"model": body.model, "embeddings": []}
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(_fitted_embedding(lease, model, text, truncate=body.truncate))
                    for text in texts
                ]
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from errors
    results = [task.result() for task in tasks]
    return {
        "model": body.model,
        "embeddings": [shortened_vector(vector, body.dimensions) for vector, _ in results],
        "total_duration": watch.elapsed_ns(),
        "load_duration": load_ns,
        "prompt_eval_count": sum(tokens for _, tokens in results),
    }


def input_texts(value: object) -> list[str]:
    """Return the texts that an ``input`` field holds; none for null and an empty text.

    Raises:
        RequestRefused: It is neither a text nor a list of texts; Ollama's words.
    """
    if value is None or value == "":
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RequestRefused(_BAD_REQUEST, "invalid input type")
    return texts


def normalised(vector: Sequence[float]) -> list[float]:
    """Return the vector with Euclidean length 1; one of zeros stays as it is.

    Raises:
        RequestRefused: It holds NaN or infinity; Ollama's words.
    """
    if not all(math.isfinite(value) for value in vector):
        raise RequestRefused(_BAD_REQUEST, "embedding contains NaN or Inf values")
    length = max(math.sqrt(math.fsum(value * value for value in vector)), 1e-12)
    return [value / length for value in vector]


def shortened_vector(vector: Sequence[float], dimensions: int) -> list[float]:
    """Return the normalised vector, cut to its first dimensions and normalised again if asked to."""
    whole = normalised(vector)
    return normalised(whole[:dimensions]) if 0 < dimensions < len(whole) else whole


def token_limit(model: ModelFile, tokens: Sequence[int], longest: int) -> int:
    """Return how many of a text's tokens fit, with room for those the tokenizer puts round it.

    Args:
        model: Says which token begins a text and which ends it.
        tokens: Of the text.
        longest: Tokens of an engine's context or batch, whichever is smaller.
    """
    metadata = model.metadata
    missing = (tokens[0] != metadata.bos_token_id) + (tokens[-1] != metadata.eos_token_id) if tokens else 0
    return longest - missing


async def _fitted_embedding(
    lease: Lease, model: ModelFile, text: str, *, truncate: bool
) -> tuple[list[float], int]:
    """Return vector and tokens of a text, its end cut off if it is too long."""
    load = lease.engine.load
    longest = min(load.num_ctx, load.batch_tokens, model.metadata.context_length or load.num_ctx)
    if len(text.encode()) + 2 > longest:  # else it fits for sure: a token has a byte or more
        tokens = await tokenize(lease.engine, text)
        limit = token_limit(model, tokens, longest)
        if len(tokens) > limit:
            if not truncate:
                raise RequestRefused(_BAD_REQUEST, INPUT_TOO_LONG)
            if limit <= 0:
                raise RequestRefused(_BAD_REQUEST, "input after truncation exceeds maximum context length")
            text = await detokenize(lease.engine, tokens[:limit])
    return await _embedding(lease, text)


async def _embedding(lease: Lease, text: str) -> tuple[list[float], int]:
    """Return vector and tokens of a text."""
    async with lease.engine.embedding_turn, lease.slot():
        status, reply = await lease.engine.post(EMBEDDINGS_PATH, {"input": text})
    answer = msgspec.json.decode(reply)
    if status >= _BAD_REQUEST:
        message = error_text(answer.get("error"))
        if any(mark in message.lower() for mark in _TOO_LONG_MARKS):
            raise RequestRefused(_BAD_REQUEST, INPUT_TOO_LONG)
        raise RequestRefused(status, message)
    return answer["data"][0]["embedding"], answer["usage"]["prompt_tokens"]
