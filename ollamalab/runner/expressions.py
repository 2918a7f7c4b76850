"""Sums over a notebook's parameters, as its metadata writes them: ``"10 + pairs * (load_s + request_s)"``."""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

from ollamalab.errors import SettingsError

_OPERATORS: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max, "len": len, "ceil": math.ceil}


def evaluate(text: str, names: Mapping[str, Any], where: str) -> float:
    """Return the value of a sum: numbers, names, ``+ - * /``, and ``min max len ceil``.

    Args:
        text: The sum.
        names: Name to number, or to a list whose ``len`` may be taken.
        where: Whose it is, for messages.

    Raises:
        SettingsError: It is something else, a name is unknown, or it has no value.
    """
    try:
        return float(_value(ast.parse(text, mode="eval").body, names))
    except (SyntaxError, TypeError, ValueError, ArithmeticError, LookupError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else getattr(error, "msg", error)
        raise SettingsError(
            f"{where}: cannot evaluate {text!r} ({reason}); it may have numbers, parameters, + - * / and "
            f"{', '.join(_FUNCTIONS)}"
        ) from error


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=int() | float() as number):
            return number
        case ast.Name(id=name):
            return names[name]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_value(left, names), _value(right, names))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*(_value(argument, names) for argument in arguments))
    raise ValueError(f"{ast.unparse(node)!r} is not part of a sum")
