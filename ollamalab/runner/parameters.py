"""Parameters of a notebook: read from its ``parameters`` cell, checked before anything starts.

papermill only warns about an unknown name and passes any value on, so that a typo in a file would
measure the defaults. Here a name or a type that does not fit is an error.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ollamalab.errors import SettingsError
from ollamalab.report.notebooks import source_of

_BUDGET = re.compile(r"^# Budget: (\d+(?:\.\d+)?) min\b", re.MULTILINE)
_PLAIN = {"str": str, "int": int, "float": float, "bool": bool}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One line of a ``parameters`` cell: ``name: kind = default  # text``.

    Attributes:
        name: Its name.
        kind: "str", "int", "float", "bool", "list[...]" or "dict".
        default: Its value in the default run.
        text: The comment after it.
    """

    name: str
    kind: str
    default: Any
    text: str


def parameters_of(notebook: Mapping[str, Any], where: str) -> dict[str, Parameter]:
    """Return the parameters of a notebook, in order; none if no cell has the tag.

    Args:
        notebook: Its JSON.
        where: Its file, for messages.

    Raises:
        SettingsError: A line in the cell is not a plain value with a plain type.
    """
    for cell in notebook["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return parse_parameters(source_of(cell), where)
    return {}


def parse_parameters(source: str, where: str) -> dict[str, Parameter]:
    """Return the parameters in a cell's text; raises like ``parameters_of``."""
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise SettingsError(f"{where}: the parameters cell is not Python: {error.msg}") from error
    lines = source.splitlines()
    found = (_parameter(statement, lines, where) for statement in statements)
    return {parameter.name: parameter for parameter in found if parameter}


def check(values: Mapping[str, Any], parameters: Mapping[str, Parameter], where: str) -> dict[str, Any]:
    """Return values for parameters, whole numbers made floats where a float is asked for.

    Args:
        values: Name to value.
        parameters: Of the notebook.
        where: File or option that the values come from, for messages.

    Raises:
        SettingsError: A name is unknown (the nearest is named) or a value has the wrong type.
    """
    for name in values:
        if name not in parameters:
            nearest = difflib.get_close_matches(str(name), parameters, n=1, cutoff=0.5)
            hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(parameters)}"
            raise SettingsError(f"{where}: no parameter {name!r}; {hint}")
    return {name: _fit(value, parameters[name], where) for name, value in values.items()}


def read_values(path: Path, parameters: Mapping[str, Parameter], where: str) -> dict[str, Any]:
    """Return the checked values of a parameter file; an empty file has none.

    Raises:
        SettingsError: It is not YAML, not a mapping, or does not fit the parameters.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {where}: {error}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{where} is not YAML: {' '.join(str(error).split())}") from error
    if values is not None and not isinstance(values, dict):
        raise SettingsError(f"{where} must hold lines `name: value`, got {type(values).__name__}")
    return check(values or {}, parameters, where)


def read_budget(path: Path) -> float | None:
    """Return the minutes that a parameter file is made for, from its comment ``# Budget: 40 min``.

    A comment, because papermill takes every key for a parameter. None if there is none.
    """
    found = _BUDGET.search(path.read_text(encoding="utf-8"))
    return float(found[1]) if found else None


def read_option(text: str) -> tuple[str, str]:
    """Return name and value of a ``NAME=VALUE`` option.

    Raises:
        SettingsError: There is no "=" or no name.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise SettingsError(f"-p takes NAME=VALUE, got {text!r}")
    return name.strip(), value


def option_value(value: str, parameter: Parameter) -> Any:
    """Return an option's text as a value: texts as they are, everything else as YAML reads it."""
    if parameter.kind == "str":
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _parameter(statement: ast.stmt, lines: list[str], where: str) -> Parameter | None:
    match statement:
        case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
            kind = ast.unparse(annotation)
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            kind = ""
        case ast.Expr(value=ast.Constant()):
            return None
        case _:
            raise SettingsError(
                f"{where}: the parameters cell takes lines `name: type = value`, "
                f"got {ast.unparse(statement)!r}; derived values belong in the next cell"
            )
    try:
        default = ast.literal_eval(value)
    except ValueError as error:
        raise SettingsError(f"{where}: the default of {name!r} must be a plain value") from error
    rest = lines[(statement.end_lineno or 1) - 1].encode()[statement.end_col_offset or 0 :].decode()
    text = rest.partition("#")[2].strip()
    parameter = Parameter(name=name, kind=kind or type(default).__name__, default=default, text=text)
    _fit(default, parameter, where)
    return parameter


def _fit(value: Any, parameter: Parameter, where: str) -> Any:
    """Return a value as its parameter's kind; raise SettingsError if it is another."""
    if not _fits(value, parameter.kind):
        raise SettingsError(
            f"{where}: {parameter.name} must be {parameter.kind}, got {value!r} ({type(value).__name__})"
        )
    return float(value) if parameter.kind == "float" else value


def _fits(value: Any, kind: str) -> bool:
    if kind in _PLAIN:
        # A bool is an int in Python, never in a parameter file; a whole number will do for a float.
        accepted = (int, float) if kind == "float" else _PLAIN[kind]
        return isinstance(value, accepted) and (kind == "bool") == isinstance(value, bool)
    if kind.startswith("list"):
        inner = kind[5:-1]
        return isinstance(value, list) and all(not inner or _fits(item, inner) for item in value)
    return kind.startswith("dict") and isinstance(value, dict)
