"""The forest of ratios stays legible: whatever the names of its rows and the width of its intervals."""

from __future__ import annotations

from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from ollamalab import plots

LONG_NAME = "KV_CACHE_TYPE=q8_0: each further token"


def forest(label: str, high: float) -> plt.Figure:
    rows = pd.DataFrame(
        {"label": [label, "b"], "estimate": [1.0, None], "low": [1 / high, None], "high": [high, None]}
    )
    rows["n"] = [24, None]
    return plots.ratio_forest(rows, title="Nothing differs", quantity="time, new / old")


@pytest.mark.parametrize("label", ["a", LONG_NAME])
@pytest.mark.parametrize("high", [1.1, 1.4, 1.8, 2.5, 5.0, 11.0, 20.0, 900.0, 50_000.0])
def test_no_two_words_lie_on_each_other(label: str, high: float) -> None:
    """Beside long names the axis is narrow: it gets fewer ticks, and the numbers keep their distance."""
    figure = forest(label, high)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    ticks = [tick for tick in axes.get_xticklabels() if tick.get_text()]
    assert "1×" in [tick.get_text() for tick in ticks]
    for left, right in pairwise(tick.get_window_extent() for tick in ticks):
        assert left.x1 < right.x0
    texts = {text.get_text(): text.get_window_extent() for text in axes.texts if text.get_text()}
    interval = next(box for words, box in texts.items() if words.startswith("1.00×"))
    assert interval.x0 > axes.get_window_extent().x1
    assert interval.x1 < texts["n = 24"].x0
    assert texts["n = 24"].x1 <= figure.bbox.x1
