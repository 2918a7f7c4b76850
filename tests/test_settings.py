"""Server settings are Ollama's, with its laxness in the environment and ours nowhere else."""

import pytest

from ollamalab.errors import SettingsError
from ollamalab.protocol.durations import FOREVER_S
from ollamalab.settings import ServerSettings, server_settings_from_environment


def test_an_empty_environment_gives_the_defaults() -> None:
    assert server_settings_from_environment({}) == ServerSettings()


def test_settings_survive_the_way_through_the_environment() -> None:
    settings = ServerSettings(
        num_parallel=4,
        max_loaded_models=2,
        max_queue=7,
        keep_alive_s=FOREVER_S,
        load_timeout_s=90.0,
        context_length=2048,
        flash_attention=True,
        kv_cache_type="q8_0",
    )
    assert server_settings_from_environment(settings.environment()) == settings


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("OLLAMA_NUM_PARALLEL", "four", "num_parallel", 1),
        ("OLLAMA_NUM_PARALLEL", ' "4" ', "num_parallel", 4),
        ("OLLAMA_KEEP_ALIVE", "90", "keep_alive_s", 90.0),
        ("OLLAMA_KEEP_ALIVE", "rubbish", "keep_alive_s", 300.0),
        ("OLLAMA_FLASH_ATTENTION", "maybe", "flash_attention", True),
        ("OLLAMA_FLASH_ATTENTION", "false", "flash_attention", False),
        ("OLLAMA_MAX_QUEUE", "-5", "max_queue", 512),
    ],
)
def test_the_environment_is_read_as_laxly_as_ollama_reads_it(
    variable: str, text: str, field: str, value: object
) -> None:
    assert getattr(server_settings_from_environment({variable: text}), field) == value


def test_an_override_wins_and_none_leaves_the_environment_alone() -> None:
    environment = {"OLLAMA_NUM_PARALLEL": "4", "OLLAMA_MAX_QUEUE": "9"}
    settings = server_settings_from_environment(environment, num_parallel=2, max_queue=None)
    assert (settings.num_parallel, settings.max_queue) == (2, 9)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_parallel", -1), ("keep_alive_s", -1.0), ("kv_cache_type", "q9"), ("num_threads", 0)],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(SettingsError, match=f"{field}.*{value}"):
        ServerSettings(**{field: value})  # type: ignore[arg-type]


def test_no_slots_asked_for_is_one_slot() -> None:
    assert ServerSettings(num_parallel=0).slots == 1
