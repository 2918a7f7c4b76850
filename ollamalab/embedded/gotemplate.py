"""Renders the ``template`` of a generate request, as far as it is simple. Pure.

Ollama's templates are Go's ``text/template``. Understood here is what templates given with a request
mostly are: the fields ``.System``, ``.Prompt``, ``.Response`` and ``.Suffix``, ``if``, ``else if``, ``else``
and ``end`` over one field, ``-`` for trimming, and comments. Anything else is refused by name rather than
rendered wrongly. The model's own template is Jinja and is llama.cpp's business.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ollamalab.errors import SettingsError

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_FIELD = re.compile(r"\.([A-Za-z_]\w*)")
_COMMENT = re.compile(r"/\*.*\*/", re.DOTALL)


@dataclass(frozen=True)
class _Field:
    name: str


@dataclass
class _Branch:
    """An ``if``: what to render if the field is not empty, and what if it is."""

    condition: str
    then: list[_Node]
    otherwise: list[_Node] = field(default_factory=list)


_Node = str | _Field | _Branch


@dataclass(frozen=True)
class _Action:
    words: str


def render_template(template: str, values: Mapping[str, str]) -> str:
    """Return a prompt.

    What follows ``.Response`` is cut off: the model goes on from there.

    Args:
        template: In Go's syntax.
        values: Field names without the dot, and what they hold; any other field is "<no value>", as in Go.

    Raises:
        SettingsError: The template is broken, or needs more of Go's language than is understood here.
    """
    return _text(_Parser(template).whole(), values)


def _text(nodes: list[_Node], values: Mapping[str, str]) -> str:
    texts = []
    for node in nodes:
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, _Field):
            texts.append(values.get(node.name, "<no value>"))
        else:
            texts.append(_text(node.then if values.get(node.condition) else node.otherwise, values))
    return "".join(texts)


class _Parser:
    """One pass over a template; what stands after ``.Response`` is read but not kept."""

    def __init__(self, template: str) -> None:
        self._parts = _parts(template)
        self._is_cut = False

    def whole(self) -> list[_Node]:
        """Return the template's nodes."""
        nodes, ended_by = self._nodes()
        if ended_by:
            raise SettingsError(f"template: unexpected {{{{{ended_by}}}}}")
        return nodes

    def _nodes(self) -> tuple[list[_Node], str]:
        """Return nodes up to an ``else`` or ``end``, and that; "" at the end of the template."""
        nodes: list[_Node] = []
        for part in self._parts:
            keeps = not self._is_cut
            if isinstance(part, str):
                node: _Node = part
            elif part.words == "end" or part.words.split(" ")[0] == "else":
                return nodes, part.words
            elif part.words.startswith("if "):
                node = self._branch(part.words.removeprefix("if "))
            else:
                node = _Field(_field_name(part.words))
                self._is_cut = self._is_cut or node.name == "Response"
            if keeps:
                nodes.append(node)
        return nodes, ""

    def _branch(self, condition: str) -> _Branch:
        then, ended_by = self._nodes()
        branch = _Branch(_field_name(condition.strip()), then)
        if ended_by.startswith("else if "):
            branch.otherwise = [self._branch(ended_by.removeprefix("else if "))]
            return branch  # its end is this one's too
        if ended_by == "else":
            branch.otherwise, ended_by = self._nodes()
        if ended_by != "end":
            raise SettingsError("template: unexpected EOF: an {{if}} has no {{end}}")
        return branch


def _parts(template: str) -> Iterator[str | _Action]:
    """Give literal texts, trimmed as the actions round them say, and actions; comments are left out."""
    at, is_trimmed = 0, False
    for action in _ACTION.finditer(template):
        text = template[at : action.start()]
        text = text.lstrip() if is_trimmed else text
        yield text.rstrip() if action[1] else text
        at, is_trimmed = action.end(), bool(action[3])
        words = action[2].strip()
        if not _COMMENT.fullmatch(words):
            yield _Action(words)
    rest = template[at:]
    if "{{" in rest:
        raise SettingsError("template: :1: unclosed action")
    yield rest.lstrip() if is_trimmed else rest


def _field_name(words: str) -> str:
    match = _FIELD.fullmatch(words)
    if match is None:
        raise SettingsError(
            f"template: {{{{ {words} }}}} is beyond this server, which knows fields, if, else and end; "
            "use `raw` with a finished prompt, or `system`"
        )
    return match[1]
