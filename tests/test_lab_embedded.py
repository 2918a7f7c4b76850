"""What notebooks measure on our own server, with a real model: loads, launches, pings, and no leftovers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from lab_samples import E2E

from ollamalab import lab
from ollamalab.compare import design
from ollamalab.embedded.models import DEFAULT_MODEL
from ollamalab.errors import ModelError
from ollamalab.hosts import open_target
from ollamalab.lab import FRESH, FROM_DISK, PromptShape, Subject, mean_of
from ollamalab.lab.page_cache import cached_ratio, drop_from_cache
from ollamalab.lab.trials import run_visits
from ollamalab.metrics import e2e_final_line_s
from ollamalab.records import Outcome
from ollamalab.report import RUN_VARIABLE
from ollamalab.settings import ServerSettings

KEEP_ALIVE_S = 77.0
SETTINGS = ServerSettings(context_length=512, num_threads=1, keep_alive_s=KEEP_ALIVE_S)
SHAPE = PromptShape(prompt_tokens=64, num_predict=3)
MEAN_E2E = mean_of(e2e_final_line_s)


@pytest.fixture(scope="module")
async def subject() -> AsyncIterator[Subject]:
    """The small model on an embedded server of its own."""
    await lab.have_models("embedded", DEFAULT_MODEL)
    async with (
        open_target("embedded", SETTINGS, models=[DEFAULT_MODEL]) as target,
        Subject(target, DEFAULT_MODEL, seed=1) as opened,
    ):
        yield opened


async def test_the_file_of_a_model_is_known_for_our_own_server_only() -> None:
    await lab.have_models("embedded", DEFAULT_MODEL)
    file = lab.model_file("embedded", DEFAULT_MODEL)
    assert file
    assert file.read_bytes()[:4] == b"GGUF"
    assert lab.model_file("ollama", DEFAULT_MODEL) is None
    assert lab.is_ours("embedded")
    assert lab.is_ours("ollama")
    assert not lab.is_ours("http://gpu2:11434")


async def test_models_of_other_servers_are_theirs_and_unknown_ones_of_ours_are_named() -> None:
    await lab.have_models("http://gpu2:11434", "no-such-model")
    with pytest.raises(ModelError, match="no-such-model"):
        await lab.have_models("embedded", "no-such-model")


async def test_a_preload_takes_the_load_out_of_the_first_request(subject: Subject) -> None:
    """A load is said to be in the first request exactly when nothing loaded the model before it."""
    visitors = {
        "cold": subject.first_request(SHAPE, is_preloaded=False),
        "preloaded": subject.first_request(SHAPE, is_preloaded=True),
    }
    visits = design(("cold", "preloaded"), 1, random.Random(3))
    trials = await run_visits(visitors, visits)
    assert [record.outcome for record in trials.records] == [Outcome.OK] * 4
    starts = [
        *lab.as_starts(trials.of("cold"), lab.UNLOADED),
        *lab.as_starts(trials.of("preloaded"), lab.PRELOADED),
    ]
    medians = lab.stage_medians(starts)
    assert medians.loc[lab.UNLOADED, "load"] > medians.loc[lab.PRELOADED, "load"]
    assert medians["spawn"].isna().all()


async def test_an_unload_is_over_when_the_server_says_so(subject: Subject) -> None:
    await subject.client.preload(DEFAULT_MODEL)
    assert await subject.is_loaded()
    await subject.unload()
    assert not await subject.is_loaded()
    await subject.unload()


async def test_the_default_keep_alive_is_the_servers_whatever_an_earlier_request_wanted(
    subject: Subject,
) -> None:
    await subject.client.preload(DEFAULT_MODEL, keep_alive="24h")
    before_s = time.monotonic()
    found_s = await lab.default_keep_alive_s(subject)
    elapsed_s = time.monotonic() - before_s
    # A second of grace: expires_at is wall time, which may be set meanwhile.
    assert KEEP_ALIVE_S - elapsed_s - 1 < found_s < KEEP_ALIVE_S + 1


async def test_pings_find_the_model_cold_unless_it_is_kept(subject: Subject) -> None:
    """Kept for no time each ping loads again; kept for ever only the first does, and it never leaves."""
    dropped = await lab.watch_pings(subject, every_s=0.6, pings=2, keep_alive_s=0)
    kept = await lab.watch_pings(subject, every_s=0.1, pings=3, keep_alive_s=-1)
    assert (dropped.pings, dropped.cold_pings) == (2, 2)
    assert dropped.loaded_ratio < 1
    assert (kept.pings, kept.cold_pings) == (3, 1)
    assert kept.loaded_ratio == pytest.approx(1.0)
    assert kept.watched_s >= 3 * 0.1


async def test_a_start_from_the_disk_has_its_file_dropped_first(subject: Subject) -> None:
    file = lab.model_file("embedded", DEFAULT_MODEL)
    assert file
    await subject.unload()
    if not drop_from_cache(file):
        pytest.skip("this file system keeps the pages of its files (tmpfs, for one)")
    before = psutil.Process(subject.target.pids()[0])
    (start,) = await lab.starts_from_disk(subject, SHAPE, file=file, starts=1)
    assert start.scenario == start.record.arm == FROM_DISK
    assert start.is_ok
    assert start.spawn_s
    assert start.spawn_s > 0
    assert not before.is_running()
    # Whoever loaded the model has read its file again.
    assert (cached_ratio(file) or 0) > 0.9


async def test_without_its_file_a_start_from_the_disk_is_not_measured(subject: Subject) -> None:
    before = subject.target.pids()
    assert await lab.starts_from_disk(subject, SHAPE, file=None, starts=3) == []
    assert subject.target.pids() == before


async def test_reloaded_arms_give_one_warm_pair_per_launch(subject: Subject) -> None:
    """Two launches of two servers: every measured request is warm, on an engine of its own launch."""
    other = ServerSettings(context_length=512, num_threads=1, num_parallel=2)
    async with (
        open_target("embedded", other, models=[DEFAULT_MODEL]) as target,
        Subject(target, DEFAULT_MODEL, seed=1) as tuned,
    ):
        trials = await lab.compare_reloaded(
            {"defaults": subject, "tuned": tuned}, SHAPE, launches=2, rng=random.Random(2)
        )
        engines = [pid for server in (subject, tuned) for pid in server.target.pids()[1:]]
    assert engines
    assert trials.arms == ("defaults", "tuned")
    assert [record.visit for record in trials.records] == list(range(4))
    assert [record.block for record in trials.records] == [0, 0, 1, 1]
    contrast = trials.contrast(E2E, MEAN_E2E, arm="tuned")
    assert (contrast.pairs, contrast.lost_pairs) == (2, 0)
    spread = lab.launch_spread(trials, "tuned", MEAN_E2E)
    assert spread is not None
    assert spread >= 0


async def test_fresh_starts_are_servers_of_their_own(subject: Subject) -> None:
    before = subject.target.url
    starts = await lab.fresh_starts(subject, SHAPE, starts=2)
    assert subject.target.url != before
    assert [start.scenario for start in starts] == [FRESH, FRESH]
    assert len({start.record.target for start in starts}) == 2
    assert all(start.is_ok and start.spawn_s for start in starts)


@pytest.mark.parametrize("ending", ["raise SystemExit(3)", "os.kill(os.getpid(), 9)"])
def test_a_lab_that_is_never_closed_leaves_no_server(ending: str, tmp_path: Path) -> None:
    """A notebook that failed or was killed never reaches its last cell."""
    code = (
        "import asyncio, os\n"
        "from ollamalab import lab\n"
        "async def main():\n"
        "    experiment = lab.Lab('15_report', {'run_name': ''})\n"
        f"    subject = await experiment.subject('embedded', {DEFAULT_MODEL!r})\n"
        "    await subject.client.preload(subject.model)\n"
        "    print(*subject.target.pids(), flush=True)\n"
        "    input()\n"
        f"    {ending}\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, RUN_VARIABLE: str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as notebook:
        assert notebook.stdout
        family = [psutil.Process(int(pid)) for pid in notebook.stdout.readline().split()]
        notebook.communicate("\n")
    assert len(family) > 1
    assert not psutil.wait_procs(family, timeout=60)[1]
