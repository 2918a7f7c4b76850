"""Keys and values of a YAML file, each key once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ollamalab.errors import SettingsError


def read_keys(file: Path) -> dict[str, object]:
    """Return what a file holds; a dash in a key counts as an underscore.

    Raises:
        SettingsError: It cannot be read, is no YAML, holds no keys, or one of them twice, of which YAML
            would silently take the last.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise SettingsError(f"cannot read {file}: {error.strerror}") from error
    except _GivenTwice as error:
        raise SettingsError(f"{file}, line {error.line}: {error.key} is given twice; keep one") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise SettingsError(
            f"{file}{line} is not YAML: {getattr(error, 'problem', None) or error}"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{file} must hold keys and values, such as `port: 11435`")
    return {_plain(key): value for key, value in content.items()}


class _GivenTwice(Exception):
    """A key stands a second time among those of one mapping."""

    def __init__(self, key: str, line: int) -> None:
        super().__init__(key, line)
        self.key = key
        self.line = line  # from 1


class _Loader(yaml.SafeLoader):
    """Refuses keys that are given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _value in node.value:
            key = _plain(key_node.value)
            if key in seen:
                raise _GivenTwice(key, key_node.start_mark.line + 1)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _plain(key: object) -> str:
    return str(key).replace("-", "_")
