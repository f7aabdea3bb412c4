"""How figures look, and how they become part of a page.

Colours are from the palette of Okabe and Ito ("Color universal design", 2008) and differ in lightness too; lines differ
in their dashes, so that a figure can be read in print and by everyone.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

BLUE, ORANGE, GREY, BLACK = "#0072b2", "#d55e00", "#999999", "#222222"
COLOURS = (BLUE, ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", BLACK)
DASHES = ("-", "--", ":", "-.")
WIDTH = 10.5  # inches; the width of the page
NARROW = 3.6  # figures that a telephone shows without scrolling

_METADATA = {"Date": None, "Creator": None}
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "lines.linewidth": 1.4,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text: it can be searched, and is small
}


@contextmanager
def style() -> Iterator[None]:
    """Figures are made and written within this block."""
    with matplotlib.rc_context(_STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def panels(count: int, height: float = 2.1) -> tuple[Figure, list[Axes]]:
    """A figure with `count` small axes side by side, four in a row, or five where that fills it."""
    columns = 5 if count in (5, 9, 10) else 4
    rows = -(-count // columns)
    used = min(columns, count)
    drawn = figure(WIDTH * used / columns, rows * height + 0.35)
    axes = list(drawn.subplots(rows, used, squeeze=False).flat)
    for empty in axes[count:]:
        empty.remove()
    return drawn, axes[:count]


def legend(drawn: Figure, axes: Sequence[Axes]) -> None:
    """One legend above all panels, of whatever stands in any of them."""
    entries: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    drawn.legend(list(entries.values()), list(entries), loc="outside upper left", ncols=len(entries))


def as_svg(drawn: Figure, label: str) -> Markup:
    """The figure as an SVG element, with a text for who cannot see it; the same figure gives the same text."""
    buffer = io.StringIO()
    # The ids in a figure are hashes of what they name and of this salt: two figures on a page must not share them.
    with matplotlib.rc_context({"svg.hashsalt": label}):
        drawn.savefig(buffer, format="svg", bbox_inches="tight", pad_inches=0.05, metadata=_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    narrow = ' class="narrow"' if drawn.get_figwidth() < NARROW else ""
    return Markup(text.replace("<svg", f'<svg{narrow} role="img" aria-label="{escape(label)}"', 1))


def matrix(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str] | None,
    label: str,
    numbers: bool,
    form: str,
    limits: tuple[float, float],
) -> Markup:
    """A heat map of (rows, columns), NaN left white; `numbers` writes each value into its cell.

    columns: None numbers the rows, and has the same numbers for columns
    """
    if columns is None:
        rows, columns = [f"{name}  {i}" for i, name in enumerate(rows, 1)], [str(i + 1) for i in range(len(rows))]
    longest = max(map(len, rows))
    cell = 0.55 if numbers else 0.16
    height, width = (0.22 if numbers else 0.16) * len(rows), max(cell * len(columns), 3.0)
    tilted = max(map(len, columns)) > 3
    turned = max(map(len, columns)) * 0.05 if tilted else 0.1
    drawn = figure(min(WIDTH, width + 0.075 * longest + 1.2), height + turned + 0.6)
    axes = drawn.subplots()
    image = axes.imshow(values, "cividis", aspect="auto", interpolation="none", vmin=limits[0], vmax=limits[1])
    axes.set(yticks=range(len(rows)), yticklabels=rows, xticks=range(len(columns)))
    axes.set_xticklabels(
        columns, rotation=40 if tilted else 0, ha="left" if tilted else "center", rotation_mode="anchor"
    )
    axes.tick_params(
        length=0, labelsize=8 if numbers else 6.5, top=True, labeltop=True, bottom=False, labelbottom=False
    )
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    if not numbers:
        drawn.colorbar(image, ax=axes, fraction=0.03, pad=0.02, aspect=40)
    else:
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                # As bright as the eye takes the cell for (ITU-R BT.709); below 0.46 white has the better contrast.
                bright = np.dot(image.to_rgba(np.array([value]))[0][:3], [0.2126, 0.7152, 0.0722]) >= 0.46
                colour = BLACK if bright else "white"
                axes.text(column, row, form.format(value), ha="center", va="center", color=colour, fontsize=7.5)
    return as_svg(drawn, label)
