"""``POST /api/generate``: a prompt is finished here and goes to llama.cpp's completion endpoint."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from ollamalab.embedded import inference
from ollamalab.embedded.answer import send_answer, send_bare
from ollamalab.embedded.bodies import COMPLETION_PATH, chat_body, completion_body
from ollamalab.embedded.dialect import Dialect, OllamaGenerate
from ollamalab.embedded.engine import Engine
from ollamalab.embedded.events import CompletionReader
from ollamalab.embedded.gotemplate import render_template
from ollamalab.embedded.inference import EngineCall, Stopwatch
from ollamalab.embedded.models import ModelFile
from ollamalab.embedded.prompts import check_schema, detokenize, fitted_prompt, render
from ollamalab.embedded.reading import (
    STREAMING,
    check_top_logprobs,
    read_body,
    read_options,
    read_schema,
)
from ollamalab.embedded.service import SERVICE, full_name, think_mode
from ollamalab.errors import RequestRefused, SettingsError
from ollamalab.protocol.bodies import model_not_found
from ollamalab.protocol.options import Options
from ollamalab.protocol.requests import GenerateRequest, Message

_BAD_REQUEST, _NOT_FOUND = 400, 404


async def generate(request: web.Request) -> web.StreamResponse:
    """Answer ``POST /api/generate``."""
    watch = Stopwatch.start()
    body = await read_body(request, GenerateRequest)
    # Tokens of prompt and answer go into the last line, except for raw prompts.
    return await answer_generate(request, body, OllamaGenerate(body.model), watch, with_context=not body.raw)


async def answer_generate(
    request: web.Request,
    body: GenerateRequest,
    dialect: Dialect,
    watch: Stopwatch,
    *,
    with_context: bool = False,
) -> web.StreamResponse:
    """Answer a generate request in any dialect.

    Raises:
        RequestRefused: It cannot be answered.
        QueueFull: Too many wait to be scheduled.
        EngineError: The model cannot be loaded, or its engine died before the first byte.
    """
    service = request.app[SERVICE]
    check_top_logprobs(body.top_logprobs)
    no_model = RequestRefused(_NOT_FOUND, model_not_found(""))
    model = await service.find(body.model, if_empty=no_model)
    if not body.prompt and body.keep_alive == 0:
        await service.scheduler.unload(model)
        return send_bare(dialect, "unload", stream=body.stream)
    if body.raw and (body.template or body.system or body.context):
        raise RequestRefused(_BAD_REQUEST, "raw mode does not support template, system, or context")
    think = think_mode(model, body.think, name=body.model)
    if "completion" not in model.metadata.capabilities:
        raise RequestRefused(_BAD_REQUEST, f'"{body.model}" does not support generate')
    if body.suffix:
        # Filling in needs a Go template that knows ``.Suffix``; a bare GGUF file has none.
        raise RequestRefused(_BAD_REQUEST, f"{full_name(model.name)} does not support insert")
    options = read_options(body.options)

    async with service.lease(model, options, body.keep_alive, shift=body.shift) as lease:
        load_ns = watch.elapsed_ns()
        if not body.prompt:
            return send_bare(dialect, "load", stream=body.stream)
        engine = lease.engine
        schema = read_schema(body.format)
        if schema:
            await check_schema(engine, schema)
        request[STREAMING] = body.stream
        prompt = await _finished_prompt(engine, model, body, options, think)
        asked: str | list[int] | dict[str, Any] = prompt
        if body.images:
            asked = {"prompt_string": prompt, "multimodal_data": body.images}
        elif body.truncate:
            adds_bos = bool(model.metadata.fields.get("tokenizer.ggml.add_bos_token"))
            asked = await fitted_prompt(engine, prompt, num_keep=options.num_keep, adds_bos=adds_bos)
        engine_body = completion_body(
            asked,
            options,
            num_ctx=engine.load.num_ctx,
            schema=schema,
            logprobs=body.logprobs,
            top_logprobs=body.top_logprobs,
        )
        call = EngineCall(
            path=COMPLETION_PATH,
            body=engine_body,
            reader=CompletionReader(with_alternatives=body.top_logprobs > 0),
            context_prompt=prompt if with_context else None,
        )
        parts = inference.generate(lease, call, watch, load_ns=load_ns)
        return await send_answer(request, dialect, parts, stream=body.stream)


async def _finished_prompt(
    engine: Engine, model: ModelFile, body: GenerateRequest, options: Options, think: bool | str | None
) -> str:
    """Return what the model is to continue, the earlier ``context`` in front of it.

    Raises:
        RequestRefused: A template cannot be rendered, or the context is none.
    """
    if body.raw:
        return body.prompt
    if body.template:
        try:
            fields = {"System": body.system, "Prompt": body.prompt, "Response": ""}
            prompt = render_template(body.template, fields)
        except SettingsError as error:
            raise RequestRefused(_BAD_REQUEST, str(error)) from error
    elif model.metadata.chat_template is None:
        prompt = body.prompt  # Ollama's template for a model without one is {{ .Prompt }}
    else:
        messages = [Message(role="system", content=body.system)] if body.system else []
        messages.append(Message(role="user", content=body.prompt))
        chat = chat_body(messages, options, num_ctx=engine.load.num_ctx, think=think)
        prompt = await render(engine, chat)
    if body.context is None:
        return prompt
    return await detokenize(engine, body.context) + prompt
