"""Ollama's environment variables: those there are, those there were, and those that never were.

Ollama ignores a variable that it does not know, without a word. Source: ``envconfig/config.go`` of v0.33 and
its history.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

#: Variables of v0.33 that its server names when it starts.
NAMED_AT_START = frozenset(
    f"OLLAMA_{name}"
    for name in (
        *("CONTEXT_LENGTH", "DEBUG", "DEBUG_LOG_REQUESTS", "EDITOR", "FLASH_ATTENTION", "GO_TEMPLATE"),
        *("GPU_OVERHEAD", "HOST", "IGPU_ENABLE", "KEEP_ALIVE", "KV_CACHE_TYPE", "LLM_LIBRARY"),
        *("LOAD_TIMEOUT", "MAX_LOADED_MODELS", "MAX_QUEUE", "MAX_TRANSFER_STREAMS", "MODELS", "NOHISTORY"),
        *("NOPRUNE", "NO_CLOUD", "NUM_PARALLEL", "ORIGINS", "REMOTES", "SCHED_SPREAD", "VULKAN"),
    )
)

#: Variables that some part of Ollama reads without naming them.
_UNNAMED = frozenset(
    f"OLLAMA_{name}"
    for name in (
        *("AUTH", "EXPERIMENT", "CLOUD_BASE_URL", "LIBRARY_PATH", "AGENT_DISABLE_SHELL"),
        *("AGENT_DISABLE_WEBSEARCH", "APP_DB_PATH", "CORS", "DOT_COM_URL"),
    )
)

#: Variables of old guides, to what has become of them.
GONE: Mapping[str, str] = {
    "OLLAMA_NEW_ENGINE": "gone since Ollama 0.30, where llama-server runs every GGUF model",
    "OLLAMA_MULTIUSER_CACHE": "gone since Ollama 0.30, where llama-server picks the slot by its prefix",
    "OLLAMA_MAX_VRAM": "gone; LLAMA_ARG_FIT_TARGET, in MiB, keeps memory of each GPU free",
    "OLLAMA_TMPDIR": "gone; engines are no longer unpacked",
    "OLLAMA_RUNNERS_DIR": "gone; engines lie beside the program, in lib/ollama",
    "OLLAMA_INTEL_GPU": "gone; see OLLAMA_VULKAN and OLLAMA_IGPU_ENABLE",
    "OLLAMA_NEW_ESTIMATES": "gone; since Ollama 0.30 llama-server fits layers by itself",
    "OLLAMA_NUM_GPU": "never was; send the option num_gpu with requests, or set it in the Modelfile",
    "OLLAMA_NUM_THREAD": "never was; send the option num_thread with requests",
    "OLLAMA_NUM_THREADS": "never was; send the option num_thread with requests",
    "OLLAMA_BATCH_SIZE": "never was; send the option num_batch with requests",
    "OLLAMA_ENGINE": "never was; Ollama has one engine for GGUF models",
}

_FIRST_WITH_LLAMA_SERVER = (0, 30)

#: Names only 0.30 took away; an older server still heeds them.
_GONE_WITH_LLAMA_SERVER = {"OLLAMA_NEW_ENGINE", "OLLAMA_MULTIUSER_CACHE", "OLLAMA_NEW_ESTIMATES"}

# level=INFO msg="server config" env="map[OLLAMA_DEBUG:INFO OLLAMA_HOST:http://127.0.0.1:11434 ...]"
_CONFIG_LINE = re.compile(r'msg="server config" env="map\[(.*)\]"')
# Values may hold blanks and colons, but no capital name with a colon after a blank.
_NAME = re.compile(r"(?:^| )([A-Z][A-Z0-9_]*|https?_proxy|no_proxy):")


def has_llama_server(version: str) -> bool:
    """Whether an Ollama of this version runs its models in ``llama-server``: since v0.30."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None:
        return True
    number = (int(numbers[1]), int(numbers[2]))
    # 0.0 is a build from source, most likely a new one.
    return number == (0, 0) or number >= _FIRST_WITH_LLAMA_SERVER


def announced_variables(log: str) -> dict[str, str] | None:
    """Return the variables that a server names when it starts, each with the value it understood.

    Args:
        log: Its output, from the beginning.

    Returns:
        None if it names none.
    """
    line = _CONFIG_LINE.search(log)
    if line is None:
        return None
    _, *parts = _NAME.split(line[1])
    return dict(zip(parts[::2], parts[1::2], strict=True))


def unknown_variables(
    names: Iterable[str], *, version: str, announced: Iterable[str] | None = None
) -> dict[str, str]:
    """Return which of these ``OLLAMA_*`` variables a server ignores, each with the reason.

    Args:
        names: Names of variables; others than ``OLLAMA_*`` are nobody's business here.
        version: Of the server.
        announced: What it names at its start; None if that cannot be read. Then only what is known to be
            gone is returned: a newer Ollama may have variables of which this table does not know.
    """
    listed = None if announced is None else _UNNAMED.union(announced)
    unknown = {}
    for name in sorted(names):
        if not name.startswith("OLLAMA_"):
            continue
        if listed is not None:
            if name not in listed:
                unknown[name] = GONE.get(name, f"Ollama {version} has no such variable")
        elif name in GONE and (has_llama_server(version) or name not in _GONE_WITH_LLAMA_SERVER):
            unknown[name] = GONE[name]
    return unknown
