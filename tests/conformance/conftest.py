"""Which server is compared: ``pytest tests/conformance --against URL --model NAME --other-model NAME``."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from subject import Subject, open_subject

_RECORDING = Path(__file__).parent / "ollama.json"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("conformance")
    group.addoption("--against", help="embedded (default), ollama (from PATH), or the URL of a server")
    group.addoption("--model", help="a chat model that it has, without tools or thinking")
    group.addoption("--other-model", help="a second one, of other weights")
    group.addoption("--record", action="store_true", help="keep the answers as those of a real Ollama")


@pytest.fixture(scope="session")
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """The server as it starts by default."""
    option = request.config.getoption
    async with open_subject(
        option("--against", default=None) or "embedded",
        option("--model", default=None) or "smollm2:135m",
        option("--other-model", default=None) or "smollm2:135m-q8_0",
    ) as opened:
        yield opened


@pytest.fixture(scope="session")
def expected(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """What a real Ollama answered; with ``--record``, what this one does."""
    recording = json.loads(_RECORDING.read_text()) if _RECORDING.exists() else {}
    yield recording
    if request.config.getoption("--record", default=False):
        _RECORDING.write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")
