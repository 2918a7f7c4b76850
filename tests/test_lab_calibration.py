"""The client's own check, with the real scripted server in a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from ollamalab.errors import TargetError
from ollamalab.lab import calibration, check_instrument


async def test_the_client_is_never_earlier_than_the_server_wrote() -> None:
    """One clock for both processes: a stamp before the write would be a stamp of something else."""
    check = await check_instrument(streams=3, requests=7)
    assert (check.streams, check.requests) == (3, 7)
    assert 0 < check.late_p50_s <= check.late_max_s
    assert check.tpot_off_ratio >= 0
    (row,) = check.table().rows
    assert row[:2] == (3, 7)
    assert row[3] == pytest.approx(check.late_max_s * 1e3)
    assert row[-1] is check.health.fit
    assert f"{check.late_p50_s * 1e3:.1f} ms" in check.sentence()
    assert "3 streams" in check.sentence()


async def test_a_check_with_lost_requests_is_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for a model that the scripted server does not have."""
    monkeypatch.setattr(calibration, "_MODEL", "other")
    with pytest.raises(TargetError, match=r"answered 0 of 4 requests \(.*model 'other' not found"):
        await check_instrument(streams=2, requests=4)


async def test_a_server_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The interpreter finds another package of this name first, and that has no scripted server."""
    (tmp_path / "ollamalab").mkdir()
    (tmp_path / "ollamalab" / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TargetError, match="the scripted server did not start"):
        await check_instrument(streams=1, requests=1)
