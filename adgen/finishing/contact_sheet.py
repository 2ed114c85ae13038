"""The report people open: creatives beside what their users clicked, verdicts, failures and speed, in one HTML file.

Pure: dataclasses in, a page out. The page needs no network, and forbids itself one; every text is escaped, since titles
and product names were written by strangers. Reading a run from a store is report.py's part.
"""

import html
import io
import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from importlib.resources import files
from string import Template

from PIL import Image

from adgen.errors import PairError
from adgen.images import on_white, read_picture
from adgen.records import FAILED, OK, REJECTED

CREATIVE_SIDE, PRODUCT_SIDE, HISTORY_SIDE = 600, 112, 108  # pixels: twice what the page shows, for dense screens


@dataclass(frozen=True, slots=True)
class ReportSummary:
    """A run in numbers."""

    campaign: str
    run_id: str
    state: str
    started_at: datetime
    seconds: float
    """From the run's start to its last change."""
    rows: int
    ok: int
    rejected: int
    failed: int
    carried: int = 0
    generated: int = 0
    stale: int = 0
    drawn_again: int = 0
    templates: int = 0
    plain_backgrounds: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    roofline_share: float | None = None
    """Share of the hardware's roofline that generation reached, 0..1, where a benchmark knows it."""
    published: bool = False
    note: str = ""
    pairs: int | None = None
    """That the rows are variants of; None where that is not known."""


@dataclass(frozen=True, slots=True)
class Card:
    """One creative beside what it was made from. Pictures are `thumbnail`s; None where there is none to show."""

    pair_id: str
    product_id: str
    status: str
    reason: str | None = None
    title: str | None = None
    picture: bytes | None = None
    product_title: str = ""
    selling_points: tuple[str, ...] = ()
    product_picture: bytes | None = None
    history: tuple[tuple[str, bytes | None], ...] | None = None
    """(title, picture) of what the user clicked, oldest first; None when histories cannot be read."""
    gates: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    locale: str | None = None
    channel: str | None = None
    carried: bool = False
    stale: bool = False
    variant: int | None = None
    """Which of its pair's; None where pairs have only one."""
    rank: int | None = None


def thumbnail(picture: bytes, side: int) -> bytes | None:
    """The picture as WebP within `side` pixels, transparency on white; None when it cannot be read."""
    try:
        image = read_picture(picture)
    except PairError:
        return None
    image.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    out = io.BytesIO()
    (on_white(image) if image.mode == "RGBA" else image).save(out, "WEBP", quality=80)
    return out.getvalue()


def render_report(summary: ReportSummary, cards: Sequence[Card]) -> str:
    """The whole page. Good creatives come first, then rejected and failed ones, each in their given order."""
    cards = sorted(cards, key=lambda card: (OK, REJECTED, FAILED).index(card.status))
    good = summary.state == "COMPLETE"
    return _template().substitute(
        page_title=_text(f"{summary.campaign} · {summary.run_id}"),
        campaign=_text(summary.campaign),
        state=_text(summary.state.lower()),
        state_class="good" if good else "bad" if summary.state in ("FAILED", "ABANDONED") else "idle",
        byline=_byline(summary),
        bar_label=f"{summary.ok} ok, {summary.rejected} rejected, {summary.failed} failed",
        bar="".join(f'<i class="{kind}" style="flex:{count}"></i>' for kind, count in _by_status(summary).items() if count),
        figures=_figures(summary),
        reasons=_reasons(summary.reasons),
        sample=f"showing {len(cards):,} of {summary.rows:,} creatives" if summary.rows else "no creatives",
        cards="\n".join(map(_card, cards)),
        private_note=_private_note(cards),
    )


@cache
def _template() -> Template:
    return Template(files(__package__).joinpath("contact_sheet.html").read_text(encoding="utf-8"))


def _by_status(summary: ReportSummary) -> dict[str, int]:
    return {OK: summary.ok, REJECTED: summary.rejected, FAILED: summary.failed}


def _byline(summary: ReportSummary) -> str:
    parts = [
        f"run {_text(summary.run_id)}",
        summary.started_at.strftime("%d %B %Y, %H:%M %Z").strip(),
        "published" if summary.published else "not published",
    ]
    return " · ".join(parts) + (f"<br>{_text(summary.note)}" if summary.note else "")


def _figures(summary: ReportSummary) -> str:
    figures = [(kind, f"{count:,}", kind) for kind, count in _by_status(summary).items()]
    if summary.pairs is not None and summary.pairs < summary.rows:
        figures.append(("", f"{summary.pairs:,}", "pairs"))
    figures += [("", f"{summary.generated:,}", "generated"), ("", f"{summary.carried:,}", "carried over")]
    if summary.stale:
        figures.append(("", f"{summary.stale:,}", "stale"))
    sources = {"drawn again": summary.drawn_again, "titles by template": summary.templates}
    sources["plain backgrounds"] = summary.plain_backgrounds
    figures += [("", f"{count / summary.rows:.0%}", label) for label, count in sources.items() if count and summary.rows]
    figures.append(("", _duration(summary.seconds), "run time"))
    if summary.generated and summary.seconds > 0:
        figures.append(("", f"{summary.generated / summary.seconds:,.2f}", "creatives per second"))
    if summary.roofline_share is not None:
        figures.append(("", f"{summary.roofline_share:.0%}", "of the hardware's roofline"))
    return "".join(f'<div class="{kind}"><b>{value}</b><span>{label}</span></div>' for kind, value, label in figures)


def _reasons(reasons: dict[str, int]) -> str:
    if not reasons:
        return ""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    most = ordered[0][1]
    rows = "".join(
        f'<tr><td>{_text(reason)}</td><td>{count:,}</td><td><i style="width:{count / most:.1%}"></i></td></tr>'
        for reason, count in ordered
    )
    return f'<section class="reasons"><h2>Why creatives were held back</h2><table>{rows}</table></section>'


def _private_note(cards: Sequence[Card]) -> str:
    if any(card.history is not None for card in cards):
        return "Holds what users clicked: keep it where private data may be, and do not pass it on."
    return "Click histories are not shown: they were not readable from here, or nothing was generated."


# -- one creative ----------------------------------------------------------------------------------------------


def _card(card: Card) -> str:
    tag = f'<span class="tag">{_text(card.reason or card.status)}</span>' if card.status != OK else ""
    alt = f"creative for {card.product_title or card.product_id}"
    picture = _image(card.picture, alt) if card.picture else "<em>no picture</em>"
    return (
        f'<article class="card {card.status}"><div class="creative">{picture}{tag}</div><div class="told">'
        f"{_title(card)}{_product(card)}{_history(card)}{_gates(card.gates)}{_facts(card)}</div></article>"
    )


def _title(card: Card) -> str:
    if not card.title:
        return '<p class="title none">no title</p>'
    lang = f' lang="{_text(card.locale.replace("_", "-"))}"' if card.locale else ""
    return f'<p class="title" dir="auto"{lang}>{_text(card.title)}</p>'


def _product(card: Card) -> str:
    points = " · ".join(card.selling_points)
    small = f'<small dir="auto">{_text(points)}</small>' if points else ""
    name = card.product_title or card.product_id
    return f'<div class="product">{_image(card.product_picture, "product")}<p dir="auto">{_text(name)}{small}</p></div>'


def _history(card: Card) -> str:
    if card.history is None:
        return ""
    if not card.history:
        return '<div class="history"><h3>This user has no clicks to go by</h3></div>'
    items = "".join(f"<li>{_image(picture, title)}</li>" for title, picture in card.history)
    return f'<div class="history"><h3>What this user clicked, newest last</h3><ol>{items}</ol></div>'


def _gates(gates: dict[str, str]) -> str:
    passed = [name for name, verdict in gates.items() if verdict == "ok"]
    items = []
    for name, verdict in sorted(gates.items(), key=lambda item: not item[1].startswith("reject")):
        if verdict != "ok":
            level, _, why = verdict.partition(": ")
            kind = "reject" if level == "reject" else "warn"
            items.append(f'<li class="{kind}">{_text(name.replace("_", " "))}: {_text(why)}</li>')
    if passed:
        names = _text(", ".join(passed))
        plural = "gate" if len(passed) == 1 else "gates"
        items.append(f'<li class="ok" title="{names}">{len(passed)} {plural} passed</li>')
    return f'<ul class="gates">{"".join(items)}</ul>' if items else ""


def _facts(card: Card) -> str:
    facts = [f"<code>{_text(card.pair_id[:12])}</code>", _text(card.product_id)]
    if card.variant is not None:
        facts.append(f"variant {card.variant}, rank {card.rank}")
    if card.seconds is not None:
        facts.append(f"{card.seconds:.2f} s")
    facts += [_text(value) for value in (card.locale, card.channel) if value]
    facts += [word for word, holds in (("carried over", card.carried), ("stale", card.stale)) if holds]
    return '<p class="facts">' + "".join(f"<span>{fact}</span>" for fact in facts) + "</p>"


def _image(picture: bytes | None, alt: str) -> str:
    if picture is None:
        return f'<div class="gap" title="{_text(alt)}"></div>'
    data = b64encode(picture).decode()
    return f'<img src="data:image/webp;base64,{data}" alt="{_text(alt)}" title="{_text(alt)}" loading="lazy">'


def _text(value: str) -> str:
    """Escaped for HTML text and attributes; what UTF-8 or HTML cannot hold becomes U+FFFD."""
    return html.escape(re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", value))


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
