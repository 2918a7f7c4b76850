"""Model names follow Ollama's rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollamalab.errors import SettingsError
from ollamalab.protocol.names import parse_name


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("smollm2", "smollm2:latest"),
        ("smollm2:135m", "smollm2:135m"),
        ("library/smollm2:135m", "smollm2:135m"),
        ("registry.ollama.ai/library/smollm2:135m", "smollm2:135m"),
        ("https://registry.ollama.ai/library/smollm2", "smollm2:latest"),
        ("me/smollm2", "me/smollm2:latest"),
        ("localhost:5000/me/smollm2:q8_0", "localhost:5000/me/smollm2:q8_0"),
        ("SmolLM2:135M", "SmolLM2:135M"),
    ],
)
def test_the_short_form_names_the_model_with_its_tag(text: str, short: str) -> None:
    assert parse_name(text).short == short


@pytest.mark.parametrize(
    "text", ["", ":", "a:", ":b", "a/b/c/d", "a b", "-a", "a:b/c", "a\n", "ä", "/a", "a/", "a" * 81]
)
def test_what_is_not_a_name_is_refused_with_its_value(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        parse_name(text)
    assert repr(text) in str(error.value)


@given(st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,10}", fullmatch=True), st.booleans())
def test_spellings_of_one_model_share_a_key(model: str, is_upper: bool) -> None:
    text = model.upper() if is_upper else model
    keys = {
        parse_name(form).key
        for form in (text, f"{text}:latest", f"{text}:LATEST", f"library/{text}", f"LIBRARY/{text}:latest")
    }
    assert len(keys) == 1


@given(st.from_regex(r"[a-z0-9_]{1,5}(:[a-z0-9_]{1,5})?", fullmatch=True))
def test_the_short_form_parses_to_itself(text: str) -> None:
    name = parse_name(text)
    assert parse_name(name.short) == name
