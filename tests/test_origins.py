"""Pages and host names are let in as by Ollama; each line was seen at a real one."""

import pytest

from ollamalab.protocol.origins import AccessRules

RULES = AccessRules(host_names=frozenset({"vm"}), addresses=frozenset({"8.8.4.4"}))


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("localhost", True),
        ("localhost:11434", True),
        ("LOCALHOST", True),
        ("127.0.0.1", True),
        ("127.0.0.2:11434", True),
        ("[::1]:11434", True),
        ("0.0.0.0", True),
        ("192.168.1.5", True),
        ("10.0.0.1:11434", True),
        ("foo.local", True),
        ("foo.localhost", True),
        ("foo.internal:11434", True),
        ("host.docker.internal", True),
        ("vm", True),
        ("VM:11434", True),
        ("8.8.4.4", True),
        ("", True),
        (" ", True),
        ("example.com", False),
        ("example.com:11434", False),
        ("8.8.8.8", False),
        ("myhost", False),
        ("local", False),
        ("localhost.example.com", False),
    ],
)
def test_a_loopback_server_answers_to_local_names_only(host: str, is_allowed: bool) -> None:
    assert RULES.allows_host(host) is is_allowed
    assert AccessRules(is_loopback=False).allows_host(host)


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://localhost",
        "http://127.0.0.1",
        "http://0.0.0.0:8080",
        "app://x",
        "vscode-webview://abc",
        "file:///home",
        "chrome-extension://abc",
    ],
)
def test_local_pages_and_apps_may_read(origin: str) -> None:
    assert RULES.cors_headers(origin, "127.0.0.1:11434") == {
        "Access-Control-Allow-Origin": origin,
        "Vary": "Origin",
    }


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://192.168.1.5", "http://localhost.evil.example"]
)
def test_foreign_pages_may_not_even_ask(origin: str) -> None:
    assert RULES.cors_headers(origin, "127.0.0.1:11434") is None


def test_no_page_and_its_own_page_need_no_permission() -> None:
    assert RULES.cors_headers(None, "127.0.0.1:11434") == {}
    assert RULES.cors_headers("http://example.com", "example.com") == {}


def test_further_origins_can_be_allowed_and_a_star_allows_all() -> None:
    further = AccessRules(origins=("http://*.example",))
    assert further.cors_headers("http://evil.example", "x") is not None
    assert further.cors_headers("http://evil.test", "x") is None
    everyone = AccessRules(origins=("*",))
    assert everyone.cors_headers("null", "x") == {"Access-Control-Allow-Origin": "*"}
