"""Figures as SVG that fits a light and a dark page.

Texts stay texts, in the reader's own font. An embedded style gives each colour a counterpart for
dark pages: greys change sides, colours keep their hue and are lifted where they would sink.
"""

from __future__ import annotations

import colorsys
import io
import re
from dataclasses import dataclass
from typing import Any

#: Marks the text under a figure that is its caption.
CAPTION_ID = "caption"

#: Marks text inside a coloured shape: it keeps its colour, as the shape nearly does.
ON_COLOUR_ID = "on-colour"

_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")
_ON_COLOUR = re.compile(rf'<g id="{ON_COLOUR_ID}.*?</g>', re.DOTALL)
_FONT = re.compile(r"'DejaVu Sans'[^;\"]*")
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', 'DejaVu Sans', sans-serif"


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure taken apart: the drawing without its words, and the words."""

    svg: bytes
    title: str
    caption: str


def draw(figure: Any, *, salt: str) -> Drawing:
    """Return a matplotlib figure as SVG without title and caption, and these two as text.

    Args:
        figure: The figure; it is left as it was.
        salt: Anything stable: the same figure and salt give the same bytes.
    """
    import matplotlib as mpl

    titles = [figure._suptitle] if figure.get_suptitle() else _axes_titles(figure)
    captions = [text for text in figure.texts if text.get_gid() == CAPTION_ID]
    words = [*titles[:1], *captions]
    buffer = io.BytesIO()
    for text in words:
        text.set_visible(False)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, bbox_inches="tight")
    for text in words:
        text.set_visible(True)
    return Drawing(
        svg=adapt(buffer.getvalue().decode()).encode(),
        title=" ".join(titles[0].get_text().split()) if titles else "",
        caption=" ".join(" ".join(text.get_text().split()) for text in captions),
    )


def adapt(svg: str) -> str:
    """Return an SVG with the reader's font and, for dark pages, a counterpart of every colour."""
    svg = _FONT.sub(_FONTS, svg)
    # The rules below match colours as written, in lower case: upper case is out of their reach.
    svg = _ON_COLOUR.sub(lambda match: _COLOUR.sub(lambda part: part[0].upper(), match[0]), svg)
    rules = "".join(
        f'[style*="{kind}: {colour}"]{{{kind}:{dark_counterpart(colour)} !important}}'
        for kind, colour in sorted(set(_COLOUR.findall(svg)))
    )
    # Text without a colour of its own is black by default.
    style = f"<style>@media (prefers-color-scheme: dark){{text{{fill:#e8e9ec}}{rules}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda match: match.group(1) + style, svg, count=1)


def dark_counterpart(colour: str) -> str:
    """Return the colour for a dark page: "#1f2430" (ink) becomes light, "#0072b2" a lighter blue."""
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    if max(parts) - min(parts) < 0.14:  # ink, grid, paper
        hue, lightness, saturation = colorsys.rgb_to_hls(*parts)
        # Middle greys are data or words and have to stand out; ink and paper change sides.
        dark = max(0.96 - 0.86 * lightness, 0.58 if 0.35 < lightness < 0.65 else 0.0)
        parts = list(colorsys.hls_to_rgb(hue, dark, min(saturation, 0.12)))
    else:
        while _luminance(parts) < 0.19:
            parts = [part + 0.06 * (1 - part) for part in parts]
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)


def _luminance(parts: list[float]) -> float:
    """Return the relative luminance of a colour, 0 to 1 (source: WCAG 2.2)."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _axes_titles(figure: Any) -> list[Any]:
    """Return the title artists of the axes, left before centre, that say something."""
    titles = [title for axes in figure.axes for title in (axes._left_title, axes.title)]
    return [title for title in titles if title.get_text()]
