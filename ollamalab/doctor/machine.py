"""Rules about the machine and what lies between it and its clients: driver, compiled code, proxies."""

from __future__ import annotations

from collections.abc import Iterator

from ollamalab.doctor.inventory import Finding, Inventory, Unread

#: Backends of Ollama's that hold PTX only, so that the driver compiles them. Source: its CMakePresets.json.
_PTX_ONLY = "cuda_v13"

#: A stream is held if all its lines arrive in less than this share of the time in which they were made ...
_HELD_RATIO = 0.25
#: ... and there were enough of them, over long enough, to tell.
_LEAST_LINES = 8
_LEAST_EVAL_S = 0.05


def check_compiled_code(inventory: Inventory) -> Iterator[Finding]:
    """Find GPU code that the driver has to compile at the next load, or at every first load."""
    cache, engines = inventory.driver_cache, inventory.engines
    if isinstance(cache, Unread) or isinstance(engines, Unread):
        return
    if not any(_PTX_ONLY in engine.libraries for engine in engines):
        return
    if cache.is_off or not cache.size_bytes:
        why = "is turned off (CUDA_CACHE_DISABLE)" if cache.is_off else "is empty or missing"
        yield Finding(
            rule="ptx-only",
            evidence=f"An engine runs on {_PTX_ONLY}, which is PTX only, and the driver's cache "
            f"{cache.folder} {why}",
            consequence="The driver compiles the code again at the first load after each start of the "
            "container or machine, which takes long and is no property of the model",
            fix="keep the folder on a volume that persists, unset CUDA_CACHE_DISABLE, and count the first "
            "load ever apart from later ones",
        )


def check_persistence(inventory: Inventory) -> Iterator[Finding]:
    """Find GPUs whose driver is unloaded when nobody uses it."""
    for index, gpu in enumerate(inventory.gpus["gpus"]):
        if gpu.get("is_persistent") is False:
            yield Finding(
                rule="no-persistence",
                evidence=f"GPU {index} ({gpu['name']}) has persistence mode off",
                consequence="The driver starts anew whenever no process has the GPU open, which adds seconds "
                "to the first load",
                fix="`nvidia-persistenced`, or `nvidia-smi -pm 1` after each boot",
            )


def check_stream(inventory: Inventory) -> Iterator[Finding]:
    """Find something on the way that holds a stream back until it is complete."""
    streamed = inventory.streamed
    if isinstance(streamed, Unread):
        return
    if streamed.lines < _LEAST_LINES or streamed.eval_s < _LEAST_EVAL_S:
        return
    if streamed.arrivals_s < _HELD_RATIO * streamed.eval_s:
        yield Finding(
            rule="held-stream",
            evidence=f"{streamed.lines} lines that {streamed.model} made over {streamed.eval_s:.2f} s "
            f"arrived within {streamed.arrivals_s:.3f} s through {inventory.url}",
            consequence="Users see nothing until the answer is complete",
            fix="nginx: `proxy_buffering off;` (and no gzip) for Ollama's paths; other proxies: no buffering "
            "of application/x-ndjson and text/event-stream",
        )
