"""Keys are read from a file, looked up by digest, and never shown."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from ollamalab.errors import SettingsError
from ollamalab.gateway.keys import KeyRing


def key_file(folder: Path, text: str) -> Path:
    file = folder / "keys"
    file.write_text(text)
    file.chmod(0o600)
    return file


def test_a_key_names_its_holder(tmp_path: Path):
    ring = KeyRing.read(key_file(tmp_path, "# ours\nalice secret-of-alice\n\nbob\tsecret-of-bob  \n"))
    assert len(ring) == 2
    assert ring.holder("Bearer secret-of-alice") == "alice"
    assert ring.holder("bearer  secret-of-bob") == "bob"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer ", "Basic secret-of-alice", "secret-of-alice", "Bearer Secret-of-alice"]
)
def test_anything_else_names_nobody(tmp_path: Path, header: str):
    ring = KeyRing.read(key_file(tmp_path, "alice secret-of-alice"))
    assert ring.holder(header) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alice", "line 1: a line must be `name key`, two words"),
        ("# x\nalice secret-of-alice more", "line 2: a line must be `name key`"),
        ("alice short", "line 1: the key, the second word, is too short; use 8 characters"),
        ("alice secret-one\nalice secret-two", "line 2: another line has this name already"),
        ("alice secret-one\nbob secret-one", "line 2: another line has this key already"),
        ("secret-of-alice alice", "line 1: the key, the second word, is too short"),
        ("# nobody\n", "has no keys; write one `name key` per line"),
    ],
)
def test_a_line_that_is_wrong_is_named_and_its_key_is_not(tmp_path: Path, text: str, words: str):
    with pytest.raises(SettingsError, match=re.escape(words)) as caught:
        KeyRing.read(key_file(tmp_path, text))
    assert "secret" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(SettingsError, match=r"cannot read the key file .*missing: No such file"):
        KeyRing.read(tmp_path / "missing")


def test_a_file_that_others_can_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = key_file(tmp_path, "alice secret-of-alice")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        KeyRing.read(file)
    assert "key_file_readable_by_others" in caplog.text
    assert "secret" not in caplog.text


def test_no_key_shows_in_what_can_be_printed(tmp_path: Path):
    ring = KeyRing.read(key_file(tmp_path, "alice secret-of-alice"))
    assert "secret-of" not in repr(ring)
    assert "secret-of" not in repr(vars(ring))
