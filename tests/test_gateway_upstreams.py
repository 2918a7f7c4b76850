"""Upstreams of the settings become members: the same ones stay, and nothing is done by halves."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollamalab.errors import SettingsError
from ollamalab.gateway.upstreams import Upstreams
from ollamalab.settings import UpstreamSettings

A = UpstreamSettings(url="http://127.0.0.1:9", name="a")
B = UpstreamSettings(url="http://127.0.0.1:10", name="b")


async def test_the_same_settings_are_the_same_member_whatever_its_weight() -> None:
    upstreams = Upstreams(request_timeout_s=1.0, load_timeout_s=1.0)
    a, b = await upstreams.members([A, B])
    heavier = UpstreamSettings(url=A.url, name="a", weight=3)
    elsewhere = UpstreamSettings(url="http://127.0.0.1:11", name="b")
    again, other = await upstreams.members([heavier, elsewhere])
    assert (again, again.view.weight) == (a, 3)
    assert other is not b
    for member in (a, b, other):
        assert member.close is not None
        await member.close()
    assert not upstreams.open_connections()


@pytest.mark.parametrize(
    "bad",
    [
        UpstreamSettings(url="http://127.0.0.1:12", name="c", api_key_env="NOT_SET_ANYWHERE"),
        UpstreamSettings(url="https://127.0.0.1:12", name="c", ca_file=Path("/nope.pem")),
    ],
)
async def test_one_that_cannot_be_used_leaves_nothing_open_and_nothing_changed(bad: UpstreamSettings) -> None:
    upstreams = Upstreams(request_timeout_s=1.0, load_timeout_s=1.0)
    (a,) = await upstreams.members([A])
    with pytest.raises(SettingsError):
        await upstreams.members([UpstreamSettings(url=A.url, name="a", weight=5), B, bad])
    assert a.view.weight == 1
    assert set(upstreams.open_connections()) == {A.url}
    assert await upstreams.members([A]) == [a]
    assert a.close is not None
    await a.close()
