"""What every route works with: the models there are, the scheduler, and the rules to ask them by."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from aiohttp import web

from ollamalab.embedded.load import LoadOptions
from ollamalab.embedded.models import ModelFile, ModelStore
from ollamalab.embedded.scheduler import Lease, Scheduler
from ollamalab.errors import ModelNotFound, RequestRefused, SettingsError
from ollamalab.protocol.bodies import model_not_found
from ollamalab.protocol.names import ModelName, parse_name
from ollamalab.protocol.options import Options, context_tokens
from ollamalab.settings import ServerSettings

#: Tokens of context per slot if nobody says otherwise; Ollama's choice without a large GPU.
DEFAULT_CONTEXT_TOKENS = 4096

_BAD_REQUEST, _NOT_FOUND = 400, 404


@dataclass(frozen=True)
class Service:
    """The parts of a running server.

    Attributes:
        store: Model files by name.
        scheduler: Loads them.
        settings: What the server was started with.
    """

    store: ModelStore
    scheduler: Scheduler
    settings: ServerSettings

    async def find(self, name: str, *, if_empty: RequestRefused, absent: str | None = None) -> ModelFile:
        """Return the model that a request names.

        Args:
            name: As the client wrote it.
            if_empty: What a request without a name is answered.
            absent: What a request for an unknown model is answered; None for the common words.

        Raises:
            RequestRefused: No such model, or no model name.
            ModelError: Its file cannot be used.
        """
        if not name:
            raise if_empty
        try:
            wanted = parse_name(name)
        except SettingsError as error:
            raise RequestRefused(_BAD_REQUEST, "invalid model name") from error
        try:
            # In a thread: the first look at a file hashes it. A thread costs each request 0.3 ms, though.
            known = self.store.recall(wanted)
            return known if known else await asyncio.to_thread(self.store.find, wanted)
        except ModelNotFound as error:
            raise RequestRefused(_NOT_FOUND, absent or model_not_found(name)) from error

    def lease(
        self,
        model: ModelFile,
        options: Options,
        keep_alive_s: float | None,
        *,
        shift: bool | None = None,
        embedding: bool = False,
    ) -> AbstractAsyncContextManager[Lease]:
        """Return the right to use a model, loaded as the request's options want it; enter it."""
        default_tokens = self.settings.context_length or DEFAULT_CONTEXT_TOKENS
        load = LoadOptions(
            num_ctx=context_tokens(
                options, default_tokens=default_tokens, trained_tokens=model.metadata.context_length
            ),
            num_parallel=self.settings.slots,
            num_batch=options.num_batch or None,
            num_gpu=options.num_gpu,
            main_gpu=options.main_gpu,
            use_mmap=options.use_mmap,
            num_thread=options.num_thread or self.settings.num_threads,
            shift=shift is not False,
            flash_attention=self.settings.flash_attention,
            kv_cache_type=self.settings.kv_cache_type,
            embedding=embedding,
        )
        is_embedding_only = model.metadata.is_embedding_only
        return self.scheduler.lease(model, load, keep_alive_s, embedding_only=is_embedding_only)


SERVICE = web.AppKey("service", Service)


def full_name(name: ModelName) -> str:
    """Return a model's name with registry and namespace, as messages about capabilities have it."""
    return f"{name.host}/{name.namespace}/{name.model}:{name.tag}"


def require(model: ModelFile, *capabilities: str) -> None:
    """Refuse a request for what its model cannot do.

    Raises:
        RequestRefused: A capability is missing; Ollama's words.
    """
    for capability in capabilities:
        if capability not in model.metadata.capabilities:
            raise RequestRefused(_BAD_REQUEST, f"{full_name(model.name)} does not support {capability}")


def think_mode(model: ModelFile, wanted: bool | str | None, *, name: str) -> bool | str | None:
    """Return how a model is to think; one that can does so unless told otherwise.

    Args:
        model: The model.
        wanted: The request's ``think``.
        name: The model's name as the client wrote it.

    Raises:
        RequestRefused: It cannot think and should; Ollama's words.
    """
    if model.metadata.is_thinking:
        return True if wanted is None else wanted
    if wanted:
        raise RequestRefused(_BAD_REQUEST, f'"{name}" does not support thinking')
    return wanted
