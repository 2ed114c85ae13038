"""Gates: what a creative must satisfy, each with a level (off, warn, reject), a verdict in words and a score.

A gate sees a draft only, never a model, a user or a file, so that its verdict can be computed again from the row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from adgen.config import FinishSettings
from adgen.finishing.rules import pack_texts, rule_packs
from adgen.finishing.titles import Number, clean_title, display_width, words
from adgen.finishing.wording import forbidden_hits, product_wording
from adgen.records import OK, REJECTED, digest

VERSION = 3  # raise it when code judges creatives otherwise: published ones are judged again, and made again only where refused
LOOK = "f98af90a78d8a72ef48bd33649aa088b80f8f579368857382430614582a923b8"
"""Stands for finishing in every fingerprint. Change it when code makes a creative look otherwise: all creatives are made again.
The value is the digest of version 0.1.0's rules, which stood here first; the rules of today are not in it."""


class Draft(NamedTuple):
    """What there is to judge."""

    title: str
    title_was_cut: bool
    product_texts: tuple[str, ...]
    """The product's own title and selling points: all that a title may claim."""
    locale: str | None
    background: np.ndarray  # (H, W, 3) uint8
    product_share: float
    product_inside: float


class Finding(NamedTuple):
    """One gate's result: `complaint` is empty when all is well; `severity` is the most it may do about it."""

    scores: dict[str, float]
    complaint: str = ""
    severity: str = "reject"


class Verdict(NamedTuple):
    """All gates' results. `status` is ok or rejected, `reason` the first rejecting gate's name."""

    status: str
    reason: str | None
    gates: dict[str, str]
    """By gate "ok", "warn: ..." or "reject: ..."; gates that are off or had nothing to judge are absent."""
    scores: dict[str, float]


def judge(draft: Draft, settings: FinishSettings) -> Verdict:
    """Every gate that is on, in the order of GATES; those of a title's words only where there is a title."""
    verdicts, scores, reason = {}, {}, None
    for name, gate in GATES.items():
        level = getattr(settings.gates, name)
        if level == "off" or (name in _NEED_A_TITLE and not draft.title):
            continue
        finding = gate(draft, settings)
        scores |= finding.scores
        if not finding.complaint:
            verdicts[name] = "ok"
            continue
        effect = "reject" if level == finding.severity == "reject" else "warn"
        verdicts[name] = f"{effect}: {finding.complaint}"
        if effect == "reject":
            reason = reason or name
    return Verdict(REJECTED if reason else OK, reason, verdicts, scores)


TITLE_CLAIMS = ("title_empty", "forbidden_words", "numbers_and_units", "allowed_words")
"""Gates for whose sake a title is drawn again, though they may only warn. How wide it is is a matter of taste."""


def title_complaint(title: str, product_texts: tuple[str, ...], locale: str | None, settings: FinishSettings) -> str | None:
    """What the gates of a title's words say against a raw title, warnings included; None: nothing, or they are off."""
    cleaned = clean_title(title, settings.title_max_width)
    draft = Draft(cleaned.text, cleaned.was_cut, product_texts, locale, _NO_PICTURE, 0.0, 0.0)
    for name in TITLE_CLAIMS:
        if getattr(settings.gates, name) == "off" or (name in _NEED_A_TITLE and not draft.title):
            continue
        if complaint := GATES[name](draft, settings).complaint:
            return f"{name}: {complaint}"
    return None


def picture_complaint(background: np.ndarray, settings: FinishSettings) -> str | None:
    """What picture_blank says against a painted background (H, W, 3) uint8; None: nothing, or it is off."""
    if settings.gates.picture_blank == "off":
        return None
    return picture_blank(Draft("", False, (), None, background, 0.0, 0.0), settings).complaint or None


def rules_digest() -> str:
    """A hash of the rule packs and of this code's version: a run that finds another one judges the titles that it carries again."""
    return digest("finishing", VERSION, *pack_texts())


@dataclass(frozen=True)
class TitleRules:
    """Today's rules over a title that was published under others. Small and picklable."""

    settings: FinishSettings

    def reject(self, title: str, product_texts: tuple[str, ...], locale: str | None) -> bool:
        """Whether a gate of the title's words rejects it."""
        draft = Draft(title, False, product_texts, locale, np.zeros((1, 1, 3), np.uint8), 0.0, 0.0)
        return any(_rejects(name, draft, self.settings) for name in _NEED_A_TITLE)


def _rejects(name: str, draft: Draft, settings: FinishSettings) -> bool:
    if getattr(settings.gates, name) != "reject":
        return False
    finding = GATES[name](draft, settings)
    return bool(finding.complaint) and finding.severity == "reject"


# -- the title -------------------------------------------------------------------------------------------------


def title_empty(draft: Draft, settings: FinishSettings) -> Finding:
    return Finding({}, "" if draft.title else "no title was generated, or cleaning left nothing of it")


def title_length(draft: Draft, settings: FinishSettings) -> Finding:
    width = display_width(draft.title)
    complaint = ""
    if draft.title_was_cut:
        complaint = f"cut at {settings.title_max_width} columns"
    elif width > settings.title_good_width:
        complaint = f"{width} columns wide, over {settings.title_good_width}"
    return Finding({"title_width": float(width)}, complaint)


def forbidden_words(draft: Draft, settings: FinishSettings) -> Finding:
    hits = forbidden_hits(draft.title, tuple(rule_packs().values()), settings.forbidden_words, settings.forbidden_exceptions)
    severity = "reject" if any(hit.severity == "reject" for hit in hits) else "warn"
    complaint = _listed(f'"{hit.term}" ({hit.rule})' for hit in hits)
    return Finding({"forbidden_words": float(len(hits))}, complaint, severity)


def numbers_and_units(draft: Draft, settings: FinishSettings) -> Finding:
    unstated = product_wording(draft.product_texts).unstated(words(draft.title).numbers)
    complaint = _listed(map(_quoted, unstated))
    return Finding({"unstated_numbers": float(len(unstated))}, complaint and f"not in the product's texts: {complaint}")


def allowed_words(draft: Draft, settings: FinishSettings) -> Finding:
    share, unknown = product_wording(draft.product_texts).coverage(draft.title)
    complaint = _listed(map(_quoted, unknown))
    return Finding({"allowed_words": share}, complaint and f"not in the product's texts: {complaint}")


# -- the picture -----------------------------------------------------------------------------------------------


def picture_blank(draft: Draft, settings: FinishSettings) -> Finding:
    contrast = _contrast(draft.background)
    least = settings.background_contrast_min
    complaint = f"background's standard deviation {contrast:.1f} is below {least:g}" if contrast < least else ""
    return Finding({"background_contrast": contrast}, complaint)


def _contrast(picture: np.ndarray) -> float:
    """Standard deviation of each channel's values, their mean; from counts of the 256 values, ten times as fast as numpy's."""
    counts = np.array(Image.fromarray(picture).histogram(), np.float64).reshape(-1, 256)
    values, size = np.arange(256.0), picture.shape[0] * picture.shape[1]
    means = counts @ values / size
    return float(np.sqrt(np.maximum(counts @ values**2 / size - means**2, 0)).mean())


def product_visible(draft: Draft, settings: FinishSettings) -> Finding:
    share, inside = draft.product_share, draft.product_inside
    low, high = settings.product_share_min, settings.product_share_max
    complaint = ""
    if not low <= share <= high:
        complaint = f"the product takes {share:.2%} of the picture, not {low:.0%} to {high:.0%}"
    elif inside < settings.product_inside_min:
        complaint = f"only {inside:.0%} of the product is inside the picture"
    return Finding({"product_share": share, "product_inside": inside}, complaint)


GATES: dict[str, Callable[[Draft, FinishSettings], Finding]] = {
    gate.__name__: gate
    for gate in (
        title_empty,
        title_length,
        forbidden_words,
        numbers_and_units,
        allowed_words,
        picture_blank,
        product_visible,
    )
}
"""In the order in which the first rejecting one gives the row its reason."""
_NO_PICTURE = np.zeros((1, 1, 3), np.uint8)
_NEED_A_TITLE = ("title_length", "forbidden_words", "numbers_and_units", "allowed_words")


def _quoted(item: str | Number) -> str:
    return f'"{item}"'


def _listed(items, limit: int = 5) -> str:
    items = list(dict.fromkeys(items))
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
