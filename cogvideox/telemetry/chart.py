"""A line chart as one inline SVG element: no script, no font, no file beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 28, 30, 34
MAX_BUCKETS = 500
LOG_SCALE_FROM_RATIO = 30.0
"""Positive values that span more than this are drawn on a logarithmic axis, if the caller allows it."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """Points in rising x. `css`: a class of the page that sets the stroke. Points that are not finite are gaps."""

    name: str
    css: str
    points: Sequence[Point]
    has_dots: bool = False


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    pixel_low: float
    pixel_high: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high, value = (math.log10(each) if self.is_log else each for each in (self.low, self.high, value))
        return self.pixel_low + (value - low) / (high - low) * (self.pixel_high - self.pixel_low)

    def ticks(self) -> list[float]:
        if self.is_log:
            decades = range(math.floor(math.log10(self.low)), math.floor(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(decades) <= 4 else (1,)
            candidates = [factor * 10.0**decade for decade in decades for factor in factors]
            return [each for each in candidates if self.low <= each <= self.high]
        step = _round_step((self.high - self.low) / 8)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [each * step for each in range(first, last + 1)]


def line_chart(title: str, series: Sequence[Series], x_name: str = "iteration", log_if_wide: bool = False) -> str:
    """SVG of the given series over a common axis; an empty string where no point is finite."""
    finite = [point for each in series for point in each.points if math.isfinite(point[1])]
    if not finite:
        return ""
    x_axis = _axis([x for x, _ in finite], LEFT, WIDTH - RIGHT, log_if_wide=False)
    y_axis = _axis([y for _, y in finite], HEIGHT - BOTTOM, TOP, log_if_wide=log_if_wide)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(title)}</title>',
        f'<text class="heading" x="{LEFT}" y="16">{escape(title)}</text>',
        *_grid(x_axis, y_axis, x_name),
        *(_curve(each, x_axis, y_axis) for each in series),
        *_legend(series),
        "</svg>",
    ]
    return "\n".join(part for part in parts if part)


def _axis(values: Sequence[float], pixel_low: float, pixel_high: float, *, log_if_wide: bool) -> _Axis:
    low, high = min(values), max(values)
    if log_if_wide and low > 0 and high / low > LOG_SCALE_FROM_RATIO:
        return _Axis(low, high, pixel_low, pixel_high, is_log=True)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    return _Axis(low, high, pixel_low, pixel_high)


def _round_step(rough: float) -> float:
    """The least of 1, 2, 5 × 10ⁿ that is not below `rough`."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def _grid(x_axis: _Axis, y_axis: _Axis, x_name: str) -> list[str]:
    lines = []
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        lines.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.3g}</text>')
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        lines.append(f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text class="tick" x="{middle}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_name)}</text>')
    return lines


def _curve(series: Series, x_axis: _Axis, y_axis: _Axis) -> str:
    pieces: list[list[Point]] = [[]]
    for x, y in thin_out(series.points):
        if math.isfinite(y):
            pieces[-1].append((x_axis.at(x), y_axis.at(y)))
        elif pieces[-1]:
            pieces.append([])
    drawn = []
    for piece in (each for each in pieces if each):
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in piece)
        drawn.append(f'<polyline class="{escape(series.css)}" points="{joined}"/>')
        if series.has_dots or len(piece) == 1:
            drawn += [f'<circle class="{escape(series.css)}" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in piece]
    return "\n".join(drawn)


def thin_out(points: Sequence[Point], buckets: int = MAX_BUCKETS) -> list[Point]:
    """At most four points per bucket: its first, least, greatest and last, so that no peak and no gap is lost."""
    if len(points) <= 4 * buckets:
        return list(points)
    kept: list[Point] = []
    size = math.ceil(len(points) / buckets)
    for start in range(0, len(points), size):
        bucket = range(start, min(start + size, len(points)))
        gap = next((each for each in bucket if not math.isfinite(points[each][1])), None)
        finite = [each for each in bucket if math.isfinite(points[each][1])]
        chosen = {bucket[0], bucket[-1]} if gap is None else {gap}
        if finite:
            chosen |= {min(finite, key=lambda each: points[each][1]), max(finite, key=lambda each: points[each][1])}
        kept += [points[each] for each in sorted(chosen)]
    return kept


def _legend(series: Sequence[Series]) -> list[str]:
    lines, x = [], float(WIDTH - RIGHT)
    for each in reversed(series):
        x -= 7.0 * len(each.name) + 30
        lines.append(f'<line class="{escape(each.css)}" x1="{x:.1f}" x2="{x + 18:.1f}" y1="12" y2="12"/>')
        lines.append(f'<text class="tick" x="{x + 22:.1f}" y="16">{escape(each.name)}</text>')
    return lines
