"""The page that people open: scores with intervals, distributions, groups, best and worst creatives, and a comparison.

One file that needs no network and forbids itself one; every text in it is escaped, since strangers wrote the titles.
"""

import html
from base64 import b64encode
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from adgen.creatives import layout
from adgen.creatives.storage import Storage
from adgen.errors import StoreError
from adgen.evaluation.comparison import Comparison
from adgen.evaluation.report.charts import histogram_svg, interval_svg
from adgen.evaluation.statistics import Difference, Estimate
from adgen.evaluation.summary import Summary
from adgen.finishing.contact_sheet import thumbnail

PICTURE_SIDE = 280  # pixels: twice what the page shows
LESS_IS_BETTER = frozenset({"title_empty", "product_distance", "product_spill", "copied", "history_correlation"})
NEITHER = frozenset({"width", "pbs_stranger_history"})  # more of these is neither good nor bad
IN_GROUPS = ("allowed_words", "selling_point_coverage", "bleu", "product_iou", "copied", "pbs_reference", "pbs_history_margin")
_KINDS = {"locale": "By locale", "category": "By category", "history_length": "By clicks in the prompt"}


def write_page(path: Path, record: Mapping[str, Any], summary: Summary, comparison: Comparison | None, storage: Storage) -> None:
    """Write the report to the file `path`; pictures of the best and the worst come from `storage`."""
    path.write_text(render_page(record, summary, comparison, storage), encoding="utf-8")


def render_page(record: Mapping[str, Any], summary: Summary, comparison: Comparison | None, storage: Storage) -> str:
    """The report. `record` says whose evaluation it is: campaign, run_id, model_digest, encoder."""
    name = f"{record['campaign']} · {record['run_id']}"
    encoder = record["encoder"] or "none, so scores of backgrounds are left out"
    return _template().substitute(
        page_title=_text(f"Evaluation of {name}"),
        heading=_text(f"Evaluation of {record['campaign']}"),
        byline=_text(f"run {record['run_id']} · model {(record['model_digest'] or 'not known')[:12]} · PBS encoder: {encoder}"),
        figures=_figures({"creatives": summary.rows} | summary.by_status),
        comparison=_comparison(comparison) if comparison else "",
        scores=_scores(summary.scores),
        left_out=_left_out(summary.left_out),
        distributions="".join(_distribution(key, each, summary) for key, each in summary.scores.items()),
        groups="".join(_group(kind, groups) for kind, groups in summary.groups.items()),
        sheets="".join(_sheets(score, summary, storage) for score in summary.worst),
    )


@cache
def _template() -> Template:
    return Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))


def _figures(counts: Mapping[str, int]) -> str:
    return "".join(f"<div><b>{number:,}</b><span>{_text(name)}</span></div>" for name, number in counts.items())


# -- tables ----------------------------------------------------------------------------------------------------------------------


def _scores(scores: Mapping[str, Estimate]) -> str:
    rows = (
        f"<tr><td>{_label(name)}</td><td>{each.mean:.4g}</td><td>{_interval(each)}</td><td>{each.rows:,}</td>"
        f"<td>{each.users:,}</td></tr>"
        for name, each in scores.items()
    )
    return _table(("score", "mean", "95% interval", "creatives", "users"), rows) if scores else "<p>No creative has a score.</p>"


def _left_out(left_out: Mapping[str, int]) -> str:
    if not left_out:
        return ""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    rows = (f"<tr><td>{_label(reason)}</td><td>{count:,}</td></tr>" for reason, count in ordered)
    return "<h2>What could not be scored</h2>" + _table(("reason", "creatives"), rows)


def _group(kind: str, groups: Mapping[str, Mapping[str, Estimate]]) -> str:
    names = [name for name in IN_GROUPS if any(name in scores for scores in groups.values())]
    if not names:
        return ""
    head = (_KINDS[kind], *(name.replace("_", " ") for name in names))
    rows = (
        f"<tr><td>{_text(group)}</td>" + "".join(f"<td>{_cell(scores.get(name))}</td>" for name in names) + "</tr>"
        for group, scores in groups.items()
    )
    return f'<h2>{_KINDS[kind]}</h2><div class="wide">{_table(head, rows)}</div>'


def _comparison(found: Comparison) -> str:
    rows = []
    for name, each in found.differences.items():
        reach = max(abs(end) for end in (each.mean, each.low, each.high) if end is not None)
        p_value = "-" if each.p_value is None else f"{each.p_value:.3f}"
        rows.append(
            f'<tr><td>{_label(name)}</td><td class="{_verdict(name, each)}">{each.mean:+.4g}</td><td>{_interval(each)}</td>'
            f"<td>{interval_svg(each, reach)}</td><td>{p_value}</td><td>{each.rows:,}</td></tr>"
        )
    note = f"{found.pairs:,} creatives of the same pairs; {found.only_here:,} only here, {found.only_there:,} only there."
    head = ("this minus that", "difference", "95% interval", "", "p", "pairs")
    return f'<h2>Against {_text(found.against)}</h2><p class="note">{note}</p><div class="wide">{_table(head, rows)}</div>'


def _verdict(name: str, each: Difference) -> str:
    if not each.is_significant or name in NEITHER:
        return ""
    return "better" if (each.mean > 0) != (name in LESS_IS_BETTER) else "worse"


def _table(head: tuple[str, ...], rows) -> str:
    return "<table><tr>" + "".join(f"<th>{_text(name)}</th>" for name in head) + "</tr>" + "".join(rows) + "</table>"


def _interval(each: Estimate | Difference) -> str:
    return "-" if each.low is None or each.high is None else f"{each.low:.4g} to {each.high:.4g}"


def _cell(each: Estimate | None) -> str:
    return f'{each.mean:.3g} <small title="{_interval(each)}">{each.rows:,}</small>' if each else "-"


# -- pictures --------------------------------------------------------------------------------------------------------------------


def _distribution(name: str, each: Estimate, summary: Summary) -> str:
    chart = histogram_svg(name, summary.histograms[name], each)
    return f'<div class="cell"><b>{_label(name)}<span>{each.mean:.4g}</span></b>{chart}</div>'


def _sheets(score: str, summary: Summary, storage: Storage) -> str:
    parts = [f"<h2>Lowest and highest: {_label(score)}</h2>"]
    for heading, rows in (("lowest", summary.worst[score]), ("highest", summary.best[score])):
        figures = "".join(_figure(row, storage) for row in rows)
        parts.append(f'<h3>{heading}</h3><div class="sheet">{figures}</div>')
    return "".join(parts)


def _figure(row: Mapping[str, Any], storage: Storage) -> str:
    lang = f' lang="{_text(row["locale"].replace("_", "-"))}"' if row["locale"] else ""
    title = f'<p dir="auto"{lang}>{_text(row["title"] or "no title")}</p>'
    facts = f"<code>{row['value']:.4g} · {_text(row['pair_id'][:12])} · {_text(row['product_id'])}</code>"
    return f"<figure>{_image(row['uri'], storage)}<figcaption>{title}{facts}</figcaption></figure>"


def _image(uri: str, storage: Storage) -> str:
    try:
        stored = storage.get(uri) if layout.object_hash(uri) else None
    except StoreError:
        stored = None
    picture = thumbnail(stored.data, PICTURE_SIDE) if stored else None
    if picture is None:
        return '<div class="gap" title="no picture"></div>'
    return f'<img src="data:image/webp;base64,{b64encode(picture).decode()}" alt="creative" loading="lazy">'


def _label(name: str) -> str:
    return _text(name.replace("_", " "))


def _text(value: str) -> str:
    return html.escape("".join(each if each.isprintable() else "\ufffd" for each in value))
