"""Small charts as inline SVG: a distribution, groups side by side, a difference. Colours are the page's."""

from collections.abc import Mapping
from html import escape

from adgen.evaluation.results.summary import Histogram
from adgen.evaluation.statistics import Difference, Estimate

WIDTH, HEIGHT = 320, 110
_BASE = HEIGHT - 18  # where the bars stand: below are the axis' numbers
_NAMES, _ROW = 116, 20  # room for a group's name, and a group's height
_LONGEST = 17  # characters of a name that fit


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
    caption = f"{name}: mean {estimate.mean:.3g}, from {histogram.low:.3g} to {histogram.high:.3g}"
    ends = _axis(histogram.low, histogram.high, 0, HEIGHT - 4) if reach else _number(WIDTH / 2, HEIGHT - 4, histogram.low, "middle")
    return (
        f'{_opening(HEIGHT, caption)}<g class="bars">{bars}</g>'
        f'<line class="base" x1="0" x2="{WIDTH}" y1="{_BASE}" y2="{_BASE}"/>'
        f'<line class="mean" x1="{mean:.1f}" x2="{mean:.1f}" y1="0" y2="{_BASE}"/>{ends}</svg>'
    )


def groups_svg(name: str, groups: Mapping[str, Estimate], whole: Estimate) -> str:
    """A dot with its 95% interval a group, the mean of all as a line."""
    points = [end for each in groups.values() for end in (each.mean, each.low, each.high) if end is not None] + [whole.mean]
    low, high = min(points), max(points)
    room = (high - low) * 0.04 or 0.5
    place = lambda value: _NAMES + (WIDTH - _NAMES) * (value - low + room) / (high - low + 2 * room)  # noqa: E731
    height = _ROW * len(groups) + 20
    rows = "".join(_group_row(group, each, _ROW * index + 12, place) for index, (group, each) in enumerate(groups.items()))
    caption = f"{name} by group: " + ", ".join(f"{group} {each.mean:.3g}" for group, each in groups.items())
    return (
        f'{_opening(height, caption)}<line class="mean" x1="{place(whole.mean):.1f}" x2="{place(whole.mean):.1f}" y1="2" '
        f'y2="{height - 18}"/>{rows}{_axis(low, high, _NAMES, height - 4) if high > low else ""}</svg>'
    )


def _group_row(group: str, each: Estimate, y: int, place) -> str:
    name = group if len(group) <= _LONGEST else group[: _LONGEST - 1] + "…"
    low, high = (each.mean if end is None else end for end in (each.low, each.high))
    interval = "" if each.low is None else f", 95% interval {low:.3g} to {high:.3g}"
    caption = escape(f"{group}: {each.mean:.3g}{interval}, {each.rows:,} creatives")
    return (
        f'<g><title>{caption}</title><text x="{_NAMES - 8}" y="{y + 4}" text-anchor="end" class="name">{escape(name)}</text>'
        f'<line class="range" x1="{place(low):.1f}" x2="{place(high):.1f}" y1="{y}" y2="{y}"/>'
        f'<circle cx="{place(each.mean):.1f}" cy="{y}" r="3.5"/></g>'
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


def _opening(height: int, caption: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(caption)}"><title>{escape(caption)}</title>'


def _axis(low: float, high: float, left: int, y: int) -> str:
    return _number(left, y, low, "start") + _number(WIDTH, y, high, "end")


def _number(x: float, y: int, value: float, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y}" text-anchor="{anchor}">{value:.3g}</text>'
