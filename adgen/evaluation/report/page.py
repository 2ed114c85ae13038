"""The page that people open: scores with intervals, distributions, groups, best and worst creatives, and a comparison.

One file that needs no network and forbids itself one; every text in it is escaped, since the titles come from people outside.
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from adgen.evaluation.report.charts import groups_svg, histogram_svg
from adgen.evaluation.report.differences import differences_html
from adgen.evaluation.report.labels import UNCERTAIN, label, meaning
from adgen.evaluation.report.parts import cell, effective, figure, interval, pair, table, text
from adgen.evaluation.results.comparison import Comparison
from adgen.evaluation.results.pictures import StoredPictures
from adgen.evaluation.results.summary import PAINTED, Summary, by_length
from adgen.evaluation.scores import SCORES
from adgen.evaluation.statistics import Estimate
from adgen.records import FAILED, OK, REJECTED

STATUSES = (OK, REJECTED, FAILED)
_KINDS = {"locale": "By locale", "category": "By category", "history_length": "By clicks in the prompt"}


def write_page(
    path: Path,
    record: Mapping[str, Any],
    summary: Summary,
    pictures: StoredPictures,
    comparison: Comparison | None = None,
    earlier: StoredPictures | None = None,
) -> None:
    """Write the report to the file `path`. Arguments as of `render_page`."""
    path.write_text(render_page(record, summary, pictures, comparison, earlier), encoding="utf-8")


def render_page(
    record: Mapping[str, Any],
    summary: Summary,
    pictures: StoredPictures,
    comparison: Comparison | None = None,
    earlier: StoredPictures | None = None,
) -> str:
    """The report. `record` says whose evaluation it is: campaign, run_id, model_digest, networks; `pictures` holds its creatives,
    `earlier` those of the evaluation that it is compared with."""
    return _template().substitute(
        page_title=text(f"Evaluation of {record['campaign']} · {record['run_id']}"),
        heading=text(f"Evaluation of {record['campaign']}"),
        byline=_byline(record),
        figures=_figures(summary),
        comparison=differences_html(comparison, pictures, earlier or StoredPictures(())) if comparison else "",
        scores=_scores(summary.scores),
        sets=_sets(summary),
        left_out=_left_out(summary.left_out) + _uncertain(summary.uncertain) + _references(record),
        distributions=_distributions(summary),
        groups="".join(_group(kind, summary) for kind in _KINDS),
        sheets="".join(_sheets(score, summary, pictures) for score in summary.worst),
    )


@cache
def _template() -> Template:
    return Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def _byline(record: Mapping[str, Any]) -> str:
    networks = {kind: network for kind, network in (record.get("networks") or {}).items() if network}
    names = {"pbs": "PBS", "background": "backgrounds", "distance": "distance of sets", "clip": "titles with pictures"}
    parts = [f"run {record['run_id']}", f"model {(record['model_digest'] or 'not known')[:12]}"]
    parts += [f"{names[kind]} scored by {network['name']} {network['digest'][:8]}" for kind, network in networks.items()]
    if absent := [name for kind, name in names.items() if kind not in networks]:
        parts.append(f"not scored: {', '.join(absent)}")
    return text(" · ".join(parts))


def _figures(summary: Summary) -> str:
    counts = {"creatives": summary.rows} | {name: summary.by_status[name] for name in STATUSES if name in summary.by_status}
    return "".join(f"<div><b>{number:,}</b><span>{text(name)}</span></div>" for name, number in counts.items())


# -- tables ----------------------------------------------------------------------------------------------------------------------


def _scores(scores: Mapping[str, Estimate]) -> str:
    if not scores:
        return "<p>No creative has a score.</p>"
    rows = (
        f"<tr>{_named(name)}<td>{each.mean:.4g}</td><td>{interval(each)}</td><td>{each.rows:,}</td><td>{each.users:,}</td>"
        f"<td>{effective(each.effective_users)}</td></tr>"
        for name, each in scores.items()
    )
    return table(("score", "mean", "95% interval", "creatives", "users", "effective users"), rows)


def _sets(summary: Summary) -> str:
    if not summary.sets:
        return ""
    rows = (
        f"<tr>{_named(name)}<td>{each.value:.4g}</td><td>{interval(each)}</td>"
        f"<td>{text(', '.join(f'{count:,} {what}' for what, count in each.of.items()))}</td></tr>"
        for name, each in summary.sets.items()
    )
    head = ("score", "value", "95% interval", "of")
    return f'<h2>Of all creatives together</h2><div class="wide">{table(head, rows)}</div>'


def _named(name: str) -> str:
    return f"<td>{text(label(name))}<small>{text(meaning(name))}</small></td>"


def _left_out(left_out: Mapping[str, int]) -> str:
    if not left_out:
        return ""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    rows = (f"<tr><td>{text(label(reason))}</td><td>{count:,}</td></tr>" for reason, count in ordered)
    return f'<h2>What could not be scored</h2><div class="wide">{table(("reason", "creatives"), rows)}</div>'


def _uncertain(uncertain: Mapping[str, list[str]]) -> str:
    notes = (f"{', '.join(map(label, names))}: {UNCERTAIN[reason]}" for reason, names in uncertain.items())
    return "".join(f'<p class="note">{text(each)}.</p>' for each in notes)


def _references(record: Mapping[str, Any]) -> str:
    problems = record.get("reference_problems")
    if not problems:
        return ""
    found = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in problems.items())
    return f'<p class="note">Of {record["references"]["rows"]:,} rows of the table of references: {text(found)}.</p>'


# -- charts ----------------------------------------------------------------------------------------------------------------------


def _distributions(summary: Summary) -> str:
    varying = {name: each for name, each in summary.histograms.items() if each.varies}
    alike = [f"{label(name)} {summary.scores[name].mean:.4g}" for name in summary.histograms if name not in varying]
    note = f'<p class="note">The same for all creatives: {text(", ".join(alike))}.</p>' if alike else ""
    charts = {name: histogram_svg(label(name), each, summary.scores[name]) for name, each in varying.items()}
    return f'{note}<div class="grid">{"".join(_cell(name, summary.scores[name], chart) for name, chart in charts.items())}</div>'


def _group(kind: str, summary: Summary) -> str:
    groups = {group: scores for group, scores in summary.groups.get(kind, {}).items() if scores}
    groups = by_length(groups) if kind == "history_length" else groups
    names = [score.name for score in SCORES if score.in_groups and any(score.name in scores for scores in groups.values())]
    if len(groups) < 2 or not names:
        return ""  # one group is all creatives again
    charts = (
        groups_svg(label(name), {group: scores[name] for group, scores in groups.items() if name in scores}, summary.scores[name])
        for name in names
    )
    cells = "".join(_cell(name, summary.scores[name], chart) for name, chart in zip(names, charts, strict=True))
    rows = (
        f"<tr><td>{text(group)}</td>{''.join(f'<td>{cell(scores.get(name))}</td>' for name in names)}</tr>"
        for group, scores in groups.items()
    )
    numbers = table((_KINDS[kind], *map(label, names)), rows)
    return (
        f'<h2>{_KINDS[kind]}</h2><div class="grid">{cells}</div>'
        f'<details><summary>as numbers, with how many creatives</summary><div class="wide">{numbers}</div></details>'
    )


def _cell(name: str, whole: Estimate, chart: str) -> str:
    heading = f"<b>{text(label(name))}<span>{whole.mean:.4g}</span></b>"
    return f'<div class="cell" title="{text(meaning(name))}">{heading}{chart}</div>'


# -- pictures --------------------------------------------------------------------------------------------------------------------


def _sheets(score: str, summary: Summary, pictures: StoredPictures) -> str:
    parts = [f'<h2>Lowest and highest: {text(label(score))}</h2><p class="note">{text(meaning(score))}</p>']
    kind, show = ("pairs", _painted) if score == PAINTED else ("sheet", _creative)
    for heading, rows in (("lowest", summary.worst[score]), ("highest", summary.best[score])):
        title = f"{heading}: as painted, then with the real product" if score == PAINTED else heading
        parts.append(f'<h3>{title}</h3><div class="{kind}">{"".join(show(row, pictures) for row in rows)}</div>')
    return "".join(parts)


def _creative(row: Mapping[str, Any], pictures: StoredPictures) -> str:
    return figure(pictures.creative(row), row["title"], row, f"{row['value']:.4g}")


def _painted(row: Mapping[str, Any], pictures: StoredPictures) -> str:
    return pair(f"<figure>{pictures.painted(row)}</figure>", _creative(row, pictures))
