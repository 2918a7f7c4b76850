"""What the benchmark of the gateway prints."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table


def show(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> None:
    """Print the tables."""
    table = Table(title="The gateway beside others", show_edge=False)
    for column in ("case", "arm"):
        table.add_column(column)
    for column in ("n", "value", "cpu/request", "reads", "beside the baseline", "95 % interval", "floor"):
        table.add_column(column, justify="right")
    for row in rows:
        if "not_run" in row:
            table.add_row(row["case"], f"not run: {row['not_run']}")
            continue
        is_ratio = row["arms"][0]["metric"]["kind"] == "ratio"

        def value_text(value: float, is_ratio: bool = is_ratio) -> str:
            return f"{value:,.0f}" if is_ratio else f"{value * 1000:.3f} ms"

        def text(value: float | None, is_ratio: bool = is_ratio) -> str:
            return "n/a" if value is None else f"{value:.2f}×" if is_ratio else f"{value * 1000:+.3f} ms"

        cpu = {
            arm: f"{cpu_s * 1e6:.0f} µs" if cpu_s else "" for arm, cpu_s in row["cpu_s_per_request"].items()
        }
        reads = {arm: f"{count:.1f}" for arm, count in row["client_reads_per_answer"].items()}
        baseline = row["baseline"]
        table.add_row(
            row["case"],
            baseline,
            "",
            value_text(row["arms"][0]["baseline_value"]),
            cpu[baseline],
            reads[baseline],
            "baseline",
        )
        for arm in row["arms"]:
            word = {True: "kept", False: "MISSED", None: ""}[arm["floor_kept"]]
            table.add_row(
                "",
                arm["arm"],
                str(arm["pairs"]),
                value_text(arm["arm_value"]),
                cpu[arm["arm"]],
                reads[arm["arm"]],
                text(arm["estimate"]),
                f"{text(arm['low'])} … {text(arm['high'])}",
                "" if arm["floor"] is None else f"{text(arm['floor'])} {word}",
            )
    console = Console(width=150, markup=False)
    console.print(table)
    for held in memory:
        if "not_run" in held:
            console.print(f"{held['arm']}: not run: {held['not_run']}")
            continue
        now, before = held["resident_bytes"] / 2**20, held["before_bytes"] / 2**20
        streams = held["open_streams"]
        console.print(
            f"{held['arm']}: {now:.0f} MiB resident with {streams} open streams, {before:.0f} MiB before"
        )
