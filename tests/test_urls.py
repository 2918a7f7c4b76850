"""Addresses are read as ``OLLAMA_HOST`` is."""

import pytest

from ollamalab.errors import SettingsError
from ollamalab.protocol.urls import server_url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("gpu2", "http://gpu2:11434"),
        ("127.0.0.1:11500", "http://127.0.0.1:11500"),
        ("http://gpu2", "http://gpu2:80"),
        ("https://gpu2", "https://gpu2:443"),
        ("https://GPU2/ollama/", "https://gpu2:443/ollama"),
        ("[::1]:11434", "http://[::1]:11434"),
        (" http://127.0.0.1:11434/ ", "http://127.0.0.1:11434"),
    ],
)
def test_an_address_is_completed_as_ollama_host_is(text: str, url: str) -> None:
    assert server_url(text) == url
    assert server_url(url) == url


@pytest.mark.parametrize(
    "text", ["", "http://", "ftp://gpu2", "http://gpu2:port", "http://gpu2:99999", "a b", "http://x?y=1"]
)
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SettingsError, match=r"127\.0\.0\.1:11434"):
        server_url(text)


@pytest.mark.parametrize("text", ["http://me:secret@[gpu2", "http://me:secret/x@gpu2"])
def test_a_password_in_an_address_that_is_none_is_not_repeated_either(text: str) -> None:
    with pytest.raises(SettingsError, match="this is not the address of a server") as caught:
        server_url(text)
    assert "secret" not in str(caught.value)


def test_a_password_is_refused_and_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        server_url("http://me:secret@gpu2")
    assert "secret" not in str(caught.value)
