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

_COLOUR = re.compile(r"(fill|stroke): (#[0-9a-f]{6})")
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
    rules = "".join(
        f'[style*="{kind}: {colour}"]{{{kind}:{dark_counterpart(colour)} !important}}'
        for kind, colour in sorted(set(_COLOUR.findall(svg)))
    )
    # Text without a colour of its own is black by default.
    style = f"<style>@media (prefers-color-scheme: dark){{text{{fill:#e8e9ec}}{rules}}}</style>"
    return re.sub(r"(<svg[^>]*>)", lambda match: match.group(1) + style, svg, count=1)


def dark_counterpart(colour: str) -> str:
    """Return the colour for a dark page: "#1f2430" (ink) becomes light, "#0072b2" a lighter blue."""
    red, green, blue = (int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    chroma = max(red, green, blue) - min(red, green, blue)
    if chroma < 0.14:  # ink, grid, paper: change sides, but never to pure black or white
        lightness = 0.93 - 0.82 * lightness
        saturation = min(saturation, 0.12)
    else:
        lightness = max(lightness, 0.55)
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(part * 255):02x}" for part in parts)


def _axes_titles(figure: Any) -> list[Any]:
    """Return the title artists of the axes, left before centre, that say something."""
    titles = [title for axes in figure.axes for title in (axes._left_title, axes.title)]
    return [title for title in titles if title.get_text()]
