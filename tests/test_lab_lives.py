"""The life of a model, on a server that says what is loaded, and what is told of its memory."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from lab_samples import done
from test_lab_subject import SHAPE, Recorder

from ollamalab import lab
from ollamalab.hosts.target import RemoteTarget
from ollamalab.lab import Life, Phase, Subject
from ollamalab.lab.lives import GONE, IN_USE, KEPT, LOADING, READY, UNLOADED
from ollamalab.loadgen import LoadSettings
from ollamalab.records import Outcome, Sample

URL = "http://127.0.0.1:1"
SERVER: Any = SimpleNamespace(name="m on url", target=SimpleNamespace(url=URL))
NAMES = (UNLOADED, LOADING, READY, IN_USE, KEPT, GONE)


async def test_a_life_loads_uses_and_unloads_in_phases_one_after_the_other() -> None:
    recorder = Recorder()
    app = web.Application()
    app.add_routes([web.post("/api/chat", recorder.chat), web.get("/api/ps", recorder.ps)])
    async with TestServer(app) as server:
        target = RemoteTarget(str(server.make_url("")).rstrip("/"), "0")
        async with Subject(target, "m:1b", seed=5) as subject:
            life = await lab.live_once(subject, LoadSettings(requests=2), SHAPE, pause_s=0.0)
    assert [phase.name for phase in life.phases] == list(NAMES)
    assert [record.outcome for record in life.result.records] == [Outcome.OK] * 2
    assert [body.get("keep_alive") == 0 for body in recorder.loads] == [True, False, True]
    assert recorder.loaded == []
    assert len(recorder.chats) == 2
    moments = [(phase.start_s, phase.end_s) for phase in life.phases]
    assert all(start_s <= end_s for start_s, end_s in moments)
    assert all(before[1] <= after[0] for before, after in pairwise(moments))
    used = life.phases[NAMES.index(IN_USE)]
    assert all(used.start_s <= (record.sent_s or 0) <= used.end_s for record in life.result.records)


def life_from(start_s: float) -> Life:
    """Return a life of six phases of 10 s."""
    phases = [
        Phase(name=name, start_s=start_s + 10 * place, end_s=start_s + 10 * (place + 1))
        for place, name in enumerate(NAMES)
    ]
    return Life(phases=tuple(phases), result=SimpleNamespace(records=()))  # type: ignore[arg-type]


def memory_samples(*, gpus: int = 0) -> list[Sample]:
    """Return a sample each second: 60 MB, a peak of 900 MB while loading, then 600 MB until it is gone."""
    plan = [60e6, 600e6, 600e6, 600e6, 600e6, 60e6]
    found = []
    for second in range(60):
        held_bytes = 900e6 if second == 15 else plan[second // 10]
        found.append(
            Sample(
                at_s=100.5 + second,
                source=f"server {URL}",
                values={"rss_bytes": held_bytes, "cpu_ratio": 1.0},
            )
        )
        for gpu in range(gpus):
            values = {"memory_used_bytes": held_bytes * 10, "sm_utilisation_ratio": 0.5}
            found.append(Sample(at_s=100.5 + second, source=f"gpu{gpu}", values=values))
    return found


def test_memory_is_told_by_phase_at_its_highest_while_it_changes() -> None:
    table = lab.memory_table([life_from(100.0)], memory_samples(), SERVER)
    assert [row[0] for row in table.rows] == list(NAMES)
    assert [row[2] for row in table.rows] == [60.0, 900.0, 600.0, 600.0, 600.0, 60.0]
    assert [row[1] for row in table.rows] == [10.0] * 6
    assert lab.memory_title(table) == "Loaded it holds 600 MB whether it is used or not; unloaded 60 MB"


def test_memory_of_several_gpus_is_added_up() -> None:
    table = lab.memory_table([life_from(100.0)], memory_samples(gpus=2), SERVER)
    assert [column.name for column in table.columns] == ["Phase", "Takes", "Server's processes", "GPUs", "n"]
    assert [row[3] for row in table.rows] == [1200.0, 18000.0, 12000.0, 12000.0, 12000.0, 1200.0]


def test_memory_that_was_not_read_in_a_phase_is_absent() -> None:
    """Such as that of a server behind a URL, or of a phase shorter than the sampling interval."""
    table = lab.memory_table([life_from(1000.0)], memory_samples(), SERVER)
    assert {row[2] for row in table.rows} == {None}
    assert lab.memory_title(table) == "Memory over the life of a model"
    assert lab.memory_table([], [], SERVER).rows == ()


def test_tokens_are_counted_as_they_arrive_over_all_requests() -> None:
    counts = lab.token_counts([done(first_s=1.0, last_s=4.0), done(first_s=2.0, last_s=3.0)])
    assert counts["at_s"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert counts["value"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert lab.token_counts([]).empty


def test_loads_are_spans_from_first_send_to_last_end() -> None:
    spans = lab.load_spans({"one": [done(sent_s=1.0, end_s=3.0)], "nothing": []})
    assert spans.to_dict("records") == [{"name": "one", "start_s": 1.0, "end_s": 3.0}]
    assert lab.phase_spans(life_from(0.0).phases)["name"].tolist() == list(NAMES)


def test_panels_are_of_what_was_sampled() -> None:
    assert list(lab.machine_panels(memory_samples(), SERVER)) == [
        "server's CPU\n[cores]",
        "server's\nmemory [MB]",
    ]
    panels = lab.machine_panels(memory_samples(gpus=1), SERVER)
    assert panels["GPU\nutilisation [%]"]["value"].tolist() == [50.0] * 60
    assert panels["GPU\nmemory [MB]"]["value"].max() == pytest.approx(9000.0)
    assert lab.machine_panels([], SERVER) == {}
