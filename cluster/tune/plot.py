"""The plot of `tandem tune`: each trial's metric over epochs, as one SVG without dependencies."""

import math
from collections.abc import Sequence
from html import escape
from typing import Protocol

WIDTH, HEIGHT, MARGIN = 760, 420, 60
BEST_COLOUR, OTHER_COLOUR = "#1f6feb", "#9aa4b2"


class HasCurve(Protocol):
    """What is drawn of a trial."""

    @property
    def number(self) -> int: ...
    @property
    def best(self) -> float: ...
    @property
    def curve(self) -> tuple[float, ...]: ...


def draw_trials(trials: Sequence[HasCurve], metric: str) -> str:
    """SVG text; the first trial is drawn as the best."""
    values = [value for trial in trials for value in trial.curve if math.isfinite(value)]
    low, high = min(values, default=0.0), max(values, default=1.0)
    high = high if high > low else low + 1e-9
    longest = max((len(trial.curve) for trial in trials), default=1)

    def place(index: int, value: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * index / max(longest - 1, 1)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - low) / (high - low)
        return f"{x:.1f},{y:.1f}"

    lines = []
    for trial in reversed(trials):
        best = trial is trials[0]
        points = " ".join(place(i, v) for i, v in enumerate(trial.curve) if math.isfinite(v))
        colour, width = (BEST_COLOUR, 2.5) if best else (OTHER_COLOUR, 1)
        lines.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}">'
            f"<title>trial {trial.number}: {trial.best:.4f}</title></polyline>"
        )
    axes = f"M{MARGIN},{MARGIN} V{HEIGHT - MARGIN} H{WIDTH - MARGIN}"
    middle, bottom = WIDTH / 2, HEIGHT - MARGIN
    labels = (
        f'<text x="{middle}" y="28" text-anchor="middle" font-size="16">validation '
        f"{escape(metric)} of {len(trials)} trials (best in blue)</text>"
        f'<text x="{middle}" y="{HEIGHT - 18}" text-anchor="middle">evaluation</text>'
        f'<text x="{MARGIN - 8}" y="{bottom}" text-anchor="end">{low:.4f}</text>'
        f'<text x="{MARGIN - 8}" y="{MARGIN + 5}" text-anchor="end">{high:.4f}</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" role="img">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>'
        f'<path d="{axes}" fill="none" stroke="#57606a"/>{"".join(lines)}{labels}</svg>\n'
    )
