"""Simple Go templates are rendered as Go renders them; others are refused by name."""

import pytest

from ollamalab.embedded.gotemplate import render_template
from ollamalab.errors import SettingsError

FIELDS = {"System": "sys", "Prompt": "hi", "Response": ""}


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("Q: {{ .Prompt }} A:", "Q: hi A:"),
        ("{{.System}}|{{.Prompt}}", "sys|hi"),
        ("hello", "hello"),
        ("", ""),
        ("{{ .System }} Q: {{ .Prompt }} A: {{ .Response }}!", "sys Q: hi A: "),
        ("{{ if .System }}{{ .Response }}z{{ end }}w", ""),
        ("{{ .Foo }}", "<no value>"),
        ("{{ if .System }}S:{{ .System }}\n{{ end }}{{ .Prompt }}", "S:sys\nhi"),
        ("{{ if .Foo }}a{{ else if .System }}b{{ else }}c{{ end }}d", "bd"),
        ("{{ if .Foo }}a{{ else if .Bar }}b{{ else }}c{{ end }}d", "cd"),
        ("{{ if .System }}{{ if .Foo }}a{{ else }}b{{ end }}{{ end }}c", "bc"),
        ("a \n {{- .Prompt -}} \n b", "ahib"),
        ("a {{- /* a remark */ -}} b", "ab"),
        ("a {{/* a remark */}} b", "a  b"),
    ],
)
def test_fields_branches_and_trimming_are_rendered(template: str, prompt: str) -> None:
    assert render_template(template, FIELDS) == prompt


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ .Prompt", "unclosed action"),
        ("{{ if .System }}x", "has no {{end}}"),
        ("{{ end }}", "unexpected {{end}}"),
        ("{{ else }}", "unexpected {{else}}"),
        ("{{ range .Messages }}{{ .Content }}{{ end }}", "{{ range .Messages }} is beyond this server"),
        ("{{ if eq .System `x` }}y{{ end }}", "eq .System `x`"),
        ("{{ .System | json }}", ".System | json"),
        ("{{ $x := .System }}", "$x := .System"),
    ],
)
def test_what_is_broken_or_beyond_is_refused_with_the_reason(template: str, words: str) -> None:
    with pytest.raises(SettingsError) as caught:
        render_template(template, FIELDS)
    assert words in str(caught.value)
