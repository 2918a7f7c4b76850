"""Rules about models in memory: where they are, how much context they hold, how long they stay."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from ollamalab.doctor.inventory import Finding, Inventory, LoadedNow, Unread, variable
from ollamalab.protocol.durations import parse_lenient_duration_s

_GIB = 2**30

#: A context counts as larger than needed from this many times of what was seen to be used ...
_SPARE = 8
#: ... if its cache is at least this large, or layers had to go to the CPU.
_LEAST_CACHE_BYTES = _GIB
#: Less than this saves nothing that matters.
_SMALL_CONTEXT_TOKENS = 2048

#: Shorter than people think between two questions.
_SHORT_KEEP_ALIVE_S = 60.0


def check_placement(inventory: Inventory) -> Iterator[Finding]:
    """Find models that are not wholly on the GPU although there is one."""
    has_gpu = inventory.is_local and bool(inventory.gpus["gpus"])
    for model in _loaded(inventory):
        # Without a GPU on this machine, or on a server elsewhere, all on the CPU may be as it should be.
        if model.size_vram_bytes >= model.size_bytes or not (model.size_vram_bytes or has_gpu):
            continue
        share = model.size_vram_bytes / model.size_bytes
        yield Finding(
            rule="partly-on-cpu",
            evidence=f"{model.name}: {_gib(model.size_vram_bytes)} of {_gib(model.size_bytes)} are on the "
            f"GPU ({share:.0%})",
            consequence="Every token waits for the layers on the CPU, which are many times slower",
            fix="a smaller context or quantisation, OLLAMA_KV_CACHE_TYPE=q8_0 with flash attention, fewer "
            "slots, or fewer other models on the GPU",
        )


def check_context(inventory: Inventory) -> Iterator[Finding]:
    """Find contexts much larger than what the requests seen use of them, where that costs memory."""
    for model in _loaded(inventory):
        engine, context = model.engine, model.context_tokens
        if engine is None or engine.prompt_tokens is None or not context:
            continue
        if engine.answer_tokens is None or model.cache_bytes_per_token is None:
            continue
        used = engine.prompt_tokens + engine.answer_tokens
        cache_bytes = model.cache_bytes_per_token * context * engine.slots
        is_split = 0 < model.size_vram_bytes < model.size_bytes
        if used * _SPARE > context or not (cache_bytes >= _LEAST_CACHE_BYTES or is_split):
            continue
        enough = max(_SMALL_CONTEXT_TOKENS, _next_power(2 * used))
        if enough >= context:
            continue
        yield Finding(
            rule="large-context",
            evidence=f"{model.name}: {context} tokens for each of {_slots(engine.slots)}, of which the last "
            f"requests could use {used} (prompt {engine.prompt_tokens}, answer {engine.answer_tokens})",
            consequence=f"The cache for it takes {_gib(cache_bytes)} at f16, which layers, slots or other "
            "models could have",
            fix=f"num_ctx={enough}, or OLLAMA_CONTEXT_LENGTH={enough}, if these requests are typical",
        )


def check_keep_alive(inventory: Inventory) -> Iterator[Finding]:
    """Find keep-alives so short that a model is unloaded between requests."""
    text = variable(inventory, "OLLAMA_KEEP_ALIVE")
    stay_s = parse_lenient_duration_s(text, default_s=_SHORT_KEEP_ALIVE_S)
    # A bare number is a mistaken unit, for which there is a rule of its own.
    if stay_s < _SHORT_KEEP_ALIVE_S and (not text.isdigit() or not stay_s):
        yield Finding(
            rule="short-keep-alive",
            evidence=f"OLLAMA_KEEP_ALIVE={text} in the environment of the server",
            consequence=f"A request that comes {stay_s:g} s after the last one waits for the model to load",
            fix="OLLAMA_KEEP_ALIVE=30m, or -1 for ever; a request's keep_alive wins over it",
        )
    for name, loads in _loads_seen(inventory).items():
        if loads > 1:
            yield Finding(
                rule="unloaded-between-requests",
                evidence=f"{name} was loaded {loads} times in {_watched_s(inventory):.0f} s of watching",
                consequence="Each time the first request waits for the load",
                fix="a longer keep_alive; if another model took its place, OLLAMA_MAX_LOADED_MODELS or "
                "more memory",
            )


def check_thrash(inventory: Inventory) -> Iterator[Finding]:
    """Find models that are loaded again and again because clients ask for different contexts."""
    if isinstance(inventory.watch, Unread):
        return
    seen: dict[str, list[int]] = {}
    for sighting in inventory.watch:
        for name, context in sighting.contexts.items():
            contexts = seen.setdefault(name, [])
            if context is not None and contexts[-1:] != [context]:
                contexts.append(context)
    for name, contexts in seen.items():
        if len(contexts) > 1:
            yield Finding(
                rule="context-thrash",
                evidence=f"{name} had a context of {', then '.join(map(str, contexts))} tokens within "
                f"{_watched_s(inventory):.0f} s",
                consequence="Each change of num_ctx loads the model again and empties its cache",
                fix=f"give every client the same num_ctx, {max(contexts)} for example, or none and "
                f"OLLAMA_CONTEXT_LENGTH={max(contexts)}",
            )


def check_slots(inventory: Inventory) -> Iterator[Finding]:
    """Find engines with one slot although more were asked for."""
    text = variable(inventory, "OLLAMA_NUM_PARALLEL")
    if text == "0":
        yield Finding(
            rule="one-slot",
            evidence="OLLAMA_NUM_PARALLEL=0",
            consequence="It means 1, not automatic: requests for one model are served one after the other",
            fix="OLLAMA_NUM_PARALLEL=4, or what `ollamalab run 07_parallel_slots` finds best",
        )
    if not text.isdigit() or int(text) < 2:
        return
    for model in _loaded(inventory):
        if model.engine is not None and model.engine.slots == 1:
            yield Finding(
                rule="one-slot",
                evidence=f"OLLAMA_NUM_PARALLEL={text}, and the engine of {model.name} has 1 slot",
                consequence="Requests for it are served one after the other: Ollama gives embedding models "
                "and some families (qwen3vl, qwen35, qwen3next, lfm2, nemotron_h, mllama) one slot",
                fix="a model of another family, or several servers behind `ollamalab serve`",
            )


def _loaded(inventory: Inventory) -> tuple[LoadedNow, ...]:
    return () if isinstance(inventory.loaded, Unread) else inventory.loaded


def _loads_seen(inventory: Inventory) -> dict[str, int]:
    """Return how often each model appeared, the first sighting included."""
    if isinstance(inventory.watch, Unread) or not inventory.watch:
        return {}
    loads = dict.fromkeys(inventory.watch[0].contexts, 1)
    for before, after in pairwise(inventory.watch):
        for name in after.contexts.keys() - before.contexts.keys():
            loads[name] = loads.get(name, 0) + 1
    return loads


def _watched_s(inventory: Inventory) -> float:
    watch = inventory.watch
    return 0.0 if isinstance(watch, Unread) else watch[-1].at_s - watch[0].at_s


def _next_power(tokens: int) -> int:
    return int(1 << (tokens - 1).bit_length())


def _slots(count: int) -> str:
    return f"{count} slot" + ("s" if count > 1 else "")


def _gib(size_bytes: float) -> str:
    return f"{size_bytes / _GIB:.1f} GiB"
