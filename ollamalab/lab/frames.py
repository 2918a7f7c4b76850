"""From records and samples to the small data frames that figures are drawn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from statistics import fmean, stdev

import pandas as pd

from ollamalab.lab.subject import Subject
from ollamalab.lab.trials import Statistic, Trials
from ollamalab.metrics import completed, decoding_shares
from ollamalab.records import RequestRecord, Sample


def values(records: Iterable[RequestRecord], metric: Callable[[RequestRecord], float | None]) -> pd.DataFrame:
    """Return columns ``arm`` and ``value``, one row per completed request; a value may be absent."""
    rows = [(record.arm, metric(record)) for record in completed(records)]
    return pd.DataFrame(rows, columns=["arm", "value"]).astype({"value": float})


def timeline(records: Iterable[RequestRecord]) -> pd.DataFrame:
    """Return the moments of each request, as ``plots.slot_timeline`` draws them."""
    rows = [(record.intended_s, record.first_token_s, record.last_token_s) for record in records]
    return pd.DataFrame(rows, columns=["intended_s", "first_token_s", "last_token_s"], dtype=float)


def series(samples: Iterable[Sample], source: str, name: str) -> pd.DataFrame:
    """Return one quantity of one source over time: columns ``at_s`` and ``value``."""
    rows = [
        (sample.at_s, sample.values[name])
        for sample in samples
        if sample.source == source and sample.values.get(name) is not None
    ]
    return pd.DataFrame(rows, columns=["at_s", "value"], dtype=float)


def sweep_points(trials: Trials, settings: Mapping[str, float], statistic: Statistic) -> pd.DataFrame:
    """Return a quantity by setting: ``x``, ``value``, ``low``, ``high`` (95 % t-interval over visits).

    Args:
        trials: One arm per setting.
        settings: Arm to the value of its setting.
        statistic: The quantity in one visit; an arm without any has no row, one visit no interval.
    """
    rows = []
    for arm, setting in settings.items():
        known = trials.per_visit(arm, statistic)
        if known:
            mean, half = fmean(known), _t_half_width(known)
            rows.append((setting, mean, mean - half, mean + half))
    return pd.DataFrame(rows, columns=["x", "value", "low", "high"], dtype=float)


def _t_half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % t-interval of a mean; NaN for one value."""
    from scipy.special import stdtrit  # a third of a second, which few notebooks need

    n = len(values)
    return float(stdtrit(n - 1, 0.975)) * stdev(values) / math.sqrt(n) if n > 1 else math.nan


def concurrency(trials: Trials) -> pd.DataFrame:
    """Return, by arm, the share of time in which 0, 1, 2 ... sequences decoded at once.

    Shares are averaged over the arm's visits; the pauses between visits do not count. A visit in which
    nothing was sent has no shares, an arm of such visits no row.
    """
    rows = {}
    for arm in trials.arms:
        if shares := _shares(trials.of(arm)):
            rows[arm] = pd.Series([fmean(column) for column in zip_longest(*shares, fillvalue=0.0)])
    return pd.DataFrame(rows).T.fillna(0.0)


def one_visit(trials: Trials, arm: str) -> list[RequestRecord]:
    """Return the records of the arm's last visit."""
    return _visits(trials.of(arm))[-1]


def most_at_once(records: Iterable[RequestRecord]) -> int:
    """Return the most sequences that decoded at the same time, in any visit."""
    return max((len(shares) - 1 for shares in _shares(records)), default=0)


def most_busy(samples: Iterable[Sample], subject: Subject) -> int | None:
    """Return the most slots that the engine had busy at once; None if it does not tell."""
    busy = [
        sample.values["busy"]
        for sample in samples
        if sample.source.startswith("slots") and sample.source.endswith(subject.target.url)
    ]
    known = [int(count) for count in busy if count is not None]
    return max(known, default=None)


def _shares(records: Iterable[RequestRecord]) -> list[tuple[float, ...]]:
    """Return the ``decoding_shares`` of each visit that has them."""
    return [shares for visit in _visits(records) if (shares := decoding_shares(visit))]


def _visits(records: Iterable[RequestRecord]) -> list[list[RequestRecord]]:
    groups: dict[int | None, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(record.visit, []).append(record)
    return list(groups.values())
