"""A server answers and behaves as a real Ollama did, which is recorded in ``ollama.json``.

CI compares the embedded server. Anybody may compare a server of theirs::

    pytest tests/conformance --against http://127.0.0.1:11434 --model llama3.2 --other-model qwen3:0.6b
    pytest tests/conformance --against ollama --record     # keep the answers of another version

Scenes need a server with Ollama's default settings that nobody else uses; those that need other settings are
skipped for a server that is not ours to restart.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from asking import ask
from cases import CASES, Case
from differences import DIFFERENCES
from scheduling import CROWDED, CROWDED_SCENES, DEFAULT_SCENES, Scene
from shapes import shape_of
from subject import Subject, open_subject


@pytest.fixture
def judge(request: pytest.FixtureRequest, subject: Subject, expected: dict[str, Any]) -> Any:
    """Compare a found shape or fact with the recording, or record it."""

    def compare(name: str, found: Any) -> None:
        plain = json.loads(json.dumps(found))
        if request.config.getoption("--record", default=False):
            expected[name] = plain
        elif subject.is_embedded and name in DIFFERENCES:
            assert plain != expected[name], "no longer different: strike it from DIFFERENCES"
        else:
            assert plain == expected[name]

    return compare


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_answer_is_ollamas(case: Case, subject: Subject, judge: Any) -> None:
    answer = await asyncio.to_thread(ask, subject.target.url, case, subject.house.model)
    judge(case.name, shape_of(answer, model=subject.house.model, depth=case.depth))


@pytest.mark.parametrize("scene", DEFAULT_SCENES, ids=lambda scene: scene.__name__)
async def test_scheduling_is_ollamas(scene: Scene, subject: Subject, judge: Any) -> None:
    await subject.house.empty()
    judge(scene.__name__, await scene(subject.house))


@pytest.mark.parametrize("scene", CROWDED_SCENES, ids=lambda scene: scene.__name__)
async def test_scheduling_under_pressure_is_ollamas(scene: Scene, subject: Subject, judge: Any) -> None:
    if subject.target.unchangeable:
        pytest.skip(subject.target.unchangeable)
    house = subject.house
    async with open_subject(subject.target.kind, house.model, house.other, CROWDED) as crowded:
        judge(scene.__name__, await scene(crowded.house))


def test_every_known_difference_is_of_a_case_that_there_is() -> None:
    names = {case.name for case in CASES} | {scene.__name__ for scene in (*DEFAULT_SCENES, *CROWDED_SCENES)}
    assert DIFFERENCES.keys() <= names
    assert len(names) == len(CASES) + len(DEFAULT_SCENES) + len(CROWDED_SCENES)
