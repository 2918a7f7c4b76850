"""What the monitor knows at one moment, for whoever shows or exposes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ollamalab.gpu import Readings
from ollamalab.gpu.values import Values
from ollamalab.monitor.server_state import ServerState


@dataclass(frozen=True, kw_only=True, slots=True)
class GpuState:
    """One GPU, or one MIG instance.

    Attributes:
        name: Of the product; "" if it is not told.
        values: The latest of each; see ``gpu.VALUES``.
        read_s: When something of it was last read, on the monitor's clock.
    """

    name: str
    values: Values
    read_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Board:
    """Everything at one moment.

    Attributes:
        now_s: On the monitor's clock.
        unix_s: Wall time, to show and to compare with when models expire.
        gpus: By source, in the order of their first reading.
        host: Values of ``HostSampler``.
        server: What is known of the server; None if none is watched.
        notes: What could not be read, and why; oldest first.
        cpu_ratio: Share of one core that the monitor itself takes.
    """

    now_s: float
    unix_s: float
    gpus: Mapping[str, GpuState]
    host: Values
    server: ServerState | None
    notes: tuple[str, ...]
    cpu_ratio: float


#: A GPU of which nothing was read for so long is not shown as if it had been.
STALE_S = 5.0


def merged(
    gpus: Mapping[str, GpuState], read: Readings, names: Mapping[str, str], now_s: float
) -> dict[str, GpuState]:
    """Return the GPUs with what was read now; values that were not due stay as they were."""
    whole = dict(gpus)
    for source, values in read.items():
        before = whole[source].values if source in whole else {}
        whole[source] = GpuState(name=names.get(source, ""), values={**before, **values}, read_s=now_s)
    return whole


def fresh(board: Board) -> dict[str, GpuState]:
    """Return the GPUs of which something was read lately."""
    return {source: gpu for source, gpu in board.gpus.items() if board.now_s - gpu.read_s <= STALE_S}
