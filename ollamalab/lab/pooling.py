"""What keeping the connection saves: visits through a client library, and their contrasts."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import msgspec
import pandas as pd

from ollamalab.client.capture import Capture
from ollamalab.compare import Comparison, Metric, Visit
from ollamalab.errors import UpstreamError
from ollamalab.lab.clients import CHEAP, LIBRARIES, Library, Reuse, Send, calls
from ollamalab.lab.sentences import result_text
from ollamalab.lab.trials import Statistic, Trials, Visitor
from ollamalab.metrics import completed
from ollamalab.protocol.upstream import Request
from ollamalab.records import Outcome, RequestRecord
from ollamalab.report import Column, Table
from ollamalab.workload import WORDS

_NONCE_TOKENS = 9  # digits, each a token in the usual vocabularies

#: The request of a place in a visit.
Draw = Callable[[Visit, int], Request]


def cheap(_visit: Visit, _place: int) -> Request:
    """Return the question that costs the server next to nothing."""
    return CHEAP


def short_generations(model: str, *, prompt_tokens: int, num_predict: int, seed: int) -> Draw:
    """Return a drawer of generations that are as short as wanted; equal in a block but for their nonces.

    Without a template, so that a prompt may have less than the 60 tokens which that costs.

    Args:
        model: As it is sent.
        prompt_tokens: About, the nonce of nine digits included.
        num_predict: Tokens of the answer.
        seed: Draws the words.
    """
    nonces = random.Random()  # fresh for each run: a server may remember the prompts of the run before

    def draw(visit: Visit, place: int) -> Request:
        rng = random.Random(f"{seed}:{visit.block}:{place}")
        words = " ".join(rng.choice(WORDS) for _ in range(max(1, prompt_tokens - _NONCE_TOKENS)))
        body = {
            "model": model,
            "prompt": f"{nonces.randrange(10**9):09d} {words}",
            "raw": True,
            "stream": False,
            "options": {"num_predict": num_predict, "temperature": 0.0},
        }
        headers = {"content-type": "application/json"}
        return Request(method="POST", path="/api/generate", headers=headers, body=msgspec.json.encode(body))

    return draw


def two_ways(name: str, other: Reuse) -> list[Library]:
    """Return one library with its kept connection and one other way, for a comparison by themselves."""
    return [replace(library, ways=(Reuse.KEPT, other)) for library in LIBRARIES if library.name == name]


def visitors(
    libraries: Iterable[Library], load: str, url: str, draw: Draw, *, requests: int = 1
) -> dict[str, Visitor]:
    """Return the visitors of all ways of these libraries, by arm; else as ``asks``."""
    return {
        arm: asks(library, url, way, draw, requests=requests)
        for library in libraries
        for arm, way in library.arms(load).items()
    }


def asks(library: Library, url: str, way: Reuse, draw: Draw, *, requests: int = 1) -> Visitor:
    """Return the visitor "requests one after the other through a library".

    Each visit opens the library's client and asks ``CHEAP`` once before anything counts: there a kept
    connection is made, and the other ways are as warm.

    Args:
        library: Who asks.
        url: The server.
        way: What becomes of the connection.
        draw: What is asked.
        requests: In one visit.
    """

    async def visit(visit: Visit) -> Sequence[RequestRecord]:
        async with calls(library, url, way) as send:
            await send(CHEAP)
            return [await ask(send, draw(visit, place), url, index=place) for place in range(requests)]

    return visit


async def ask(send: Send, request: Request, url: str, *, index: int) -> RequestRecord:
    """Return the record of one request; its answer counts as a whole, with one moment."""
    start_s = time.perf_counter()
    capture = Capture(request=request, intended_s=start_s, sent_s=start_s, index=index)
    try:
        answered = await send(request)
    except UpstreamError as error:
        capture.failure = error
    else:
        capture.status = answered.status
        capture.reads.append((time.perf_counter(), answered.body))
    capture.end_s = time.perf_counter()
    record = capture.record(url)
    if request.method == "GET" and record.status == 200:  # no answer of a model, so nothing says "done"
        return replace(record, outcome=Outcome.OK, error=None)
    return record


def median_of(metric: Callable[[RequestRecord], float | None]) -> Statistic:
    """Return the statistic "median over the completed requests" of a metric of one request."""

    def middle(records: Sequence[RequestRecord]) -> float | None:
        values = [value for value in map(metric, completed(records)) if value is not None]
        return median(values) if values else None

    return middle


@dataclass(frozen=True, kw_only=True, slots=True)
class Saving:
    """What a library saves by keeping its connection.

    Attributes:
        library: Its name.
        way: What is not done any more.
        ratio: Kept / the other way.
        seconds: Kept - the other way.
    """

    library: str
    way: Reuse
    ratio: Comparison
    seconds: Comparison


def savings(
    trials: Trials,
    load: str,
    statistic: Statistic,
    *,
    libraries: Iterable[Library] = LIBRARIES,
    primary: tuple[str, Reuse] | None = None,
) -> list[Saving]:
    """Return each library's savings against each of its other ways, arms that were not run included.

    Args:
        trials: With the libraries' arms.
        load: Names what was asked in them.
        statistic: The time of a request in one visit, in seconds.
        libraries: Which; the first of its ways is the one that saves.
        primary: Library and way whose ratio was declared beforehand to settle a question.
    """
    ratio = Metric(name="request_s", unit="s", better="lower")
    seconds = replace(ratio, kind="difference")
    found = []
    for library in libraries:
        kept, *others = library.arms(load).items()
        for arm, way in others:
            is_primary = (library.name, way) == primary
            found.append(
                Saving(
                    library=library.name,
                    way=way,
                    ratio=trials.contrast(ratio, statistic, arm=kept[0], baseline=arm, is_primary=is_primary),
                    seconds=trials.contrast(seconds, statistic, arm=kept[0], baseline=arm),
                )
            )
    return found


def primary_of(found: Iterable[Saving]) -> Comparison:
    """Return the ratio that was declared beforehand to settle a question."""
    return next(saving.ratio for saving in found if saving.ratio.is_primary)


def savings_table(name: str, title: str, found: Iterable[Saving]) -> Table:
    """Return one row per library and way: both times, and what keeping the connection saves."""
    kept = list(found)
    rows: list[list[object]] = []
    for saving in kept:
        ratio, seconds = saving.ratio, saving.seconds
        rows.append(
            [
                saving.library,
                saving.way.value,
                _ms(ratio.baseline_value),
                _ms(ratio.arm_value),
                _spared(seconds, same=0.0, unit=1e3),
                _spared(ratio, same=1.0, unit=1.0),
                ratio.pairs,
            ]
        )
    columns = [
        Column(name="Client"),
        Column(name="Way"),
        Column(name="Takes", unit="ms", format=".2f"),
        Column(name="Kept", unit="ms", format=".2f"),
        Column(name="Saved", unit="ms", format=".2f"),
        Column(name="Saved share", format=".1%"),
        Column(name="Pairs"),
    ]
    if not all(saving.ratio.pairs for saving in kept):
        columns.append(Column(name="Note"))
        for row, saving in zip(rows, kept, strict=True):
            row.append("" if saving.ratio.pairs else saving.ratio.reason)
    return Table.of(
        name,
        title,
        columns,
        rows,
        caption="Means over visits. Kept: the same client when it keeps its connection and does no "
        "more; saved by that: Hodges–Lehmann estimate over pairs with its exact 95 % interval; below 0 it "
        "costs. requests blocks, so it runs in a thread: 0.1 ms in each of its arms.",
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


def _spared(item: Comparison, *, same: float, unit: float) -> tuple[float, float | None, float | None] | None:
    """Return how far an estimate lies below "the same", with its interval; None without an estimate."""
    if item.estimate is None:
        return None
    low, high = (None if end is None else (same - end) * unit for end in (item.high, item.low))
    return (same - item.estimate) * unit, low, high


def forest(found: Iterable[Saving]) -> pd.DataFrame:
    """Return the ratios as ``plots.ratio_forest`` draws them; arms that were not run are left out."""
    rows = [
        (f"{saving.library}, {saving.way}", ratio.estimate, ratio.low, ratio.high, ratio.pairs)
        for saving in found
        if (ratio := saving.ratio).pairs
    ]
    return pd.DataFrame(rows, columns=["label", "estimate", "low", "high", "n"])


def savings_title(found: Iterable[Saving]) -> str:
    """Return the title of the figure: the largest saving that is shown, with its interval.

    Not that it is the largest: the libraries are not compared with each other.
    """
    ratios = {saving: saving.ratio for saving in found}
    shown = {saving: ratio for saving, ratio in ratios.items() if ratio.high is not None and ratio.high < 1}
    if not shown:
        return "No saving by a kept connection was shown here"
    best = min(shown, key=lambda saving: shown[saving].estimate or 1.0)
    ratio = shown[best]
    numbers = f"{ratio.estimate:.2f}× (95 % interval {ratio.low:.2f}–{ratio.high:.2f})"
    return f"{best.library}, kept against {best.way}: {numbers}"


def savings_sentence(found: Iterable[Saving], way: Reuse) -> str:
    """Return, by library, the milliseconds that keeping saves against a way."""
    known = {
        saving.library: _spared(saving.seconds, same=0.0, unit=1e3) for saving in found if saving.way is way
    }
    texts = [f"{library} {spared[0]:.2f} ms" for library, spared in known.items() if spared]
    return f"A kept connection instead of a {way} saves: {', '.join(texts) or 'n/a'}."


def pool_sentence(claimed: Comparison) -> str:
    """Return what the published pool does to a request that generates."""
    return f"A short generation, requests.Session against requests.post: {result_text(claimed)}."


def check_sentence(found: Iterable[Saving]) -> str:
    """Return what a health check adds to a request."""
    checked = (saving.seconds for saving in found if saving.way is Reuse.CHECKED)
    spared = next((_spared(seconds, same=0.0, unit=1e3) for seconds in checked), None)
    return (
        f"A health check before each request costs {f'{spared[0]:.2f} ms' if spared else 'n/a'} of its own."
    )


def absent(*loads: str) -> Mapping[str, str]:
    """Return the arms, under any of these loads, of libraries that are not installed, with the reason."""
    return {
        arm: reason
        for library in LIBRARIES
        if (reason := library.why_absent)
        for load in loads
        for arm in library.arms(load)
    }
