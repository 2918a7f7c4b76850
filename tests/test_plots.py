"""Figures: closed when returned, a finding as title, units on the axes, n in sight."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ollamalab import plots
from ollamalab.plots.style import BASELINE, INK, colours, columns_that_fit, ink_on, shades
from ollamalab.plots.timelines import assign_lanes, decoding_at_once

STAGES = pd.DataFrame({"load": [0.5, None], "decode": [0.2, 0.2]}, index=["cold", "warm"])
RATIOS = pd.DataFrame(
    {
        "label": ["a", "b", "c"],
        "estimate": [0.5, 1.0, None],
        "low": [0.4, 0.9, None],
        "high": [0.6, 1.1, None],
        "n": [12, 12, None],
    }
)
VALUES = pd.DataFrame({"arm": ["off"] * 4 + ["on"] * 3, "value": [1.0, 2.0, 3.0, None, 0.5, 0.6, 0.7]})
POINTS = pd.DataFrame(
    {"x": [1, 2, 4], "value": [10.0, 15.0, 16.0], "low": [9.0, 14.0, None], "high": [11.0, 16.0, None]}
)
SHARES = pd.DataFrame({0: [0.1, 0.2], 1: [0.9, 0.3], 2: [None, 0.5]}, index=[1, 2])
REQUESTS = pd.DataFrame(
    {
        "intended_s": [5.0, 5.5, 6.0],
        "first_token_s": [5.2, 5.7, None],
        "last_token_s": [6.0, 6.5, None],
    }
)
CPU = pd.DataFrame({"at_s": [5.0, 5.5, 6.0], "value": [0.2, 0.9, 0.8]})

TOKENS = pd.DataFrame(
    {"label": ["kept", "changed"], "sent": [120.0, 122.0], "evaluated": [14.0, 122.0], "n": 8}
)

ENDINGS = pd.DataFrame({"ok": [3, 0], "http_error": [1, 0]}, index=["overload", "kill"])

ARRIVED = pd.DataFrame({"at_s": [5.2, 5.4, 6.0], "value": [1.0, 2.0, 3.0]})
SPANS = pd.DataFrame({"name": ["idle", "busy"], "start_s": [5.0, 5.5], "end_s": [5.5, 6.5]})
DOTS = pd.DataFrame({"series": ["1", "4"], "x": [0.9, 1.0], "y": [10.0, 20.0]})

ENDS = pd.DataFrame({"row": ["ours"] * 3, "at_s": [0.1, 0.9, 1.2], "kind": ["instance 1", "lost", "cut off"]})
MARKS = pd.DataFrame({"row": ["ours"], "at_s": [0.8], "text": ["killed"]})

TRADES = pd.DataFrame(
    {"x": [380.0, 200.0], "value": [90.0, 120.0], "low": [85.0, None], "high": [95.0, None]}
).assign(label=["F16", "Q4_0"], note=["the reference", "65 % as F16"])

DRAWINGS: dict[str, Callable[..., Figure]] = {
    "stage_bars": lambda **words: plots.stage_bars(STAGES, **words),
    "ratio_forest": lambda **words: plots.ratio_forest(RATIOS, quantity="after / before", **words),
    "latency_ecdf": lambda **words: plots.latency_ecdf(VALUES, quantity="response", **words),
    "latency_strip": lambda **words: plots.latency_strip(VALUES, quantity="response", **words),
    "sweep_lines": lambda **words: plots.sweep_lines(
        POINTS, setting="slots", quantity="output [tokens/s]", **words
    ),
    "ends_over_time": lambda **words: plots.ends_over_time(ENDS, MARKS, **words),
    "concurrency_bars": lambda **words: plots.concurrency_bars(SHARES, setting="slots", **words),
    "outcome_bars": lambda **words: plots.outcome_bars(ENDINGS, **words),
    "token_clock": lambda **words: plots.token_clock(ARRIVED, {"CPU\n[cores]": CPU}, spans=SPANS, **words),
    "usage_scatter": lambda **words: plots.usage_scatter(DOTS, resource="CPU", quantity="tokens/s", **words),
    "slot_timeline": lambda **words: plots.slot_timeline(REQUESTS, cpu=CPU, slots=2, **words),
    "token_bars": lambda **words: plots.token_bars(TOKENS, **words),
    "trade_off": lambda **words: plots.trade_off(
        TRADES, cost="memory [MB]", quantity="rate [tokens/s]", baseline="F16", **words
    ),
}


def words_of(figure: Figure) -> str:
    """Return every text on a figure, once it is drawn."""
    figure.canvas.draw()
    return "\n".join(text.get_text() for text in figure.findobj(plt.Text))


def test_every_drawing_is_tested() -> None:
    """The public list and the list above agree."""
    assert set(DRAWINGS) == set(plots.__all__)
    assert plots.__all__ == sorted(plots.__all__)


@pytest.mark.parametrize("name", DRAWINGS)
def test_a_figure_is_closed_and_says_its_finding(name: str) -> None:
    """It shows once in a notebook; title and caption are on it, the caption marked as such."""
    figure = DRAWINGS[name](title="Loading dominates", caption="n = 12, 95 % intervals")
    assert plt.get_fignums() == []
    assert figure.get_suptitle() == "Loading dominates"
    captions = [text.get_text() for text in figure.texts if text.get_gid() == "caption"]
    assert captions == ["n = 12, 95 % intervals"]
    assert figure.axes[-1].get_xlabel()


def test_a_long_finding_and_long_names_stay_on_the_page() -> None:
    """Nothing runs over the edge, which would shrink the axes or all of the picture on a phone."""
    title = "2 instances are not shown to beat 1 instance with 2 slots on the same hardware at 16 requests/s"
    arms = {arm: f"{arm} lines, 8 streams" for arm in ("off", "on")} | {"third": "adaptive, 8 streams"}
    values = pd.concat([VALUES, VALUES.head(3).assign(arm="third")]).replace({"arm": arms})
    figure = plots.latency_ecdf(values, quantity="response", title=title)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().x1 <= figure.bbox.x1
    (words,) = [text for text in figure.findobj(plt.Text) if text.get_text().startswith("2 instances")]
    assert words.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ([], 1),
        (["load"], 1),
        (["load"] * 5, 5),
        (["load"] * 9, 6),
        (["adaptive, 8 streams (n = 704)"] * 3, 2),
        (["a name as long as a line " * 4] * 3, 1),
    ],
)
def test_a_legend_has_as_many_columns_as_fit(labels: list[str], columns: int) -> None:
    """Six at best; long labels go below each other."""
    assert columns_that_fit(labels, 6) == columns


@pytest.mark.parametrize("name", DRAWINGS)
def test_nothing_measured_is_no_error(name: str) -> None:
    """Arms in which every request failed still give a figure."""
    empty = {
        "stage_bars": lambda: plots.stage_bars(STAGES * float("nan"), title="T"),
        "ratio_forest": lambda: plots.ratio_forest(RATIOS.iloc[2:], quantity="q", title="T"),
        "latency_ecdf": lambda: plots.latency_ecdf(VALUES.iloc[3:4], quantity="q", title="T"),
        "latency_strip": lambda: plots.latency_strip(VALUES.iloc[3:4], quantity="q", title="T"),
        "sweep_lines": lambda: plots.sweep_lines(POINTS.iloc[:0], setting="s", quantity="q", title="T"),
        "concurrency_bars": lambda: plots.concurrency_bars(SHARES * float("nan"), setting="s", title="T"),
        "outcome_bars": lambda: plots.outcome_bars(ENDINGS.iloc[1:], title="T"),
        "ends_over_time": lambda: plots.ends_over_time(ENDS[:0], MARKS[:0], title="T"),
        "token_clock": lambda: plots.token_clock(ARRIVED[:0], {}, spans=SPANS[:0], title="T"),
        "usage_scatter": lambda: plots.usage_scatter(DOTS[:0], resource="CPU", quantity="q", title="T"),
        "slot_timeline": lambda: plots.slot_timeline(REQUESTS.iloc[2:], title="T"),
        "token_bars": lambda: plots.token_bars(TOKENS.iloc[:0], title="T"),
        "trade_off": lambda: plots.trade_off(TRADES.iloc[:0], cost="c", quantity="q", title="T"),
    }
    assert words_of(empty[name]())


def test_endings_are_counted_and_shared_out() -> None:
    """A bar is as long as any other, whatever its n; a row without requests has none."""
    figure = plots.outcome_bars(ENDINGS, title="T")
    words = words_of(figure).splitlines()
    assert {"overload  (n = 4)", "kill  (n = 0)", "http error", "3", "1"} <= set(words)
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sorted(widths) == [0, 0, 0.25, 0.75]


def test_one_slot_is_one() -> None:
    assert "1 slot" in words_of(plots.slot_timeline(REQUESTS, slots=1, title="T")).splitlines()


def test_bars_of_tokens_tell_both_numbers_and_how_many_requests() -> None:
    words = words_of(plots.token_bars(TOKENS, title="T"))
    assert "14 of 120" in words
    assert "changed  (n = 8)" in words


def test_a_setting_that_is_counted_has_even_steps() -> None:
    """Turn 4 is as far from turn 3 as turn 2 from turn 1."""
    figure = plots.sweep_lines(POINTS, setting="turn", quantity="TTFT [s]", title="T", is_linear=True)
    assert figure.axes[0].get_xscale() == "linear"


def test_a_forest_shows_estimates_and_what_is_missing() -> None:
    """Each row has estimate, interval and n, or n/a."""
    words = words_of(plots.ratio_forest(RATIOS, quantity="after / before", title="T"))
    assert "0.50× (0.40–0.60)" in words
    assert "n = 12" in words
    assert "n/a" in words


def test_a_stage_that_did_not_happen_takes_no_room() -> None:
    """An absent stage is nothing, and the total is the sum of the rest."""
    words = words_of(plots.stage_bars(STAGES, title="T"))
    assert "0.70 s" in words
    assert "0.20 s" in words


def test_distributions_count_what_they_show() -> None:
    """The n of each arm leaves out requests without a value; the baseline is grey."""
    figure = plots.latency_ecdf(VALUES, quantity="response", title="T", baseline="off")
    words = words_of(figure)
    assert "off (n = 3)" in words
    assert "on (n = 3)" in words
    assert to_hex(figure.axes[0].lines[0].get_color()) == BASELINE
    assert "off  (n = 3)" in words_of(plots.latency_strip(VALUES, quantity="response", title="T"))


def test_wide_ranges_get_a_log_axis() -> None:
    """Milliseconds beside seconds can both be read."""
    wide = pd.DataFrame({"arm": ["hit", "miss"], "value": [0.001, 2.0]})
    assert plots.latency_strip(wide, quantity="q", title="T").axes[0].get_xscale() == "log"
    assert plots.latency_strip(VALUES, quantity="q", title="T").axes[0].get_xscale() == "linear"


def test_colours_are_told_apart() -> None:
    """The baseline is grey, the others differ; text on a colour is white or ink."""
    chosen = colours(["a", "b", "c"], baseline="b")
    assert chosen["b"] == BASELINE
    assert len(set(chosen.values())) == 3
    assert (ink_on("#0072b2"), ink_on("#e69f00")) == ("white", INK)
    assert len(set(shades(9))) == 9


def test_requests_share_lanes_when_they_can() -> None:
    """A lane is used again once its request has ended, the lowest free one first."""
    assert assign_lanes([(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (2.5, 5.0), (3.0, 6.0)]) == [0, 1, 0, 2, 1]
    assert assign_lanes([]) == []


def test_lanes_never_overlap_and_are_few() -> None:
    """As many lanes as requests are ever open at once, and none holds two at a time."""
    spans = [(index * 0.7, index * 0.7 + 1.0 + (index * 37 % 11) / 3) for index in range(60)]
    lanes = assign_lanes(spans)
    for lane in set(lanes):
        own = [span for span, place in zip(spans, lanes, strict=True) if place == lane]
        assert all(before[1] <= after[0] for before, after in pairwise(own))
    assert len(set(lanes)) == max(decoding_at_once(spans)[1])


def test_open_spans_are_counted() -> None:
    """The count follows every start and end and returns to zero."""
    moments, counts = decoding_at_once([(1.0, 3.0), (2.0, 4.0)])
    assert moments == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert counts == [0, 1, 2, 1, 0]


def test_tokens_and_samples_share_one_clock() -> None:
    figure = plots.token_clock(ARRIVED, {"CPU\n[cores]": CPU}, spans=SPANS, title="T")
    tokens, samples = (part.lines[0] for part in figure.axes)
    assert tokens.get_xdata()[0] == pytest.approx(0.2)
    assert samples.get_xdata()[0] == pytest.approx(0.0)
    assert figure.axes[1].get_xlim() == (0.0, 1.5)
    assert {"idle", "busy"} <= set(words_of(figure).splitlines())


def test_utilisation_is_drawn_up_to_all_of_it() -> None:
    """A scatter whose axis began at the least utilisation would show noise as an effect."""
    axes = plots.usage_scatter(DOTS, resource="CPU", quantity="tokens/s", title="T").axes[0]
    assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
    assert axes.get_xlim()[1] >= 1


def test_a_trade_off_names_each_point_and_greys_the_baseline() -> None:
    """Names of points that cost nearly the same stand on different sides."""
    near = TRADES.assign(x=[200.0, 210.0])
    figure = plots.trade_off(near, cost="memory [MB]", quantity="rate", baseline="F16", title="T")
    assert {"F16: the reference", "Q4_0: 65 % as F16"} <= set(words_of(figure).splitlines())
    axes = figure.axes[0]
    assert [to_hex(line.get_color()) for line in axes.lines] == [BASELINE, "#0072b2"]
    assert [text.get_horizontalalignment() for text in axes.texts] == ["right", "left"]
    assert axes.get_xlim()[0] == axes.get_ylim()[0] == 0
