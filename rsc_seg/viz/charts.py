"""Line charts and histograms as inline SVG strings.

Drawn in 380 units of width with text of 12, so that a chart stays readable in a 360 pixel column. Colours are CSS
variables of the page (`rsc_seg.viz.style`); series differ by dash and marker as well. Every chart has a title and a
description for screen readers.
"""

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rsc_seg.errors import UserError
from rsc_seg.viz.ticks import nice_ticks, number

WIDTH = 380.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 10.0, 38.0
PLOT_HEIGHT = 190.0
LEGEND_ROW = 18.0
CHARACTER = 6.4  # mean advance of the chart's font at its size, for legends and labels that must not collide
DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 2", "1 2")
COLORS = 6
MAX_POINTS = 1000

_ids = itertools.count()


@dataclass
class Series:
    """A line: x and y of equal length; NaN and infinity break it."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass
class Sample:
    """Numbers of one histogram outline."""

    name: str
    values: Sequence[float] | np.ndarray = field(default_factory=list)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _frame(title: str, description: str, height: float, body: list[str]) -> str:
    key = f"chart-{next(_ids)}"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img" '
        f'aria-labelledby="{key}-t {key}-d"><title id="{key}-t">{_escape(title)}</title>'
        f'<desc id="{key}-d">{_escape(description)}</desc>' + "".join(body) + "</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escape(text)}</text>'


def _line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _legend(names: Sequence[str]) -> tuple[list[str], float]:
    """Samples of every series' stroke with its name, in as many rows as needed; the height they take.

    A single series needs none: the chart's heading names it.
    """
    if len(names) < 2:
        return [], 0.0
    body, x, row = [], 4.0, 0
    for k, name in enumerate(names):
        shown = name if len(name) <= 46 else name[:45] + "…"
        wide = 34 + len(shown) * CHARACTER
        if x > 4 and x + wide > WIDTH:
            x, row = 4.0, row + 1
        y = 10 + row * LEGEND_ROW
        body.append(
            f'<line class="series s{k % COLORS}" stroke-dasharray="{DASHES[k % len(DASHES)]}" '
            f'x1="{x:.1f}" y1="{y:.1f}" x2="{x + 24:.1f}" y2="{y:.1f}"/>'
        )
        body.append(_text(x + 29, y + 4, shown, kind="label"))
        x += wide + 14
    return body, LEGEND_ROW * (row + 1) + 2


class _Axes:
    """The plot's rectangle and the mapping of data to it."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], top: float, log_y: bool = False) -> None:
        self.x, self.y, self.top, self.log_y = x, y, top, log_y
        self.bottom = top + PLOT_HEIGHT
        self.height = self.bottom + BOTTOM

    def px(self, value: float) -> float:
        low, high = self.x
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def py(self, value: float) -> float:
        low, high = (math.log10(v) for v in self.y) if self.log_y else self.y
        at = math.log10(max(value, self.y[0])) if self.log_y else value
        return self.bottom - PLOT_HEIGHT * (at - low) / (high - low)

    def draw(self, x_ticks: Sequence[float], y_ticks: Sequence[float], x_label: str, y_label: str) -> list[str]:
        body = []
        for tick in y_ticks:
            body.append(_line(LEFT, self.py(tick), WIDTH - RIGHT, self.py(tick), "grid"))
            body.append(_text(LEFT - 6, self.py(tick) + 4, number(tick), "end"))
        for tick in x_ticks:
            anchor = "end" if self.px(tick) > WIDTH - RIGHT - 14 else "middle"
            body.append(_line(self.px(tick), self.bottom, self.px(tick), self.bottom + 4, "axis"))
            body.append(_text(self.px(tick), self.bottom + 16, number(tick), anchor))
        body.append(_line(LEFT, self.bottom, WIDTH - RIGHT, self.bottom, "axis"))
        body.append(_text((LEFT + WIDTH - RIGHT) / 2, self.bottom + 32, x_label, "middle", "label"))
        if y_label:
            body.append(_text(4, self.top - 14, y_label, "start", "label"))
        return body


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points: the means of equal runs of points."""
    if len(x) <= MAX_POINTS:
        return x, y
    runs = np.array_split(np.arange(len(x)), MAX_POINTS)
    return np.array([x[r].mean() for r in runs]), np.array([y[r].mean() for r in runs])


def _moving_mean(y: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` points (fewer at the ends); a point that is not finite stays out of the means."""
    fine = np.isfinite(y)
    kernel = np.ones(min(window, len(y)))
    count = np.convolve(fine, kernel, "same")
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(fine, np.convolve(np.where(fine, y, 0), kernel, "same") / count, np.nan)


def _path(axes: _Axes, x: np.ndarray, y: np.ndarray, kind: str, dash: str = "") -> str:
    commands, pen = [], False
    for a, b in zip(x, y, strict=True):
        drawable = math.isfinite(b) and (b > 0 or not axes.log_y)
        if drawable:
            commands.append(f"{'L' if pen else 'M'}{axes.px(a):.1f} {axes.py(b):.1f}")
        pen = drawable
    return f'<path class="{kind}" stroke-dasharray="{dash}" d="{"".join(commands)}"/>'


def _y_range(values: np.ndarray, log_y: bool) -> tuple[tuple[float, float], list[float]]:
    if log_y:
        low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
        high = max(high, low + 1)
        step = max(1, (high - low) // 5)
        return (10.0**low, 10.0**high), [10.0**e for e in range(low, high + 1, step)]
    ticks = nice_ticks(float(values.min()), float(values.max()), 5)
    return (ticks[0], ticks[-1]), ticks


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_label: str = "step",
    y_label: str = "",
    log_y: bool = False,
    smooth: int = 1,
) -> str:
    """Lines over a common x as an SVG string.

    More than 1000 points of a line are replaced by means of equal runs. `smooth` > 1 draws a moving mean over that many
    points and the points themselves faintly behind it. `log_y` leaves out values that are not positive.
    UserError when no series has a finite point or x and y differ in length.
    """
    lines = []
    for s in series:
        if len(s.x) != len(s.y):
            raise UserError(f"chart '{title}', series '{s.name}': {len(s.x)} x values and {len(s.y)} y values.")
        lines.append((np.asarray(s.x, dtype=np.float64), np.asarray(s.y, dtype=np.float64)))
    pooled_y = np.concatenate([y for _, y in lines]) if lines else np.empty(0)
    pooled_x = np.concatenate([x for x, _ in lines]) if lines else np.empty(0)
    drawable = np.isfinite(pooled_y) & ((pooled_y > 0) | (not log_y))
    if not drawable.any():
        raise UserError(f"chart '{title}': no finite{' positive' if log_y else ''} value to draw.")
    legend, offset = _legend([s.name for s in series])
    y_range, y_ticks = _y_range(pooled_y[drawable], log_y)
    low, high = float(pooled_x.min()), float(pooled_x.max())
    axes = _Axes((low, high if high > low else low + 1), y_range, TOP + offset + (22 if y_label else 0), log_y)
    x_ticks = [t for t in nice_ticks(low, axes.x[1], 5) if low <= t <= axes.x[1]]
    body = legend + axes.draw(x_ticks, y_ticks, x_label, y_label)
    for k, (x, y) in enumerate(lines):
        if smooth > 1 and len(y) > 2 * smooth:
            body.append(_path(axes, *_thin(x, y), f"raw s{k % COLORS}"))
            y = _moving_mean(y, smooth)
        body.append(_path(axes, *_thin(x, y), f"series s{k % COLORS}", DASHES[k % len(DASHES)]))
        if len(x) == 1:
            body.append(f'<circle class="dot s{k % COLORS}" cx="{axes.px(x[0]):.1f}" cy="{axes.py(y[0]):.1f}" r="3"/>')
    ends = []
    for s, (_, y) in zip(series, lines, strict=True):
        finite = y[np.isfinite(y)]
        ends.append(
            f"{s.name}: {number(finite[0])} to {number(finite[-1])}" if len(finite) else f"{s.name}: no finite value"
        )
    description = (
        f"Line chart over {x_label}, {number(low)} to {number(high)}. First and last value of each line: "
        + "; ".join(ends)
    )
    return _frame(title, description, axes.height, body)


def histogram(title: str, samples: Sequence[Sample], *, x_label: str, bins: int = 40, log_y: bool = False) -> str:
    """Outlines of several histograms over the same bins, as shares of each sample in percent; an SVG string.

    Bins split the pooled minimum to maximum evenly, so nothing falls outside. `log_y` makes rare outliers visible.
    UserError when no sample holds a finite number.
    """
    values = [np.asarray(s.values, dtype=np.float64).ravel() for s in samples]
    values = [v[np.isfinite(v)] for v in values]
    pooled = np.concatenate(values) if values else np.empty(0)
    if not len(pooled):
        raise UserError(f"chart '{title}': no finite value to count.")
    low, high = float(pooled.min()), float(pooled.max())
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
    shares = [100 * np.histogram(v, edges)[0] / max(1, len(v)) for v in values]
    filled = np.concatenate(shares)
    y_range, y_ticks = _y_range(filled[filled > 0] if log_y else np.append(filled, 0.0), log_y)
    legend, offset = _legend([s.name for s in samples])
    axes = _Axes((float(edges[0]), float(edges[-1])), y_range, TOP + offset + 22, log_y)
    x_ticks = [t for t in nice_ticks(*axes.x, 5) if axes.x[0] <= t <= axes.x[1]]
    body = legend + axes.draw(x_ticks, y_ticks, x_label, "share of tokens, %")
    for k, share in enumerate(shares):
        x, y = np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(share, 2), [0.0]])
        points = " ".join(f"{axes.px(a):.1f},{axes.py(max(b, y_range[0])):.1f}" for a, b in zip(x, y, strict=True))
        body.append(
            f'<polygon class="area s{k % COLORS}" stroke-dasharray="{DASHES[k % len(DASHES)]}" points="{points}"/>'
        )
    facts = [
        f"{s.name}: {len(v)} values, median {number(float(np.median(v)))}, largest {number(float(v.max()))}"
        if len(v)
        else s.name
        for s, v in zip(samples, values, strict=True)
    ]
    return _frame(title, f"Histogram of {x_label} in {bins} bins. " + "; ".join(facts), axes.height, body)
