"""Pieces of HTML that several sections of the report are made of."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from adgen.evaluation.results.set_scores import SetScore
from adgen.evaluation.statistics import Difference, Estimate


def text(value: str) -> str:
    """Escaped, for text and attributes; what cannot be shown becomes U+FFFD."""
    return html.escape("".join(each if each.isprintable() else "\ufffd" for each in value))


def table(head: Iterable[str], rows: Iterable[str]) -> str:
    """With a row of headings."""
    return "<table><tr>" + "".join(f"<th>{text(name)}</th>" for name in head) + "</tr>" + "".join(rows) + "</table>"


def interval(each: Estimate | Difference | SetScore, digits: int = 4) -> str:
    """Its ends, or a dash where there is none."""
    return "–" if each.low is None or each.high is None else f"{each.low:.{digits}g} to {each.high:.{digits}g}"


def effective(users: float | None) -> str:
    """A number of effective users; a dash where there is none."""
    return "–" if users is None else f"{users:,.1f}".removesuffix(".0")


def cell(each: Estimate | None) -> str:
    """The mean, and of how many creatives."""
    return f'{each.mean:.3g} <i title="{interval(each)}">{each.rows:,}</i>' if each else "–"


def figure(image: str, title: str | None, row: Mapping[str, Any], value: str) -> str:
    """A creative (`image` is HTML) with its title, a value, and whose it is."""
    lang = f' lang="{text(row["locale"].replace("_", "-"))}"' if row["locale"] else ""
    said = f'<p dir="auto"{lang}>{text(title or "no title")}</p>'
    seed = f" · seed {row['variant']}" if row["variant"] else ""
    ids = f"<code>{text(row['product_id'])} · {text(row['pair_id'][:12])}{seed}</code>"
    return f"<figure>{image}<figcaption><b>{text(value)}</b>{said}{ids}</figcaption></figure>"


def pair(left: str, right: str) -> str:
    """Two figures that belong together."""
    return f'<div class="pair">{left}{right}</div>'
