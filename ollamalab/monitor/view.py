"""The monitor's picture for a terminal, and its line for anything else. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ollamalab.gpu.values import Values
from ollamalab.monitor import words
from ollamalab.monitor.board import Board, GpuState, fresh
from ollamalab.monitor.server_state import ServerState

_BAR = 10
_WIDTH_WITH_BARS = 96
_NOTES = 4


def picture(board: Board, *, page: str | None, width: int) -> RenderableType:
    """Return everything, to be drawn over the previous one.

    Args:
        board: What is known.
        page: Where it can be scraped; None if nowhere.
        width: Of the terminal, in columns.
    """
    parts: list[RenderableType] = [_title(board), Text(), *_gpus(board, width), Text()]
    if board.server is not None:
        parts += [_server(board.server, board.unix_s), Text()]
    parts.append(_host(board.host))
    parts += [Text(f"! {note}", style="yellow") for note in board.notes[-_NOTES:]]
    served = f" · metrics at {page}" if page else ""
    parts.append(Text(f"Ctrl-C ends{served} · costs {board.cpu_ratio:.1%} of a core", style="dim"))
    return Group(*parts)


def line(board: Board) -> str:
    """Return everything in one line."""
    parts = [f"{datetime.fromtimestamp(board.unix_s):%H:%M:%S}"]
    parts += [_gpu_words(source, gpu) for source, gpu in fresh(board).items()] or [_no_gpu(board)]
    if board.server is not None:
        parts.append(_server_words(board.server, board.unix_s))
    parts.append(f"CPU {words.share(board.host.get('cpu_ratio'))}")
    return " | ".join(parts)


def _title(board: Board) -> Text:
    text = Text("ollamalab monitor", style="bold")
    if board.server is not None:
        what = f"{board.server.kind} {board.server.version}".strip()
        text.append(f"  {board.server.url}  {what}", style="default")
    text.append(f"  {datetime.fromtimestamp(board.unix_s):%H:%M:%S}", style="dim")
    return text


def _gpus(board: Board, width: int) -> Iterator[RenderableType]:
    gpus = fresh(board)
    if not gpus:
        yield Text(_no_gpu(board), style="yellow")
        return
    has_bars = width >= _WIDTH_WITH_BARS
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("GPU", *([""] if has_bars else []), "SM", *([""] if has_bars else []), "memory"):
        table.add_column(column, justify="right" if column in ("SM", "memory") else "left", no_wrap=True)
    for column in ("power", "SM clock", "temp", "PCIe"):
        table.add_column(column, justify="right", no_wrap=True)
    for source, gpu in gpus.items():
        values = gpu.values
        busy = values.get("sm_utilisation_ratio")
        table.add_row(
            source,
            *([_bar(busy)] if has_bars else []),
            words.share(busy),
            *([_bar(_used(values))] if has_bars else []),
            words.memory(values),
            words.power(values),
            words.clocks(values),
            words.temperature(values),
            words.link(values),
        )
    yield table
    for name in dict.fromkeys(gpu.name for gpu in gpus.values() if gpu.name):
        alike = ", ".join(source for source, gpu in gpus.items() if gpu.name == name)
        yield Text(f"{alike}: {name}", style="dim")
    for source, gpu in gpus.items():
        if gpu.values.get("is_throttled"):
            yield Text(f"{source} is slowed by: {words.slowed_by(gpu.values)}", style="red")


def _bar(ratio: float | None) -> RenderableType:
    return Text("") if ratio is None else ProgressBar(total=1.0, completed=ratio, width=_BAR)


def _used(values: Values) -> float | None:
    used, total = values.get("memory_used_bytes"), values.get("memory_total_bytes")
    return None if used is None or not total else used / total


def _no_gpu(board: Board) -> str:
    """Return why there is none to show: a source's own reason, or its silence."""
    reason = next((note for note in board.notes if note.startswith("no GPU")), None)
    return reason or ("no GPU answers now" if board.gpus else "no GPU has answered yet")


def _server(server: ServerState, now_unix_s: float) -> RenderableType:
    if server.trouble is not None:
        return Text(f"{server.trouble}; asked again and again", style="yellow")
    if not server.models:
        return Group(Text("no model in memory"), Text(words.load(server)))
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("model", "memory", "where", "context", "until"):
        table.add_column(column, justify="left" if column in ("model", "until") else "right", no_wrap=True)
    for model in server.models:
        table.add_row(
            model.name,
            words.gibibytes(model.size_bytes),
            words.on_gpu(model.size_bytes, model.size_vram_bytes),
            words.UNKNOWN if model.context_tokens is None else f"{model.context_tokens:,}",
            words.until(model.expires_unix_s, now_unix_s),
        )
    return Group(table, Text(words.load(server)))


def _host(host: Values) -> Text:
    used, free = host.get("memory_used_bytes"), host.get("memory_available_bytes")
    total = None if used is None or free is None else used + free
    return Text(
        f"host: CPU {words.share(host.get('cpu_ratio'))} · memory {words.gibibytes(used)} of "
        f"{words.gibibytes(total)} · load {_plain(host.get('load_1m'))}"
    )


def _plain(value: float | None) -> str:
    return words.UNKNOWN if value is None else f"{value:.2f}"


def _gpu_words(source: str, gpu: GpuState) -> str:
    values = gpu.values
    busy = words.share(values.get("sm_utilisation_ratio"))
    return f"{source} {busy} {words.memory(values)} {words.power(values)} {words.temperature(values)}"


def _server_words(server: ServerState, now_unix_s: float) -> str:
    if server.trouble is not None:
        return f"{server.trouble}; asked again and again"
    models = ", ".join(
        f"{model.name} until {words.until(model.expires_unix_s, now_unix_s)}" for model in server.models
    )
    return f"{models or 'no model in memory'} | {words.load(server)}"
