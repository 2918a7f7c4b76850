"""Forms as browsers and the official client send them."""

from __future__ import annotations

import pytest

from ollamalab.protocol.forms import form_value

TYPE = "multipart/form-data; boundary=xyz"


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


MODEL = part("model", b"whisper:1b")
FILE = part("file", b"RIFF\r\n\r\n--xy\r\nname=model", '; filename="model"\r\nContent-Type: audio/wav')
END = b"--xyz--\r\n"


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (MODEL + FILE + END, "whisper:1b"),
        (FILE + MODEL + END, "whisper:1b"),
        (b"preamble\r\n" + FILE + MODEL + END, "whisper:1b"),
        (MODEL + part("model", b"other") + END, "whisper:1b"),
        (part("model", b"") + END, ""),
        (FILE + END, ""),
        (MODEL[:-5], ""),
        (b"", ""),
        (b'{"model":"m"}', ""),
        (b"--xyz", ""),
        (part("x" * 20_000, b"a") + MODEL + END, "whisper:1b"),
        (1000 * part("a", b"") + MODEL + END, ""),
    ],
)
def test_a_field_is_found_wherever_it_stands(body: bytes, value: str) -> None:
    assert form_value(body, TYPE, "model") == value


@pytest.mark.parametrize(
    ("content_type", "value"),
    [
        ('Multipart/Form-Data; charset=utf-8; boundary="xyz"', "whisper:1b"),
        ("multipart/form-data", ""),
        ("multipart/form-data; boundary=abc", ""),
        ("application/json; boundary=xyz", ""),
        ("", ""),
    ],
)
def test_only_a_form_with_its_boundary_is_read(content_type: str, value: str) -> None:
    assert form_value(MODEL + END, content_type, "model") == value
