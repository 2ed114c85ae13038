"""Small charts as inline SVG: a distribution, an interval. Colours are the page's."""

from html import escape

from adgen.evaluation.statistics import Difference, Estimate
from adgen.evaluation.summary import Histogram

WIDTH, HEIGHT = 320, 110
_BASE = HEIGHT - 18  # where the bars stand: below are the axis' numbers


def histogram_svg(name: str, histogram: Histogram, estimate: Estimate) -> str:
    """Bars of a score's distribution, its mean as a line."""
    counts = histogram.counts
    most, width = max(1, int(counts.max())), WIDTH / len(counts)
    bars = "".join(
        f'<rect x="{index * width:.1f}" y="{_BASE - _BASE * count / most:.1f}" width="{max(1.0, width - 1):.1f}" '
        f'height="{_BASE * count / most:.1f}"/>'
        for index, count in enumerate(counts.tolist())
        if count
    )
    reach = histogram.high - histogram.low
    mean = WIDTH * (estimate.mean - histogram.low) / reach if reach else WIDTH / 2
    label = escape(f"{name}: mean {estimate.mean:.3g}, from {histogram.low:.3g} to {histogram.high:.3g}")
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}"><title>{label}</title><g class="bars">{bars}</g>'
        f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="0" y2="{_BASE}"/>'
        f'<text x="0" y="{HEIGHT - 4}">{histogram.low:.3g}</text>'
        f'<text x="{WIDTH}" y="{HEIGHT - 4}" text-anchor="end">{histogram.high:.3g}</text></svg>'
    )


def interval_svg(each: Difference, reach: float) -> str:
    """A difference with its interval on an axis from -reach to reach, no difference in the middle."""
    place = lambda value: 100 + 96 * max(-1.0, min(1.0, value / reach)) if reach else 100.0  # noqa: E731
    low, high = (each.mean if end is None else end for end in (each.low, each.high))
    return (
        '<svg class="interval" viewBox="0 0 200 16" aria-hidden="true"><line class="zero" x1="100" x2="100" y1="0" y2="16"/>'
        f'<line class="range" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="8" y2="8"/>'
        f'<circle cx="{place(each.mean):.1f}" cy="8" r="3.5"/></svg>'
    )
