"""Charts as inline SVG that take their colours from the page, so one drawing serves light and dark.

Matplotlib lays a chart out in stand-in colours; `_inline` then swaps each for the CSS variable of the page (ink is
`currentColor`), takes out whatever names another address, and makes the ids unique, because a page holds many
charts. Series differ in line style or marker as well as in colour, and the colours (Okabe and Ito's, darkened for
contrast) survive the common kinds of colour blindness. A chart is about 300 units wide: a phone shows it unscaled
and a wide screen shows several side by side. This is the one file that imports matplotlib.
"""

import contextlib
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from chatloom.evals.intervals import Estimate

if TYPE_CHECKING:  # matplotlib takes half a second to import: only drawing pays for it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, SOFT, GRID = "#1b1f24", "#6a737d", "#d7dbe0"
# Stage or series -> stand-in colour; the page defines --base, --sft, ... for light and dark.
COLOURS = {
    "base": "#757c86",
    "sft": "#0072b2",
    "best_of_n": "#8058a5",
    "ppo": "#d55e00",
    "ppo_ptx": "#00855f",
    "proxy": "#c0508c",
    "gold": "#a87b00",
}
_STYLES: dict[str, Any] = {"ppo": (0, (5, 1.5)), "proxy": (0, (5, 1.5))}
_MARKERS = {"base": "s", "sft": "o", "best_of_n": "D", "ppo": "^", "ppo_ptx": "v", "proxy": "^", "gold": "o"}
_SETTINGS: Any = {
    "svg.fonttype": "none",  # real text: selectable, searchable, in the page's font
    "font.size": 11.0,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "text.color": INK,
    "text.parse_math": False,  # a label is text, whatever characters it holds
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.unicode_minus": True,
}
_STEPS = (1, 2, 2.5, 5, 10)
_WIDTH, _HEIGHT = 4.25, 2.8  # inches of 72 units


@dataclass(frozen=True)
class Series:
    """Points to draw: `colour` is a key of COLOURS; `low` and `high` are an interval around `y` where known."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    kind: Literal["line", "smooth", "points", "dots"] = "line"  # points are joined, dots are not


@dataclass(frozen=True)
class Axis:
    """Labels and scales of a chart. `mark` is (x, label) of a vertical line; `signed` writes the plus of a value."""

    x_label: str
    y_label: str
    percent: bool = False
    signed: bool = False
    digits: int = 2  # of the values written beside bars
    log_y: bool = False
    mark: tuple[float, str] | None = None


def colour_of(stage: str) -> str:
    """The colour key of a stage name; "best_of_4" is "best_of_n" and an unknown stage "base"."""
    if stage.startswith("best_of_"):
        return "best_of_n"
    return stage if stage in COLOURS else "base"


def line_chart(series: Sequence[Series], axis: Axis, *, name: str) -> str:
    """Lines, smoothed curves or points over a number. `name` is the chart's own word for its ids."""
    with _style():
        figure, axes = _figure(axis)
        for one in series:
            _draw(axes, one)
        if axis.mark is not None:
            _mark(axes, axis.mark)
        _legend(axes, series)
        return _inline(figure, name)


def bar_chart(
    labels: Sequence[str], estimates: Sequence[Estimate], colours: Sequence[str], axis: Axis, *, name: str
) -> str:
    """Horizontal bars with their intervals, the value written at the end; one colour key a bar."""
    with _style():
        figure, axes = _figure(axis, height=0.75 + 0.42 * len(labels))
        for row, (estimate, colour) in enumerate(zip(estimates, colours)):
            axes.barh(row, estimate.value, height=0.62, color=COLOURS[colour], linewidth=0)
            ends = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            axes.errorbar(
                estimate.value, row, xerr=ends, color=INK, elinewidth=1.2, capsize=3, capthick=1.2, fmt="none"
            )
            sign = "+" if axis.signed else ""
            text = f"{100 * estimate.value:{sign}.1f} %" if axis.percent else f"{estimate.value:{sign}.{axis.digits}f}"
            side = 1 if estimate.value >= 0 else -1
            end = estimate.high if side > 0 else estimate.low
            axes.annotate(
                text,
                (end, row),
                xytext=(5 * side, 0),
                textcoords="offset points",
                va="center",
                ha="left" if side > 0 else "right",
            )
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", color=GRID, linewidth=0.7)
        if axis.percent:
            axes.xaxis.set_major_formatter(_percent)
        axes.xaxis.set_major_locator(_ticks())
        low, high = min([0.0, *(e.low for e in estimates)]), max([0.0, *(e.high for e in estimates)])
        room = 0.18 * (high - low or 1.0)  # for the values at the ends; a minus sign and the labels need more
        axes.set_xlim(low - (1.4 * room if low < 0 else 0), high + room)
        if low < 0:
            axes.axvline(0, color=SOFT, linewidth=0.8)
        return _inline(figure, name)


def calibration_chart(predicted: Sequence[float], observed: Sequence[Estimate], axis: Axis, *, name: str) -> str:
    """Claimed probability against frequency; on the diagonal a claim is earned. The area is the number of pairs."""
    with _style():
        figure, axes = _figure(axis)
        axes.plot([0.5, 1], [0.5, 1], color=SOFT, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        colour, values = COLOURS["proxy"], [one.value for one in observed]
        ends = [
            [v - one.low for v, one in zip(values, observed)],
            [one.high - v for v, one in zip(values, observed)],
        ]
        axes.errorbar(predicted, values, yerr=ends, color=colour, elinewidth=1.2, capsize=2.5, fmt="none")
        most = max(one.count for one in observed)
        sizes = [18 + 80 * one.count / most for one in observed]
        axes.plot(predicted, values, color=colour, linewidth=1.2, zorder=2)
        axes.scatter(predicted, values, s=sizes, color=colour, linewidths=0, zorder=3)
        axes.set_xlim(0.49, 1.015)
        axes.set_ylim(min([0.45, *(one.low - 0.02 for one in observed)]), 1.02)
        axes.xaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_locator(_ticks())
        return _inline(figure, name)


def smooth(values: Sequence[float], *, reach: int | None = None) -> list[float]:
    """The mean over `reach` values on either side (a fortieth of all if not given), fewer near the ends.

    Unlike a moving average of the past alone, it does not shift a falling curve to the right.
    """
    reach = len(values) // 40 if reach is None else reach
    sums = [0.0, *itertools.accumulate(values)]
    found = []
    for index in range(len(values)):
        side = min(reach, index)  # even at the start, where curves are steep; the end takes what there is
        low, high = index - side, min(index + side + 1, len(values))
        found.append((sums[high] - sums[low]) / (high - low))
    return found


def thin(values: Sequence[float], *, most: int = 240) -> list[float]:
    """At most `most` values at even distances, the first and the last among them."""
    if len(values) <= most:
        return list(values)
    return [values[round(index * (len(values) - 1) / (most - 1))] for index in range(most)]


def _style() -> contextlib.AbstractContextManager[None]:
    import matplotlib

    return matplotlib.rc_context(_SETTINGS)


def _ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5, steps=_STEPS)


def _figure(axis: Axis, *, height: float = _HEIGHT) -> tuple["Figure", "Axes"]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(axis.x_label)
    axes.set_ylabel(axis.y_label)
    axes.xaxis.set_major_locator(_ticks())
    axes.xaxis.set_major_formatter(_short)
    if axis.log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_short)
        axes.yaxis.set_minor_formatter(_short_minor)
    elif axis.percent:
        axes.yaxis.set_major_formatter(_percent)
        axes.yaxis.set_major_locator(_ticks())
    else:
        axes.yaxis.set_major_locator(_ticks())
    return figure, axes


def _draw(axes: "Axes", series: Series) -> None:
    colour, style = COLOURS[series.colour], _STYLES.get(series.colour, "solid")
    x, y = list(series.x), list(series.y)
    if series.kind == "smooth":
        averaged = smooth(y)
        axes.plot(thin(x), thin(y), color=colour, linewidth=0.7, alpha=0.28, zorder=2)
        axes.plot(thin(x), thin(averaged), color=colour, linewidth=1.8, linestyle=style, zorder=3)
    elif series.kind == "dots":
        ends = None
        if series.low:
            ends = [[v - lo for v, lo in zip(y, series.low)], [hi - v for v, hi in zip(y, series.high)]]
        axes.errorbar(x, y, yerr=ends, color=colour, fmt=_MARKERS[series.colour], markersize=7, capsize=3, zorder=4)
    else:
        marker = _MARKERS[series.colour] if series.kind == "points" and len(x) <= 40 else None
        axes.plot(x, y, color=colour, linewidth=1.8, linestyle=style, marker=marker, markersize=4.5, zorder=3)
        if series.low:
            axes.fill_between(x, series.low, series.high, color=colour, alpha=0.16, linewidth=0, zorder=2)


def _legend(axes: "Axes", series: Sequence[Series]) -> None:
    if len(series) < 2:
        return
    from matplotlib.lines import Line2D

    handles = []
    for one in series:
        colour, dots = COLOURS[one.colour], one.kind == "dots"
        style: Any = "none" if dots else _STYLES.get(one.colour, "solid")
        marker = _MARKERS[one.colour] if dots or one.kind == "points" else None
        handles.append(Line2D([], [], color=colour, linewidth=1.8, linestyle=style, marker=marker))
    axes.legend(
        handles,
        [one.label for one in series],
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.0),
        ncols=len(series),
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.9,
        handletextpad=0.5,
        columnspacing=1.2,
        fontsize=10.5,
    )


def _mark(axes: "Axes", mark: tuple[float, str]) -> None:
    axes.axvline(mark[0], color=INK, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    low, high = axes.get_xlim()
    left = (mark[0] - low) / (high - low) > 0.55
    axes.annotate(
        mark[1],
        (mark[0], 0.04),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-5 if left else 5, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        fontsize=10.5,
    )


def _short(value: float, _position: object = None) -> str:
    """12000 -> "12k", 0.5 -> "0.5"."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    return f"{value / 1000:g}k" if abs(value) >= 1000 else f"{value:g}"


def _percent(value: float, _position: object = None) -> str:
    return f"{100 * value:.3g} %"


def _short_minor(value: float, _position: object = None) -> str:
    """On a logarithmic axis only 2 and 5 are written between the powers of ten."""
    return _short(value) if f"{value:e}"[0] in "25" else ""


def _inline(figure: "Figure", name: str) -> str:
    """The figure as an <svg> element for a page: colours by CSS variable, ids under `name`, no address, no title."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would style the whole page
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true">', svg, count=1)
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'xlink:href="#', f'href="#{name}-', svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "inherit", svg)
    svg = svg.replace(INK, "currentColor").replace(SOFT, "var(--soft)").replace(GRID, "var(--grid)")
    for key, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{key.replace('_', '-')})")
    return svg.strip()
