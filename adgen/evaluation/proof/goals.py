"""What the model is held to, and how each goal fared. The numbers are reported as they are, missed goals too."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Goal:
    """One line of the table."""

    section: str
    name: str
    """Key of the value."""
    meaning: str
    text: str = ""
    """The goal in words; empty where there is none."""
    reached: Callable[[Values], bool] | None = None
    by_classifier: bool = False
    """Whether the value is only as good as the style classifier."""


CLASSIFIER_LEAST = 0.97
"""Accuracy on real pictures below which the classifier's word on painted ones decides nothing."""


def _least(name: str, limit: float) -> dict[str, Any]:
    return {"text": f"at least {limit:g}", "reached": lambda values: values[name] >= limit}


def _near_chance(values: Values) -> bool:
    return abs(values["style_accuracy_without_history"] - values["chance"]) <= 0.1


GOALS = (
    Goal("shop", "num_pairs", "pairs that the means are of", **_least("num_pairs", 400)),
    Goal("shop", "num_unusable", "pairs that no creative can be made of"),
    Goal("picture", "classifier_accuracy_on_real", "real held-out pictures whose style the classifier finds",
         **_least("classifier_accuracy_on_real", CLASSIFIER_LEAST)),
    Goal("picture", "classifier_accuracy_on_reconstructed", "the same after the model's own image tokenizer"),
    Goal("picture", "style_accuracy", "pictures in one of their user's favourite styles", **_least("style_accuracy", 0.9),
         by_classifier=True),
    Goal("picture", "style_accuracy_pasted", "the same with the product pasted"),
    Goal("picture", "chance", "share of favourites among all styles"),
    Goal("picture", "style_accuracy_without_history", "no history shown", "within 0.1 of chance", _near_chance, by_classifier=True),
    Goal("picture", "style_accuracy_of_other_user", "another user's history shown: in one of that user's favourites",
         **_least("style_accuracy_of_other_user", 0.8), by_classifier=True),
    Goal("picture", "style_accuracy_under_other_user", "another user's history shown: still in one of the user's favourites"),
    Goal("PBS", "pbs", "to the user's reference"),
    Goal("PBS", "pbs_to_other_user", "to another user's reference"),
    Goal("PBS", "pbs_margin", "the first less the second", **_least("pbs_margin", 0.3)),
    Goal("PBS", "pbs_margin_without_history", "no history shown: what the product alone is worth"),
    Goal("PBS", "pbs_margin_of_real", "a real picture in a favourite style instead: what this encoder can give"),
    Goal("title", "allowed_words_rate", "titles with no word and no number but their product's",
         **_least("allowed_words_rate", 1.0)),
    Goal("title", "allowed_words", "words that are the product's, mean of titles"),
    Goal("title", "number_unit_agreement", "numbers that are the product's, unit and all, mean of titles with any"),
    Goal("title", "selling_point_coverage", "selling points that a title says, mean", **_least("selling_point_coverage", 0.8)),
    Goal("title", "bleu", "against the reference titles, 0 to 100"),
    Goal("title", "rouge_l", "against the best reference title"),
    Goal("title", "title_empty", "titles that the model never closed"),
    Goal("product", "product_iou", "product's mask in the pasted picture"),
    Goal("product", "product_iou_unpasted", "in the picture as the model paints it"),
    Goal("product", "product_iou_foreground_off", "as painted with the foreground path off"),
    Goal("product", "product_distance", "colour distance inside the mask, pasted"),
    Goal("product", "product_distance_unpasted", "as painted"),
    Goal("product", "product_distance_foreground_off", "as painted with the foreground path off"),
)  # fmt: skip


@dataclass(frozen=True)
class GoalCheck:
    """A goal with its value."""

    goal: Goal
    value: float
    hit: bool | None
    """None where nothing is asked, or nothing can be said."""
    undecided: bool = False
    """Something is asked, but the classifier that gave the value is too weak to decide."""


def check_goals(values: Values) -> list[GoalCheck]:
    """The lines of every value that was measured."""
    found = [goal for goal in GOALS if values.get(goal.name) is not None]
    weak = values.get("classifier_accuracy_on_real", 1.0) < CLASSIFIER_LEAST
    return [_verdict(goal, values, weak) for goal in found]


def _verdict(goal: Goal, values: Values, weak: bool) -> GoalCheck:
    if goal.reached is None:
        return GoalCheck(goal, values[goal.name], None)
    undecided = weak and goal.by_classifier
    return GoalCheck(goal, values[goal.name], None if undecided else goal.reached(values), undecided)
