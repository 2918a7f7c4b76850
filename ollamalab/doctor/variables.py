"""Rules about the server's environment: units, values that are read otherwise than meant, dead variables."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from ollamalab.doctor.inventory import Finding, Inventory, Unread, variable
from ollamalab.protocol.durations import parse_lenient_duration_s
from ollamalab.settings.variables import NAMED_AT_START, has_llama_server, unknown_variables

_MIB = 2**20

#: Nobody reserves so little of a GPU on purpose.
_LEAST_OVERHEAD_BYTES = 16 * _MIB

#: In MiB this would be more than any GPU has; the number was meant in bytes.
_MOST_FIT_TARGET_MIB = 2**20

#: Bare numbers are seconds; as few as this were meant as minutes or hours.
_SHORT_S = 60

_COUNTS = ("NUM_PARALLEL", "MAX_LOADED_MODELS", "MAX_QUEUE", "CONTEXT_LENGTH", "GPU_OVERHEAD")
_DURATIONS = {"KEEP_ALIVE": "5m", "LOAD_TIMEOUT": "5m"}
_SWITCHES = ("FLASH_ATTENTION", "SCHED_SPREAD", "NOPRUNE", "NO_CLOUD", "DEBUG_LOG_REQUESTS")
_READABLE_SWITCH = {"1", "t", "true", "0", "f", "false"}

#: Of which the table of variables was taken; a later one may have more.
_TABLE_VERSION = (0, 33)


def check_units(inventory: Inventory) -> Iterator[Finding]:
    """Find numbers whose unit was mistaken."""
    values = _values(inventory)
    overhead = values.get("OLLAMA_GPU_OVERHEAD", "")
    if overhead.isdigit() and 0 < int(overhead) < _LEAST_OVERHEAD_BYTES:
        yield Finding(
            rule="wrong-unit",
            evidence=f"OLLAMA_GPU_OVERHEAD={overhead} is {_size(int(overhead))}: the unit is bytes",
            consequence="Practically no memory of the GPU is kept free",
            fix=f"OLLAMA_GPU_OVERHEAD={int(overhead) * _MIB} if MiB were meant; since Ollama 0.30 only "
            f"LLAMA_ARG_FIT_TARGET={overhead} (in MiB) changes what is placed on a GPU",
        )
    target = values.get("LLAMA_ARG_FIT_TARGET", "")
    if target.isdigit() and int(target) >= _MOST_FIT_TARGET_MIB:
        yield Finding(
            rule="wrong-unit",
            evidence=f"LLAMA_ARG_FIT_TARGET={target} is {int(target) / _MIB:.0f} TiB: the unit is MiB",
            consequence="No layer fits beside so much free memory, and models run on the CPU",
            fix=f"LLAMA_ARG_FIT_TARGET={max(1, int(target) // _MIB)}",
        )
    stay = values.get("OLLAMA_KEEP_ALIVE", "")
    if stay.isdigit() and 0 < int(stay) < _SHORT_S:
        yield Finding(
            rule="wrong-unit",
            evidence=f"OLLAMA_KEEP_ALIVE={stay} is {stay} seconds: a bare number counts seconds",
            consequence=f"A model is unloaded {stay} s after its last request",
            fix=f"OLLAMA_KEEP_ALIVE={stay}m or {stay}h, whichever was meant; -1 keeps it for ever",
        )


def check_readable(inventory: Inventory) -> Iterator[Finding]:
    """Find values that Ollama cannot read and replaces without a word, or takes for true."""
    values = _values(inventory)
    for name in _COUNTS:
        value = values.get(f"OLLAMA_{name}", "")
        if value and not value.isdigit():
            yield Finding(
                rule="unreadable-value",
                evidence=f"OLLAMA_{name}={value} is not a whole number",
                consequence="Ollama uses its default instead",
                fix=f"write OLLAMA_{name} without unit and sign"
                + (", in bytes" if "OVERHEAD" in name else ""),
            )
    for name, default in _DURATIONS.items():
        value = values.get(f"OLLAMA_{name}", "")
        if value and parse_lenient_duration_s(value, default_s=_UNREADABLE_S) == _UNREADABLE_S:
            yield Finding(
                rule="unreadable-value",
                evidence=f"OLLAMA_{name}={value} is not a duration (units are ms, s, m and h)",
                consequence=f"Ollama uses its default of {default} instead",
                fix=f"write for example OLLAMA_{name}=24h",
            )
    for name in _SWITCHES:
        value = values.get(f"OLLAMA_{name}", "")
        if value and value.lower() not in _READABLE_SWITCH:
            yield Finding(
                rule="unreadable-value",
                evidence=f"OLLAMA_{name}={value} is neither true nor false",
                consequence="Ollama takes it for true",
                fix=f"OLLAMA_{name}=0 or OLLAMA_{name}=1",
            )


_UNREADABLE_S = -2.0  # no duration comes out so: below 0 means for ever


def check_known(inventory: Inventory) -> Iterator[Finding]:
    """Find variables that this version ignores."""
    values = _values(inventory)
    if isinstance(inventory.version, Unread):
        return
    version = inventory.version
    announced = NAMED_AT_START if _is_in_table(version) else None
    for name, reason in unknown_variables(values, version=version, announced=announced).items():
        near = difflib.get_close_matches(name, NAMED_AT_START, n=1, cutoff=0.85)
        yield Finding(
            rule="unknown-variable",
            evidence=f"{name}={values[name]} is set, and Ollama {version} does not know it",
            consequence="It does nothing",
            fix=f"take it away: {reason}" + (f"; {near[0]} may have been meant" if near else ""),
        )


def _is_in_table(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or not has_llama_server(version):
        return False
    return (int(numbers[1]), int(numbers[2])) <= _TABLE_VERSION


def _values(inventory: Inventory) -> dict[str, str]:
    """Return the server's variables as Ollama reads them: without blanks and quotes round them."""
    if isinstance(inventory.process, Unread):
        return {}
    names = inventory.process.environment
    return {name: variable(inventory, name) for name in names if name.startswith(("OLLAMA_", "LLAMA_ARG_"))}


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024:g} KiB" if size_bytes >= 1024 else f"{size_bytes} bytes"
