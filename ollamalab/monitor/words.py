"""Values as the monitor writes them: short, with units, "n/a" for what is not known. Pure."""

from __future__ import annotations

from datetime import datetime

from ollamalab.gpu import throttling
from ollamalab.gpu.values import Values
from ollamalab.monitor.server_state import ServerState

UNKNOWN = "n/a"

_GIB = 2**30
_DAY_S = 86400.0

#: Ollama's own command shows more than 20 years as for ever.
_FOREVER_S = 20 * 365 * _DAY_S


def share(ratio: float | None) -> str:
    """Return "85 %"."""
    return UNKNOWN if ratio is None else f"{ratio:.0%}".replace("%", " %")


def memory(values: Values) -> str:
    """Return "20.0/80.0 GiB"."""
    used, total = values.get("memory_used_bytes"), values.get("memory_total_bytes")
    if used is None:
        return UNKNOWN
    return f"{used / _GIB:.1f} GiB" if total is None else f"{used / _GIB:.1f}/{total / _GIB:.1f} GiB"


def power(values: Values) -> str:
    """Return "412 W", or "388 W avg" where only the average is told."""
    instant, average = values.get("power_instant_w"), values.get("power_average_w")
    if instant is not None:
        return f"{instant:.0f} W"
    if average is not None:
        return f"{average:.0f} W avg"
    either = values.get("power_w")
    return UNKNOWN if either is None else f"{either:.0f} W"


def clocks(values: Values) -> str:
    """Return "1980 MHz"; the memory's hardly ever moves."""
    sm = values.get("sm_clock_mhz")
    return UNKNOWN if sm is None else f"{sm:.0f} MHz"


def temperature(values: Values) -> str:
    """Return "61 °C"."""
    degrees = values.get("temperature_c")
    return UNKNOWN if degrees is None else f"{degrees:.0f} °C"


def slowed_by(values: Values) -> str:
    """Return what holds the clocks down: "software power cap"."""
    mask = values.get("clock_event_mask")
    return UNKNOWN if mask is None else ", ".join(throttling(mask))


def link(values: Values) -> str:
    """Return "5.0 x16"; an idle link trains down."""
    generation, width = values.get("pcie_generation"), values.get("pcie_width")
    return UNKNOWN if generation is None or width is None else f"{generation:.0f}.0 x{width:.0f}"


def gibibytes(size_bytes: float | None) -> str:
    """Return "5.1 GiB"."""
    return UNKNOWN if size_bytes is None else f"{size_bytes / _GIB:.1f} GiB"


def until(expires_unix_s: float | None, now_unix_s: float) -> str:
    """Return when a model will be unloaded: "12:05:01 (4:32)"; one whose time is over is in use."""
    if expires_unix_s is None:
        return UNKNOWN
    left_s = expires_unix_s - now_unix_s
    if left_s > _FOREVER_S:
        return "for ever"
    if left_s <= 0:
        return "in use"
    at = datetime.fromtimestamp(expires_unix_s)
    if left_s >= _DAY_S:
        return f"{at:%Y-%m-%d %H:%M}"
    minutes, seconds = divmod(int(left_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{at:%H:%M:%S} ({f'{hours}:{minutes:02}' if hours else minutes}:{seconds:02})"


def on_gpu(size_bytes: int, size_vram_bytes: int) -> str:
    """Return where a model is: "100 % GPU", "CPU"."""
    if not size_bytes:
        return UNKNOWN
    return "CPU" if not size_vram_bytes else f"{share(size_vram_bytes / size_bytes)} GPU"


def load(server: ServerState) -> str:
    """Return slots, queue and speed: "1/2 slots busy · 98 tokens/s"; why not where not told.

    A gateway has a limit that moves, and may be below what is at work already.
    """
    if server.busy is None:
        return f"slots, queue, tokens/s: {server.kind or 'it'} does not tell"
    if server.waiting is None:
        parts = [f"{server.busy}/{server.slots} slots busy"]
    else:
        limit = "" if server.slots is None else f" (limit {server.slots})"
        parts = [f"{server.busy} at work{limit}", f"{server.waiting} waiting"]
    if server.tokens_per_s is not None:
        of_one = " for one answer" if server.tokens_are_of_one else ""
        parts.append(f"{server.tokens_per_s:.0f} tokens/s{of_one}")
    return " · ".join(parts)
