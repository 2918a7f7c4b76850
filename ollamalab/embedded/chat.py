"""``POST /api/chat``: through llama.cpp's chat endpoint, which applies the model's own template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from ollamalab.embedded.answer import send_answer, send_bare
from ollamalab.embedded.bodies import CHAT_PATH, chat_body
from ollamalab.embedded.dialect import Dialect, OllamaChat
from ollamalab.embedded.events import ChatReader
from ollamalab.embedded.inference import EngineCall, Stopwatch, generate
from ollamalab.embedded.prompts import fitted_messages
from ollamalab.embedded.reading import (
    STREAMING,
    check_top_logprobs,
    read_body,
    read_options,
    read_schema,
)
from ollamalab.embedded.service import SERVICE, require, think_mode
from ollamalab.errors import RequestRefused
from ollamalab.protocol.requests import ChatRequest, Message

_BAD_REQUEST = 400


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer ``POST /api/chat``."""
    watch = Stopwatch.start()
    body = await read_body(request, ChatRequest)
    return await answer_chat(request, body, OllamaChat(body.model), watch)


async def answer_chat(
    request: web.Request, body: ChatRequest, dialect: Dialect, watch: Stopwatch
) -> web.StreamResponse:
    """Answer a chat in any dialect.

    Raises:
        RequestRefused: It cannot be answered.
        QueueFull: Too many wait to be scheduled.
        EngineError: The model cannot be loaded, or its engine died before the first byte.
    """
    service = request.app[SERVICE]
    check_top_logprobs(body.top_logprobs)
    no_model = RequestRefused(_BAD_REQUEST, "model is required")
    model = await service.find(body.model, if_empty=no_model)
    if not body.messages and body.keep_alive == 0:
        await service.scheduler.unload(model)
        return send_bare(dialect, "unload", stream=body.stream)
    think = think_mode(model, body.think, name=body.model)
    if "completion" not in model.metadata.capabilities:
        raise RequestRefused(_BAD_REQUEST, f'"{body.model}" does not support chat')
    if body.tools:
        require(model, "tools")
    options = read_options(body.options)

    async with service.lease(model, options, body.keep_alive, shift=body.shift) as lease:
        load_ns = watch.elapsed_ns()
        if not body.messages:
            return send_bare(dialect, "load", stream=body.stream)
        num_ctx = lease.engine.load.num_ctx

        schema = read_schema(body.format)
        request[STREAMING] = body.stream

        def body_of(messages: Sequence[Message]) -> Mapping[str, Any]:
            return chat_body(
                messages,
                options,
                num_ctx=num_ctx,
                tools=body.tools,
                schema=schema,
                think=think,
                logprobs=body.logprobs,
                top_logprobs=body.top_logprobs,
            )

        messages: Sequence[Message] = body.messages
        if body.truncate and len(messages) > 1:
            messages = await fitted_messages(lease.engine, messages, body_of, num_ctx=num_ctx)
        call = EngineCall(
            path=CHAT_PATH,
            body=body_of(messages),
            reader=ChatReader(with_alternatives=body.top_logprobs > 0),
        )
        parts = generate(lease, call, watch, load_ns=load_ns)
        return await send_answer(request, dialect, parts, stream=body.stream)
