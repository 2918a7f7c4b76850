"""What an Ollama server is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ollamalab.errors import SettingsError
from ollamalab.protocol.durations import FOREVER_S, parse_lenient_duration_s

KV_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What an Ollama server is started with; same names, units and defaults as ``OLLAMA_*``.

    Source: Ollama's ``envconfig/config.go``.
    """

    num_parallel: int = 1  #: slots per model; 0 counts as 1, as there
    max_loaded_models: int = 0  #: models in memory at once; 0 = 3 per GPU, at least 3
    max_queue: int = 512  #: requests that may wait to be scheduled; more get 503
    keep_alive_s: float = 300.0  #: after the last request; 0 unloads at once, FOREVER_S never
    load_timeout_s: float = 300.0  #: without progress of a load; 0 or less waits for ever
    context_length: int = 0  #: tokens per slot; 0 = Ollama's own choice, 4096 without a GPU
    flash_attention: bool | None = None  #: None = where the hardware supports it
    kv_cache_type: str = ""  #: "" is f16; q8_0, q4_0 ... apply to keys and values
    num_threads: int | None = None  #: per engine, not an ``OLLAMA_*``; None = engine's choice

    def __post_init__(self) -> None:
        for name in ("num_parallel", "max_loaded_models", "max_queue", "context_length"):
            value = getattr(self, name)
            if value < 0:
                raise SettingsError(f"{name} must be 0 or more, got {value!r}")
        if self.keep_alive_s < 0:
            raise SettingsError(f"keep_alive_s must be 0 or more, got {self.keep_alive_s!r}")
        if self.kv_cache_type and self.kv_cache_type not in KV_CACHE_TYPES:
            raise SettingsError(
                f"kv_cache_type must be one of {', '.join(KV_CACHE_TYPES)}, got {self.kv_cache_type!r}"
            )
        if self.num_threads is not None and self.num_threads < 1:
            raise SettingsError(f"num_threads must be 1 or more, got {self.num_threads!r}")

    @property
    def slots(self) -> int:
        """Parallel slots per model, at least 1."""
        return max(1, self.num_parallel)

    def environment(self) -> dict[str, str]:
        """Return the ``OLLAMA_*`` variables that give a server these settings."""
        forever = self.keep_alive_s >= FOREVER_S
        variables = {
            "OLLAMA_NUM_PARALLEL": str(self.num_parallel),
            "OLLAMA_MAX_LOADED_MODELS": str(self.max_loaded_models),
            "OLLAMA_MAX_QUEUE": str(self.max_queue),
            "OLLAMA_KEEP_ALIVE": "-1" if forever else f"{self.keep_alive_s:g}s",
            "OLLAMA_LOAD_TIMEOUT": f"{self.load_timeout_s:g}s",
            "OLLAMA_CONTEXT_LENGTH": str(self.context_length),
            "OLLAMA_KV_CACHE_TYPE": self.kv_cache_type,
        }
        if self.flash_attention is not None:
            variables["OLLAMA_FLASH_ATTENTION"] = "1" if self.flash_attention else "0"
        return variables


def server_settings_from_environment(environment: Mapping[str, str], **overrides: Any) -> ServerSettings:
    """Return the settings that ``OLLAMA_*`` variables ask for.

    As lax as Ollama: what cannot be read is the default, an unreadable boolean is true.

    Args:
        environment: Usually ``os.environ``.
        overrides: Fields of ``ServerSettings`` that win over it; None leaves a field alone.

    Raises:
        SettingsError: A value is readable but out of range.
    """
    default = ServerSettings()

    def text(name: str) -> str:
        return environment.get(f"OLLAMA_{name}", "").strip().strip("\"'")

    def count(name: str, fallback: int) -> int:
        return int(text(name)) if text(name).isdigit() else fallback

    def duration(name: str, fallback_s: float) -> float:
        return parse_lenient_duration_s(text(name), default_s=fallback_s) if text(name) else fallback_s

    flash = text("FLASH_ATTENTION").lower()
    settings = ServerSettings(
        num_parallel=count("NUM_PARALLEL", default.num_parallel),
        max_loaded_models=count("MAX_LOADED_MODELS", default.max_loaded_models),
        max_queue=count("MAX_QUEUE", default.max_queue),
        keep_alive_s=duration("KEEP_ALIVE", default.keep_alive_s),
        load_timeout_s=duration("LOAD_TIMEOUT", default.load_timeout_s),
        context_length=count("CONTEXT_LENGTH", default.context_length),
        flash_attention=flash not in ("0", "f", "false") if flash else None,
        kv_cache_type=text("KV_CACHE_TYPE").lower(),
    )
    return replace(settings, **{name: value for name, value in overrides.items() if value is not None})
