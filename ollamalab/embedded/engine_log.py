"""What an engine's log tells: how much memory it took, and why it failed.

llama.cpp's lines read ``0.00.278.474 I load_tensors: CPU_Mapped model buffer size = 92.10 MiB``:
time, level (I, W, E, D), text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_LOAD_LOG_BYTES = 1024 * 1024
_TAIL_BYTES = 16 * 1024

_BUFFER = re.compile(
    r"(?P<part>\w+):\s+(?P<device>\S+)\s+(?P<kind>model|KV|compute|output|RS) buffer size\s*=\s*"
    r"(?P<mib>[\d.]+)\s*MiB"
)
# after the level comes who speaks: "llama_model_load: ", "srv    load_model: "
_ERROR = re.compile(r"^(?:[\d.]+ E (?:\w+ +)?\S+: |error: ?)(?P<text>.+)$", re.MULTILINE)


@dataclass(frozen=True)
class MemoryUse:
    """What a loaded model takes: weights, context and work space.

    Attributes:
        size_bytes: In all.
        size_vram_bytes: On GPUs; 0 without one.
    """

    size_bytes: int
    size_vram_bytes: int


class EngineLog:
    """Keeps the whole log while a model loads, and the last few lines after that."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._limit_bytes = _LOAD_LOG_BYTES
        self.on_output: Callable[[], None] | None = None  #: called for each piece that comes

    def feed(self, chunk: bytes) -> None:
        """Take what the engine wrote."""
        self._text += chunk
        if len(self._text) > 2 * self._limit_bytes:
            del self._text[: -self._limit_bytes]
        if self.on_output:
            self.on_output()

    def forget_loading(self) -> None:
        """Keep only the end from now on."""
        self._limit_bytes = _TAIL_BYTES
        del self._text[: -self._limit_bytes]

    @property
    def text(self) -> str:
        """What is kept of it."""
        return self._text.decode(errors="replace")


def memory_use(log: str) -> MemoryUse | None:
    """Return what the buffer lines of a load add up to; None without such lines.

    A buffer is named by who reports it, its device and its kind; of repeated reports (a fitting run
    before the real one) the last counts. Host memory is ``CPU``, ``CPU_...``, ``BLAS`` and pinned
    ``..._Host``; everything else is a GPU's. Source: Ollama's ``llm/llama_server.go``.
    """
    buffers = {
        (line["part"], line["device"], line["kind"]): float(line["mib"]) for line in _BUFFER.finditer(log)
    }
    if not buffers:
        return None
    on_gpu = [mib for (_, device, _), mib in buffers.items() if _is_gpu(device)]
    return MemoryUse(
        size_bytes=int(sum(buffers.values()) * 1024**2), size_vram_bytes=int(sum(on_gpu) * 1024**2)
    )


def _is_gpu(device: str) -> bool:
    return device not in ("CPU", "BLAS") and not device.startswith("CPU_") and not device.endswith("_Host")


def failure_reason(log: str) -> str:
    """Return the first error in a log, which says most; else its last line; "no reason given" if empty."""
    if error := _ERROR.search(log):
        return error["text"].strip()
    lines = log.split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")
