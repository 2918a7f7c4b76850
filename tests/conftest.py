"""What every test shares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from embedded_server import EmbeddedServer

# No deadline: a test asks whether an answer is right, and a busy machine is no wrong answer.
settings.register_profile("ollamalab", deadline=None)
settings.load_profile("ollamalab")


@pytest.fixture(scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """One embedded server with two slots for all tests that leave it running."""
    from embedded_server import embedded_server

    async with embedded_server(tmp_path_factory.mktemp("embedded"), "--num-parallel", "2") as running:
        yield running
