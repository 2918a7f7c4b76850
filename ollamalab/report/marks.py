"""Says "synthetic" wherever an experiment's file names a model with random weights."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from ollamalab.protocol.synthetic import mark_mentions
from ollamalab.report.entries import ExperimentFile
from ollamalab.report.tables import Table


def marked_table(table: Table, synthetic: Collection[str]) -> Table:
    """Return a table whose texts have the mark.

    Args:
        table: Any table.
        synthetic: Names of the models with random weights.
    """
    if not synthetic:
        return table
    return replace(
        table,
        title=mark_mentions(table.title, synthetic),
        columns=tuple(
            replace(column, name=mark_mentions(column.name, synthetic)) for column in table.columns
        ),
        rows=tuple(
            tuple(mark_mentions(cell, synthetic) if isinstance(cell, str) else cell for cell in row)
            for row in table.rows
        ),
        caption=mark_mentions(table.caption, synthetic),
    )


def marked_file(content: ExperimentFile, synthetic: Collection[str]) -> ExperimentFile:
    """Return an experiment whose findings, arms, tables, figures and verdicts have the mark."""
    if not synthetic:
        return content

    def mark(text: str) -> str:
        return mark_mentions(text, synthetic)

    return replace(
        content,
        findings=tuple(map(mark, content.findings)),
        arms=tuple(replace(arm, description=mark(arm.description)) for arm in content.arms),
        tables=tuple(marked_table(table, synthetic) for table in content.tables),
        figures=tuple(
            replace(figure, title=mark(figure.title), caption=mark(figure.caption))
            for figure in content.figures
        ),
        verdicts=tuple(
            replace(contrast, text=mark(contrast.text), target=mark(contrast.target))
            for contrast in content.verdicts
        ),
    )
