"""Bars, lines and points as SVG text. Colours are told apart without hue too: each has its mark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = (
    "#0969da", "#bf3989", "#1a7f37", "#9a6700", "#8250df", "#cf222e", "#57606a", "#0a7ea4",
)  # fmt: skip
WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 16, 44


@dataclass(frozen=True)
class Point:
    """A bar: its label, its length and the deviation drawn on it."""

    label: str
    value: float
    deviation: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Data range to pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.stop - self.start)


def bars(points: Sequence[Point]) -> str:
    """Horizontal bars from zero, with deviations as lines."""
    row = 26
    height = row * len(points) + 8
    scale = Scale(0, max(p.value + p.deviation for p in points) or 1.0, 190, WIDTH - 80)
    parts = []
    for place, point in enumerate(points):
        y, end = place * row + 4, scale(point.value)
        parts.append(
            f'<text x="182" y="{y + 15}" text-anchor="end">{escape(point.label)}</text>'
            f'<rect x="190" y="{y}" width="{end - 190:.1f}" height="{row - 8}" fill="#0969da"/>'
            f'<line x1="{scale(point.value - point.deviation):.1f}" y1="{y + 9}" '
            f'x2="{scale(point.value + point.deviation):.1f}" y2="{y + 9}" stroke="#1b1f24"/>'
            f'<text x="{scale(point.value + point.deviation) + 6:.1f}" y="{y + 15}">'
            f"{point.value:.4f}</text>"
        )
    return _svg(height, parts)


def lines(curves: dict[str, list[tuple[float, float]]], x_label: str, y_label: str) -> str:
    """One line a curve, named at its end."""
    x, y = _scales([point for curve in curves.values() for point in curve])
    parts = _axes(x, y, x_label, y_label)
    ends = _spread([y(curve[-1][1]) for curve in curves.values()])
    for place, ((name, curve), end) in enumerate(zip(curves.items(), ends, strict=True)):
        colour = COLOURS[place % len(COLOURS)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in curve)
        dash = "" if place < len(COLOURS) // 2 else ' stroke-dasharray="5 3"'
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}"{dash}/>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in curve
        ]
        parts.append(f'<text x="{WIDTH - RIGHT + 10}" y="{end + 4:.1f}">{escape(name)}</text>')
    return _svg(HEIGHT, parts)


def scatter(points: Sequence[tuple[str, float, float]], x_label: str, y_label: str) -> str:
    """Named points."""
    x, y = _scales([(a, b) for _, a, b in points])
    parts = _axes(x, y, x_label, y_label)
    for place, (name, a, b) in enumerate(points):
        colour = COLOURS[place % len(COLOURS)]
        parts.append(
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="4" fill="{colour}"/>'
            f'<text x="{x(a) + 7:.1f}" y="{y(b) + 4:.1f}">{escape(name)}</text>'
        )
    return _svg(HEIGHT, parts)


def _scales(points: Sequence[tuple[float, float]]) -> tuple[Scale, Scale]:
    xs, ys = [a for a, _ in points], [b for _, b in points]
    margin = 0.08 * ((max(ys) - min(ys)) or 1.0)
    return (
        Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT),
        Scale(min(ys) - margin, max(ys) + margin, HEIGHT - BOTTOM, TOP),
    )


def _axes(x: Scale, y: Scale, x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    middle = (LEFT + right) / 2
    parts = [
        f'<line x1="{LEFT}" y1="{bottom}" x2="{right}" y2="{bottom}" stroke="#57606a"/>',
        f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{bottom}" stroke="#57606a"/>',
        f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>',
        f'<text x="{LEFT + 6}" y="{TOP + 8}">{escape(y_label)}</text>',
    ]
    for place in range(5):
        at_x = x.low + (x.high - x.low) * place / 4
        at_y = y.low + (y.high - y.low) * place / 4
        parts.append(
            f'<text x="{x(at_x):.1f}" y="{bottom + 16}" text-anchor="middle">{at_x:.3g}</text>'
            f'<text x="{LEFT - 6}" y="{y(at_y) + 4:.1f}" text-anchor="end">{at_y:.3g}</text>'
        )
    return parts


def _spread(heights: list[float], gap: float = 14.0) -> list[float]:
    """Labels' heights, moved down where they would overlap."""
    placed = [0.0] * len(heights)
    lowest = float("-inf")
    for index in sorted(range(len(heights)), key=heights.__getitem__):
        lowest = max(heights[index], lowest + gap)
        placed[index] = lowest
    return placed


def _svg(height: int, parts: list[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">'
        + "".join(parts)
        + "</svg>"
    )
