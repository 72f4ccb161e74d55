"""A Matplotlib figure as inline SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from markupsafe import Markup, escape

from memlaw.report import figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PIXELS_PER_INCH = 104
"""At this scale, two half-width figures fill the width of the page."""


def plot(figure: Figure, name: str, caption: str) -> dict[str, Any]:
    """The figure as inline SVG, labelled for screen readers and never enlarged, with its caption."""
    svg = figures.to_svg(figure, name=name)
    widest = f"max-width:{round(_PIXELS_PER_INCH * figure.get_figwidth())}px"
    labelled = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(caption)}" style="{widest}" ', 1)
    # Safe as markup: Matplotlib escapes text in its SVG, and the caption is escaped above.
    return {"svg": Markup(labelled), "caption": caption, "wide": figure.get_figwidth() > figures.HALF[0]}
