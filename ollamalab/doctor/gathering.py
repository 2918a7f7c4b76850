"""Gathers the inventory: asks the server, looks at its processes, watches for a while, streams one answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from ollamalab import host
from ollamalab.client import OllamaClient
from ollamalab.doctor.inventory import (
    Disk,
    Engine,
    Inventory,
    LoadedNow,
    ServerProcess,
    Sighting,
    StoredModel,
    Streamed,
    Unread,
)
from ollamalab.doctor.processes import PROBE_TOKENS, find_engines, find_listener, is_local
from ollamalab.doctor.storage import driver_cache, read_speed
from ollamalab.errors import ModelNotFound, UpstreamError
from ollamalab.gpu import describe_gpus
from ollamalab.hosts import models_folder, weights_file
from ollamalab.protocol.names import parse_name

_LOOK_EVERY_S = 0.1


async def gather(
    url: str, *, watch_s: float, model: str | None = None, headers: Mapping[str, str] | None = None
) -> Inventory:
    """Return what is known of a server and of this machine.

    Loads nothing unless a model is named; one short answer is streamed from a loaded model, with the context
    that it has.

    Args:
        url: Of the server.
        watch_s: For how long loads and unloads are watched.
        model: Asked for a streamed answer; None for one that is loaded.
        headers: Sent with each request.

    Raises:
        ModelNotFound: The server lacks the model that was named.
    """
    is_here = await asyncio.to_thread(is_local, url)
    async with OllamaClient(url, headers=headers) as client:
        try:
            version: str | Unread = await client.version()
        except UpstreamError as error:
            version = Unread(str(error))
        inventory = await asyncio.to_thread(_of_this_machine, url, version, is_here)
        if isinstance(version, Unread):
            return inventory
        process = await _process(url, is_here=is_here)
        engines = await _engines(process, url)
        models = await _models(client)
        return replace(
            inventory,
            process=process,
            engines=engines,
            models=models,
            # Before the stream: it would be the last request that the slots have seen.
            loaded=await _loaded(client, process, engines),
            watch=await _watch(client, watch_s),
            streamed=await _streamed(client, model),
            disk=await asyncio.to_thread(_disk, process, models),
            driver_cache=process if isinstance(process, Unread) else driver_cache(process.environment),
        )


def _of_this_machine(url: str, version: str | Unread, is_here: bool) -> Inventory:
    """Return the inventory without what is still to be asked of the server."""
    unread = version if isinstance(version, Unread) else Unread("not asked yet")
    return Inventory(
        url=url,
        is_local=is_here,
        host=host.describe(),
        gpus=describe_gpus(),
        version=version,
        models=unread,
        loaded=unread,
        watch=unread,
        process=unread,
        engines=unread,
        disk=unread,
        driver_cache=unread,
        streamed=unread,
    )


async def _process(url: str, *, is_here: bool) -> ServerProcess | Unread:
    if not is_here:
        return Unread("the server runs on another machine; run `ollamalab doctor` there")
    return await asyncio.to_thread(find_listener, url)


async def _engines(process: ServerProcess | Unread, url: str) -> tuple[Engine, ...] | Unread:
    return process if isinstance(process, Unread) else await asyncio.to_thread(find_engines, process, url)


async def _models(client: OllamaClient) -> tuple[StoredModel, ...] | Unread:
    try:
        return tuple(
            StoredModel(
                name=str(entry["name"]),
                digest=entry.get("digest"),
                size_bytes=entry.get("size"),
                quantisation=(entry.get("details") or {}).get("quantization_level") or None,
            )
            for entry in await client.tags()
        )
    except UpstreamError as error:
        return Unread(str(error))


async def _loaded(
    client: OllamaClient, process: ServerProcess | Unread, engines: tuple[Engine, ...] | Unread
) -> tuple[LoadedNow, ...] | Unread:
    try:
        return tuple(
            [
                LoadedNow(
                    name=str(entry["name"]),
                    size_bytes=int(entry.get("size", 0)),
                    size_vram_bytes=int(entry.get("size_vram", 0)),
                    context_tokens=entry.get("context_length"),
                    expires_in_s=_expires_in_s(entry.get("expires_at")),
                    cache_bytes_per_token=cache_bytes_per_token(
                        (await client.show(entry["name"]))["model_info"]
                    ),
                    engine=_engine_of(entry["name"], process, engines),
                )
                for entry in await client.ps()
            ]
        )
    except (UpstreamError, KeyError, TypeError, ValueError) as error:
        return Unread(str(error))


def _expires_in_s(stamp: str | None) -> float | None:
    return None if stamp is None else datetime.fromisoformat(stamp).timestamp() - time.time()


def cache_bytes_per_token(info: Mapping[str, Any]) -> int | None:
    """Return what a token of context takes in the key and value cache at f16; None if it cannot be told.

    layers × key-value heads × (length of a key + length of a value) × 2 bytes.

    Args:
        info: A model's ``model_info``, as ``/api/show`` tells it.
    """
    kind = info.get("general.architecture")
    layers, heads = info.get(f"{kind}.block_count"), info.get(f"{kind}.attention.head_count")
    shared_heads = info.get(f"{kind}.attention.head_count_kv", heads)
    width = info.get(f"{kind}.embedding_length")
    # Models with layers of several kinds have lists here, which the server leaves out.
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(shared_heads, int)):
        return None
    if not (heads and isinstance(width, int)):
        return None
    length = width // heads
    key = info.get(f"{kind}.attention.key_length", length)
    value = info.get(f"{kind}.attention.value_length", length)
    return int(layers * shared_heads * (key + value) * 2)


def _engine_of(
    name: str, process: ServerProcess | Unread, engines: tuple[Engine, ...] | Unread
) -> Engine | None:
    """Return the engine of a model, by its name or by the file that its manifest names."""
    if isinstance(process, Unread) or isinstance(engines, Unread):
        return None
    file = _weights(process, name)
    for engine in engines:
        if engine.model == name or (engine.model_file and engine.model_file == str(file)):
            return engine
    return None


def _weights(process: ServerProcess, name: str) -> Path | None:
    folder = models_folder(process.environment)
    try:
        return None if folder is None else weights_file(folder, name)
    except PermissionError:
        return None


async def _watch(client: OllamaClient, watch_s: float) -> tuple[Sighting, ...] | Unread:
    sightings = []
    start_s = time.perf_counter()
    while True:
        try:
            listed = await client.ps()
        except UpstreamError as error:
            return Unread(str(error))
        now_s = time.perf_counter() - start_s
        contexts = {str(entry["name"]): entry.get("context_length") for entry in listed}
        sightings.append(Sighting(at_s=now_s, contexts=contexts))
        if now_s >= watch_s:
            return tuple(sightings)
        await asyncio.sleep(_LOOK_EVERY_S)


async def _streamed(client: OllamaClient, model: str | None) -> Streamed | Unread:
    """Stream one answer from a model: the one that was named, or one that is loaded.

    Raises:
        ModelNotFound: The server lacks the one that was named.
    """
    try:
        # With the context that it has: another one would load it anew.
        contexts = {entry["name"]: entry.get("context_length") for entry in await client.ps()}
        chosen = model or next(iter(contexts), None)
        if chosen is None:
            return Unread("no model is loaded; --model NAME loads one and streams from it")
        by_key = {parse_name(name).key: context for name, context in contexts.items()}
        context = by_key.get(parse_name(chosen).key)
        options = {"num_predict": PROBE_TOKENS, "temperature": 0} | ({"num_ctx": context} if context else {})
        answer = await client.generate(chosen, "Count from 1 to 100 in words.", options=options)
    except ModelNotFound:
        raise
    except UpstreamError as error:
        return Unread(str(error))
    times_s = answer.line_times_s
    return Streamed(
        model=chosen,
        lines=len(times_s),
        arrivals_s=times_s[-1] - times_s[0],
        eval_s=answer.final.get("eval_duration", 0) / 1e9,
    )


def _disk(process: ServerProcess | Unread, models: Sequence[StoredModel] | Unread) -> Disk | Unread:
    if isinstance(process, Unread):
        return process
    if isinstance(models, Unread):
        return models
    if process.name != "ollama":
        return Unread("the embedded server keeps its models in files of its own")
    folder = models_folder(process.environment)
    if folder is None:
        return Unread("the server's environment names neither OLLAMA_MODELS nor HOME")
    try:
        files = [file for model in models if (file := weights_file(folder, model.name)) and file.is_file()]
        largest = max(files, key=lambda file: file.stat().st_size, default=None)
    except PermissionError:
        return Unread(f"{folder} belongs to another user")
    return (
        Unread(f"no model's file was found in {folder}") if largest is None else read_speed(folder, largest)
    )
