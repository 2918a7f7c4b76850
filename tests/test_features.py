"""Every system of the source documents has code, a notebook and tests, and the page that says so is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGE = CHECKOUT / "docs" / "features.md"

ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if re.match(r"\| F\d\d \|", line)
]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_row_of_the_sources_is_there_once_and_in_order() -> None:
    assert [row[0] for row in ROWS] == [f"F{number:02d}" for number in range(1, 31)]
    assert all(len(row) == 5 for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_what_a_row_names_is_there(row: list[str]) -> None:
    _, system, code, notebooks, tests = row
    assert system
    for cell in (code, notebooks, tests):
        assert named(cell), f"{row[0]} names nothing in {cell!r}"
    for path in named(code) + named(tests):
        assert (CHECKOUT / path).exists(), f"{row[0]} names {path}"
    for name in named(notebooks):
        assert (CHECKOUT / "notebooks" / f"{name}.ipynb").is_file(), f"{row[0]} names {name}"
    for path in named(tests):
        content = (CHECKOUT / path).read_text(encoding="utf-8")
        assert re.search(r"^ *(async )?def test_", content, re.MULTILINE), f"{path} has no test"


def test_every_notebook_is_named_by_a_row() -> None:
    shown = {name for row in ROWS for name in named(row[3])}
    assert shown == {path.stem for path in (CHECKOUT / "notebooks").glob("*.ipynb")}
