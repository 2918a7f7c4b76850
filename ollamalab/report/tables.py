"""Tables as data: columns with units and number formats, rows, a caption.

A table is kept as JSON and rendered from it, in a notebook as in the report. A cell is a text, a
number, None (shown as "n/a"), or an estimate with the two ends of its interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

#: So many characters of a text stay on one line.
_ONE_LINE = 36

Cell = str | bool | int | float | tuple[float, float | None, float | None] | None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column.

    Attributes:
        name: Heading.
        unit: Shown after the heading; "" for texts and counts.
        format: Python format of a number, such as ".2f", ",d" or ".0%"; None leaves counts and
            texts as they are.
    """

    name: str
    unit: str = ""
    format: str | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Table:
    """A small table that says what it shows.

    Attributes:
        name: Identifier inside its experiment, such as "stages".
        title: What the rows show, with the condition.
        columns: In order.
        rows: One cell per column.
        caption: n, kind of interval, caveats.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""

    @staticmethod
    def of(
        name: str, title: str, columns: Sequence[Column], rows: Iterable[Sequence[Any]], *, caption: str = ""
    ) -> Table:
        """Build a table from any rows; numbers of numpy and pandas become plain, NaN becomes None."""
        plain = tuple(tuple(_plain(cell) for cell in row) for row in rows)
        for row in plain:
            if len(row) != len(columns):
                raise ValueError(f"table {name!r}: a row has {len(row)} cells for {len(columns)} columns")
        return Table(name=name, title=title, columns=tuple(columns), rows=plain, caption=caption)

    def __repr__(self) -> str:
        """Plain text in aligned columns."""
        heads = [column.name + (f" [{column.unit}]" if column.unit else "") for column in self.columns]
        body = [[cell_text(cell, column) for cell, column in self._cells(row)] for row in self.rows]
        widths = [max(len(text) for text in texts) for texts in zip(heads, *body, strict=True)]
        texts = self._text_columns()

        def line(cells: Sequence[str]) -> str:
            padded = (
                cell.ljust(width) if is_text else cell.rjust(width)
                for cell, width, is_text in zip(cells, widths, texts, strict=True)
            )
            return "  ".join(padded).rstrip()

        rule = "  ".join("─" * width for width in widths)
        lines = [self.title, line(heads), rule, *(line(cells) for cells in body)]
        return "\n".join([*lines, self.caption] if self.caption else lines)

    def _repr_html_(self) -> str:
        """Return the table for a notebook, title and caption included."""
        caption = (
            f'<p style="max-width:48em;color:#6b7280">{escape(self.caption)}</p>' if self.caption else ""
        )
        # A box of its own: on a phone the table scrolls, and title and caption stay where they are.
        box = f'<div style="overflow-x:auto">{self.html()}</div>'
        return f"<p><b>{escape(self.title)}</b></p>{box}{caption}"

    def html(self) -> str:
        """Return the bare ``<table>``; texts are aligned left, numbers right, everything escaped.

        Cells stay on one line and long texts get a width to wrap in: a narrow screen would otherwise
        break "0.97 (0.92–1.01)" and squeeze sentences to a word a line.
        """
        texts = self._text_columns()
        widths = [
            "white-space:normal;min-width:20em" if is_long else "white-space:nowrap"
            for is_long in self._long_columns()
        ]

        def cells(tag: str, contents: Iterable[str], widths: Iterable[str]) -> str:
            styles = (
                ";".join(filter(None, ("text-align:left" if is_text else "", width)))
                for is_text, width in zip(texts, widths, strict=True)
            )
            parts = (
                f'<{tag} style="{style}">{content}</{tag}>' if style else f"<{tag}>{content}</{tag}>"
                for content, style in zip(contents, styles, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        heads = (
            escape(column.name) + (f' <span class="unit">{escape(column.unit)}</span>' if column.unit else "")
            for column in self.columns
        )
        body = (
            cells("td", (_cell_html(cell, column) for cell, column in self._cells(row)), widths)
            for row in self.rows
        )
        head = cells("th", heads, [""] * len(self.columns))
        return f"<table><thead>{head}</thead><tbody>{''.join(body)}</tbody></table>"

    def _cells(self, row: tuple[Cell, ...]) -> Iterable[tuple[Cell, Column]]:
        return zip(row, self.columns, strict=True)

    def _text_columns(self) -> list[bool]:
        """Return whether a column is text: it has no format and holds something that is no number."""
        return [
            column.format is None and any(isinstance(row[index], str | bool) for row in self.rows)
            for index, column in enumerate(self.columns)
        ]

    def _long_columns(self) -> list[bool]:
        """Return whether a column holds a text too long for one line of a phone."""
        return [
            any(isinstance(row[index], str) and len(str(row[index])) > _ONE_LINE for row in self.rows)
            for index in range(len(self.columns))
        ]


def cell_text(cell: Cell, column: Column) -> str:
    """Return a cell as text: "n/a" for None, "1.34 (1.20–1.50)" for an estimate with its interval."""
    if isinstance(cell, tuple):
        estimate, low, high = cell
        if low is None or high is None:
            return number_text(estimate, column.format)
        return f"{number_text(estimate, column.format)} ({interval_text(low, high, column.format)})"
    if cell is None:
        return "n/a"
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return cell if isinstance(cell, str) else number_text(cell, column.format)


def interval_text(low: float, high: float, spec: str | None) -> str:
    """Return "1.20–1.50", "91–99 %", or "−0.3 to 0.4" where a dash would read as a minus."""
    first, last = number_text(low, spec), number_text(high, spec)
    joint = " to " if {first[0], last[0]} & {"−", "+"} else "–"
    return first.removesuffix("\u202f%") + joint + last


def _cell_html(cell: Cell, column: Column) -> str:
    if cell is None:
        return '<span class="absent">n/a</span>'
    if isinstance(cell, tuple) and cell[1] is not None and cell[2] is not None:
        interval = interval_text(cell[1], cell[2], column.format)
        return f'{number_text(cell[0], column.format)} <span class="interval">({interval})</span>'
    return escape(cell_text(cell, column))


def number_text(value: float, spec: str | None) -> str:
    """Format a number, with a true minus and "%" set off; without a format, to three digits at least."""
    if spec is None:
        spec = ",d" if isinstance(value, int) else ",.0f" if abs(value) >= 100 else ".3g"
    return format(value, spec).replace("-", "−").replace("%", "\u202f%")


def _plain(cell: Any) -> Cell:
    """Return a cell in plain Python types."""
    if isinstance(cell, tuple | list):
        estimate, low, high = (_plain(part) for part in cell)
        return None if estimate is None else (estimate, low, high)  # type: ignore[return-value]
    if hasattr(cell, "item"):
        cell = cell.item()
    if cell is None or isinstance(cell, str | bool | int):
        return cell
    if isinstance(cell, float):
        return None if math.isnan(cell) else cell
    text = str(cell)
    return None if text in ("<NA>", "NaT") else text
