"""Bars of several series, group by group, as an inline SVG string in the manner of `rsc_seg.viz.charts`."""

import html
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

from rsc_seg.errors import UserError
from rsc_seg.viz.charts import CHARACTER, DASHES, WIDTH
from rsc_seg.viz.ticks import nice_ticks, number

BAR, GAP, NAME, AXIS = 14.0, 8.0, 16.0, 24.0  # heights of a bar, between groups, of a group's name, of the axis
LEFT, RIGHT = 4.0, 44.0  # the right margin holds the number behind the longest bar
MOST_SERIES = 6
_LEGEND_ROW = 18.0

_ids = itertools.count()


@dataclass(frozen=True)
class Bars:
    """One number a group, None where it is not known."""

    name: str
    values: Sequence[Optional[float]] = field(default_factory=list)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "label") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{_escape(text)}</text>'


def _cut(text: str, room: float) -> str:
    most = max(1, int(room / CHARACTER))
    return text if len(text) <= most else text[: most - 1] + "…"


def _swatch(x: float, y: float, wide: float, high: float, k: int) -> str:
    dash = DASHES[k % len(DASHES)]
    return (
        f'<rect class="area s{k}" stroke-dasharray="{dash}" x="{x:.1f}" y="{y:.1f}" '
        f'width="{wide:.1f}" height="{high:.1f}"/>'
    )


def _legend(series: Sequence[Bars]) -> tuple[list[str], float]:
    """A line for each series, in the order of its bars; a single one needs none."""
    if len(series) < 2:
        return [], 0.0
    body = []
    for k, one in enumerate(series):
        y = k * _LEGEND_ROW
        body += [_swatch(LEFT, y + 3, 22, 10, k), _text(LEFT + 30, y + 12, _cut(one.name, WIDTH - LEFT - 34))]
    return body, len(series) * _LEGEND_ROW + 6


def _known(values: Sequence[Optional[float]]) -> list[float]:
    return [v for v in values if v is not None and math.isfinite(v)]


def _described(groups: Sequence[str], series: Sequence[Bars]) -> str:
    parts = []
    for k, group in enumerate(groups):
        shown = [
            f"{one.name} {'not known' if one.values[k] is None else number(round(float(one.values[k] or 0), 1))}"
            for one in series
        ]
        parts.append(f"{group}: {', '.join(shown)}")
    return "; ".join(parts)


def bar_chart(title: str, groups: Sequence[str], series: Sequence[Bars], *, x_label: str) -> str:
    """Horizontal bars from zero, one for each series below the name of each group; values may be negative.

    The number stands behind its bar; a dash says that there is none. UserError for more than `MOST_SERIES` series, for
    another number of values than of groups, or when nothing is known.
    """
    if len(series) > MOST_SERIES:
        raise UserError(f"chart '{title}': {len(series)} series, {MOST_SERIES} can be told apart; show fewer.")
    for one in series:
        if len(one.values) != len(groups):
            raise UserError(f"chart '{title}', series '{one.name}': {len(one.values)} values, {len(groups)} groups.")
    known = _known([v for one in series for v in one.values])
    if not known:
        raise UserError(f"chart '{title}': no finite value to draw.")
    ticks = nice_ticks(min(0.0, *known), max(0.0, *known), 4)
    low, high = ticks[0], ticks[-1]

    def px(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    legend, top = _legend(series)
    body, y = [], top
    for k, group in enumerate(groups):
        body.append(_text(LEFT, y + 12, _cut(group, WIDTH - LEFT)))
        y += NAME
        for s, one in enumerate(series):
            value = one.values[k]
            if value is None or not math.isfinite(value):
                body.append(_text(px(0.0) + 4, y + 11, "–", kind="tick"))
            else:
                left, right = sorted((px(0.0), px(value)))
                body.append(_swatch(left, y + 2, max(1.0, right - left), BAR - 4, s))
                shown = f"{round(value, 1) + 0.0:.1f}".replace("-", "−")
                body.append(_text(right + 4, y + 11, shown, kind="tick"))
            y += BAR
        y += GAP
    lines = [
        f'<line class="{"axis" if tick == 0 else "grid"}" x1="{px(tick):.1f}" y1="{top:.1f}" x2="{px(tick):.1f}" '
        f'y2="{y:.1f}"/>'
        for tick in ticks
    ]
    lines += [_text(px(t), y + 14, number(t).replace("-", "−"), "middle", "tick") for t in ticks[1:-1]]
    key = f"bars-{next(_ids)}"
    description = f"Bars, {x_label}. {_described(groups, series)}"
    return (
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {y + AXIS:.0f}" role="img" aria-labelledby="{key}-t {key}-d">'
        f'<title id="{key}-t">{_escape(title)}</title><desc id="{key}-d">{_escape(description)}</desc>'
        + "".join([*lines, *legend, *body])
        + "</svg>"
    )
