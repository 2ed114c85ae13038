"""What a model is held to on ground that it never saw: each value with its standard error and, where one is asked, a goal."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from adgen.config import FinishSettings
from adgen.evaluation.titles.scores import ProductTexts, title_scores
from adgen.finishing.gates import title_complaint

Verdict = Literal["met", "missed", "undecided"]


@dataclass(frozen=True)
class Goal:
    """A limit, and on which side of it a value has to be."""

    limit: float
    at_least: bool = True

    def __str__(self) -> str:
        return f"{'at least' if self.at_least else 'at most'} {self.limit:g}"


@dataclass(frozen=True)
class Finding:
    """One line: a measure of one section's creatives under one condition."""

    section: str
    condition: str
    measure: str
    value: float
    error: float
    """Its standard error."""
    num: int
    goal: Goal | None = None

    @property
    def verdict(self) -> Verdict | None:
        """`undecided` within one standard error of the goal; None without a goal."""
        if self.goal is None:
            return None
        beyond = self.value - self.goal.limit if self.goal.at_least else self.goal.limit - self.value
        if 0 < abs(beyond) < self.error:
            return "undecided"
        return "met" if beyond >= 0 else "missed"

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {name: getattr(self, name) for name in ("section", "condition", "measure", "value", "error", "num")}
        return own | {"goal": None if self.goal is None else str(self.goal), "verdict": self.verdict}


def mean_of(values: Sequence[float]) -> tuple[float, float, int]:
    """Mean, its standard error, and of how many; NaN-free: (0, 0, 0) of none."""
    found = np.asarray(values, np.float64)
    if not len(found):
        return 0.0, 0.0, 0
    return float(found.mean()), float(found.std() / math.sqrt(len(found))), len(found)


# -- titles ----------------------------------------------------------------------------------------------------------

TITLE_GOALS = {
    "made": Goal(0.99),
    "templates": Goal(0.02, at_least=False),
    "first_clean": Goal(0.9),
    "allowed_words": Goal(0.98),
    "selling_points": Goal(0.8),
    "own_title": Goal(0.1, at_least=False),
}
FEW_CLICKS_LESS = 0.02
"""How much less a few clicks may be worth in words that are the product's."""


def title_values(
    titles: Sequence[str], firsts: Sequence[str], are_templates: Sequence[bool], products: Sequence[ProductTexts]
) -> dict[str, list[float]]:
    """Of each title 0..1 under the names of TITLE_GOALS: made (a title that no gate refuses, the template's included),
    templates, first_clean (the first draw already was one), allowed_words (no word and no number but the product's),
    selling_points (share that is said; absent without any), own_title (the product's own, unchanged)."""
    finish = FinishSettings()
    values: dict[str, list[float]] = {name: [] for name in TITLE_GOALS}
    for title, first, is_template, product in zip(titles, firsts, are_templates, products, strict=True):
        texts = (product.title, *product.selling_points)
        scores = title_scores(title, (), product)
        stated = scores.get("allowed_words", 0.0) == 1.0 and scores.get("number_unit_agreement", 1.0) == 1.0
        values["made"].append(title_complaint(title, texts, product.locale, finish) is None)
        values["templates"].append(is_template)
        values["first_clean"].append(title_complaint(first, texts, product.locale, finish) is None)
        values["allowed_words"].append(stated)
        values["own_title"].append(title.strip().casefold() == product.title.strip().casefold())
        if "selling_point_coverage" in scores:
            values["selling_points"].append(scores["selling_point_coverage"])
    return values


def title_findings(section: str, condition: str, values: dict[str, list[float]], goals: dict[str, Goal]) -> list[Finding]:
    """A line for each measure of titles."""
    return [Finding(section, condition, name, *mean_of(found), goals.get(name)) for name, found in values.items()]


# -- pictures --------------------------------------------------------------------------------------------------------

STYLE, STYLE_OF_ONE_CLICK = Goal(0.8), Goal(0.6)


def style_findings(
    section: str, condition: str, judge: str, hits: np.ndarray, real_hits: np.ndarray, goal: Goal | None
) -> list[Finding]:
    """Shares of painted and of real pictures that a judge finds in their user's style, and the first over the second."""
    (painted, error, num), (real, *_) = mean_of(hits), mean_of(real_hits)
    own = Finding(section, condition, f"style, {judge}", painted, error, num)
    there = Finding(section, condition, f"style of a real picture, {judge}", *mean_of(real_hits))
    if real == 0:
        return [own, there]
    return [own, there, Finding(section, condition, f"style against real, {judge}", painted / real, error / real, num, goal)]


# -- all of it -------------------------------------------------------------------------------------------------------


def print_findings(console: Console, findings: Iterable[Finding]) -> None:
    """A table, section by section."""
    table = Table("section", "creatives", "measure", "value", "of", "goal", "", title="on unseen ground", title_justify="left")
    before = ("", "")
    for each in findings:
        section = each.section if each.section != before[0] else ""
        condition = each.condition if (each.section, each.condition) != before else ""
        before = each.section, each.condition
        value = f"{each.value:.3f} ± {each.error:.3f}"
        table.add_row(section, condition, each.measure, value, str(each.num), str(each.goal or ""), each.verdict or "")
    console.print(table)
