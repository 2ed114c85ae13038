"""The report's section that compares two evaluations: means here and there, what differs significantly, and the pairs that
changed most."""

from collections.abc import Mapping
from typing import Any

from adgen.evaluation.report.charts import interval_svg
from adgen.evaluation.report.labels import label, verdict
from adgen.evaluation.report.parts import effective, figure, interval, pair, table, text
from adgen.evaluation.results.comparison import Comparison
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.statistics import Change, Difference


def differences_html(found: Comparison, here: StoredPictures, there: StoredPictures) -> str:
    """here, there: where creatives of this and of the other evaluation lie."""
    head = ("score", "this", "that", "difference", "95% interval", "", "p", "", "pairs", "effective users")
    rows = (_row(name, each) for name, each in found.differences.items())
    notes = [
        f"{found.pairs:,} creatives of the same pairs; {found.only_here:,} only here, {found.only_there:,} only there. A bar has a "
        "scale of its own: what matters is whether it crosses the line of no difference.",
        f"Each score is tested by itself at 5%: of {len(found.differences)}, about {0.05 * len(found.differences):.1f} differ by "
        "chance where nothing has changed.",
    ]
    if found.not_compared:
        names = ", ".join(map(label, found.not_compared))
        notes.append(f"Not compared, because other networks scored there or the panel of other users differs: {names}.")
    paragraphs = "".join(f'<p class="note">{text(note)}</p>' for note in notes)
    numbers = f'<div class="wide">{table(head, rows)}</div>'
    return f"<h2>Against {text(found.against)}</h2>{paragraphs}{numbers}{_sets(found)}{_sheets(found, here, there)}"


def _row(name: str, each: Change) -> str:
    difference = each.difference
    reach = max(abs(end) for end in (difference.mean, difference.low, difference.high) if end is not None)
    return (
        f"<tr><td>{text(label(name))}</td><td>{each.here:.4g}</td><td>{each.there:.4g}</td><td>{difference.mean:+.4g}</td>"
        f"<td>{interval(difference, 3)}</td><td>{interval_svg(difference, reach)}</td><td>{_p_value(difference)}</td>"
        f"{_conclusion(name, difference)}<td>{difference.rows:,}</td><td>{effective(difference.effective_users)}</td></tr>"
    )


def _p_value(each: Difference) -> str:
    return "–" if each.p_value is None else "&lt; 0.001" if each.p_value < 0.001 else f"{each.p_value:.3f}"


def _conclusion(name: str, each: Difference) -> str:
    if each.mean == 0 and each.low is None:
        return '<td class="unsure">the same</td>'
    if not each.is_significant:
        return '<td class="unsure">not significant</td>'
    found = verdict(name, each.mean) or "differs"
    return f'<td class="{found}">{found}</td>'


def _sets(found: Comparison) -> str:
    if not found.sets:
        return ""
    rows = (f"<tr><td>{text(label(name))}</td><td>{a:.4g}</td><td>{b:.4g}</td></tr>" for name, (a, b) in found.sets.items())
    numbers = table(("distance from references", "this", "that"), rows)
    note = '<p class="note">Of all creatives of either; not paired, so nothing says how certain.</p>'
    return f'{note}<div class="wide">{numbers}</div>'


def _sheets(found: Comparison, here: StoredPictures, there: StoredPictures) -> str:
    parts = []
    for heading, rows in (("fell", found.lost), ("rose", found.gained)):
        changed = [row for row in rows if (row["value"] < 0) == (heading == "fell") and row["value"]]
        if changed:
            pairs = "".join(_pair(row, here, there) for row in changed)
            title = f"{label(found.sheet_score)} {heading} most: this, then that"
            parts.append(f'<h3>{text(title)}</h3><div class="pairs">{pairs}</div>')
    return "".join(parts)


def _pair(row: Mapping[str, Any], here: StoredPictures, there: StoredPictures) -> str:
    mine = figure(here.creative(row), row["title"], row, f"{row['value']:+.4g}")
    theirs = figure(there.creative(row | {"uri": row["there_uri"]}), row["there_title"], row, "that")
    return pair(mine, theirs)
