"""A map of points as a picture, and as a page on which a point shows its image."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from bokeh.embed import file_html
from bokeh.models import ColumnDataSource
from bokeh.plotting import figure as bokeh_figure
from bokeh.resources import INLINE
from bokeh.transform import linear_cmap
from matplotlib import colormaps
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medimage_client.labels.pictures import png, shown

MOST_VALUES = 30  # with colours of their own; rarer ones share a grey
MOST_CHARACTERS = 60  # of a value in the legend of the picture, beside which the points need room
OTHER, NONE = "other values", "no value"
GREY = "#bbbbbb"
DPI = 150

TOOLTIP = """
<div style="max-width: 240px; overflow-wrap: anywhere">
  <img src="@picture" alt="" style="display: block; max-width: 160px; max-height: 160px">
  <b>@value</b><br>@id
</div>
"""


@dataclass(frozen=True, slots=True)
class Colours:
    """What a column means for the colour of each point: one of a few groups, or a number."""

    title: str
    values: list[str]  # as they are shown
    groups: dict[str, str]  # by group its colour, the most frequent first; none of numbers
    group_of: list[str]  # of each point
    numbers: NDArray[np.float64] | None  # not finite where there is none


def colours_of(title: str, column: Sequence[Any]) -> Colours:
    """Numbers of more than MOST_VALUES different values get a scale; all else gets a colour a value."""
    values = [NONE if is_missing(value) else str(value) for value in column]
    present = [value for value in column if not is_missing(value)]
    if present and all(isinstance(value, int | float) for value in present) and len(set(present)) > MOST_VALUES:
        numbers = np.array([np.nan if is_missing(value) else float(value) for value in column])
        return Colours(title, values, {}, [], numbers)
    counts = Counter(value for value in values if value != NONE)
    named = [value for value, _ in counts.most_common(MOST_VALUES)]
    groups = dict(zip(named, palette(len(named)), strict=True))
    group_of = [value if value in groups else NONE if value == NONE else OTHER for value in values]
    groups |= {group: GREY for group in (OTHER, NONE) if group in group_of}
    return Colours(title, values, groups, group_of, None)


def is_missing(value: Any) -> bool:
    return value is None or value == "" or value != value


def palette(n: int) -> list[str]:
    if n <= 20:
        return [to_hex(colour) for colour in colormaps["tab10" if n <= 10 else "tab20"].colors[:n]]  # type: ignore[attr-defined]  # of a listed one
    return [to_hex(colour) for colour in colormaps["turbo"](np.linspace(0.02, 0.98, n))]


def rows_of(colours: Colours, group: str) -> list[int]:
    return [row for row, of_row in enumerate(colours.group_of) if of_row == group]


def draw_png(points: NDArray[np.float32], colours: Colours) -> bytes:
    figure = Figure(figsize=(9, 6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    x, y = points.T
    size = float(np.clip(20000 / len(points), 2, 40))
    if colours.numbers is not None:
        missing = ~np.isfinite(colours.numbers)
        axes.scatter(x[missing], y[missing], s=size, color=GREY, linewidths=0)
        drawn = axes.scatter(x[~missing], y[~missing], s=size, c=colours.numbers[~missing], linewidths=0)
        figure.colorbar(drawn, label=shown(colours.title))
    else:
        for group, colour in colours.groups.items():
            rows = rows_of(colours, group)
            name = group if len(group) <= MOST_CHARACTERS else f"{group[: MOST_CHARACTERS - 1]}…"
            label = shown(f"{name} ({len(rows)})")
            axes.scatter(x[rows], y[rows], s=size, color=colour, linewidths=0, label=label)
        figure.legend(frameon=False, loc="outside right center", fontsize=8, title=shown(colours.title))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right"]].set_visible(False)
    return png(figure)


def draw_page(
    points: NDArray[np.float32], colours: Colours, ids: Sequence[str], pictures: Sequence[str], title: str
) -> str:
    """A page of its own, which needs no network: a click on a group hides it, and a point shows its picture.

    Args:
        pictures: `data:` URLs, empty where there is none.
    """
    plot = bokeh_figure(
        title=title,
        width=1100,
        height=760,
        tools="pan,wheel_zoom,box_zoom,reset,hover",
        active_scroll="wheel_zoom",
        tooltips=TOOLTIP,
    )
    plot.toolbar.logo = None
    plot.axis.visible = plot.grid.visible = False
    size = float(np.clip(400 / np.sqrt(len(points)), 4, 12))

    def source(rows: Sequence[int]) -> ColumnDataSource:
        return ColumnDataSource(
            {
                "x": points[rows, 0],
                "y": points[rows, 1],
                "id": [ids[row] for row in rows],
                "value": [colours.values[row] for row in rows],
                "picture": [pictures[row] for row in rows],
            }
        )

    if colours.numbers is not None:
        found = colours.numbers[np.isfinite(colours.numbers)]
        everything = source(range(len(points)))
        everything.add([*colours.numbers], "number")
        colour_of = linear_cmap("number", "Viridis256", found.min(), found.max(), nan_color=GREY)
        drawn = plot.scatter("x", "y", source=everything, size=size, color=colour_of, line_color=None)
        plot.add_layout(drawn.construct_color_bar(title=colours.title), "right")
    else:
        for group, colour in colours.groups.items():
            rows = rows_of(colours, group)
            label = f"{group} ({len(rows)})"
            plot.scatter("x", "y", source=source(rows), size=size, color=colour, line_color=None, legend_label=label)
        plot.add_layout(plot.legend[0], "right")
        plot.legend.click_policy = "hide"
        plot.legend.title = colours.title
    page: str = file_html(plot, INLINE, title)
    return page
