"""The one table of scores: what each is called, what it may be, which way is better, and what it needs.

Rows, summaries, comparisons and reports take their scores from here, in this order. A new score of one creative is an entry with a
`measure` and nothing else; tests/support/added_score.py is the example. The entries here have none: their values are computed
together, in `titles/scores.py`, `scoring/creatives.py`, `scoring/backgrounds.py` and `results/set_scores.py`.
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from adgen.evaluation.scoring.facts import CreativeFacts, Shown

Kind = Literal["title", "all titles", "picture", "set"]
"""What a score is of: one title, all titles together, one picture, or many pictures together."""
NETWORKS = ("pbs", "background", "distance", "clip")
"""Needs that a scoring network meets."""


class Score(NamedTuple):
    """An entry."""

    name: str
    kind: Kind
    label: str
    """For people."""
    meaning: str
    range: tuple[float, float]
    """The least and the most that it can be."""
    better: Literal["higher", "lower", "neither"]
    needs: tuple[str, ...] = ()
    """Without these it is absent: reference, product, history, other_users, unpasted, or one of NETWORKS."""
    measure: "Callable[[CreativeFacts], float | None] | Callable[[Shown], float | None] | None" = None
    """Of a title: CreativeFacts -> value; of a picture: Shown -> value; None where a creative has no such score."""
    in_groups: bool = False
    """Whether the report shows it for each group of creatives."""
    sheet: int = 0
    """From 1: how soon the report shows the creatives that have most and least of it; 0 is never."""
    old_name: str | None = None
    """What it was called before 0.2.0; programs find it under both names until 0.3.0."""


_SHARE, _COSINE, _MARGIN, _DISTANCE = (0.0, 1.0), (-1.0, 1.0), (-2.0, 2.0), (0.0, inf)
_OWN_CLICKS, _OTHER_CLICKS = ("history",), ("history", "other_users")

SCORES: list[Score] = [
    Score("title_empty", "title", "empty titles", "share of creatives without a title", _SHARE, "lower", ("product",)),
    Score("allowed_words", "title", "allowed words", "share of the title's words that are the product's own, or stop words",
          _SHARE, "higher", ("product",), in_groups=True, sheet=5),
    Score("selling_point_coverage", "title", "selling points said", "share of the product's selling points that the title holds",
          _SHARE, "higher", ("product",), in_groups=True),
    Score("number_unit_agreement", "title", "numbers that agree",
          "share of the title's numbers, with their units, that the product has", _SHARE, "higher", ("product",)),
    Score("width", "title", "title width", "columns; a Chinese character takes two", _DISTANCE, "neither", ("product",)),
    Score("within_good_width", "title", "within good width", "share of titles that most shops show whole", _SHARE, "higher",
          ("product",)),
    Score("within_max_width", "title", "within largest width", "share of titles that are not cut", _SHARE, "higher", ("product",)),
    Score("bleu", "title", "mean BLEU of titles", "0 to 100, sentence by sentence", (0.0, 100.0), "higher", ("reference",)),
    Score("corpus_bleu", "all titles", "BLEU of all titles", "0 to 100, sacrebleu's of the corpus; the number that papers give",
          (0.0, 100.0), "higher", ("reference",), in_groups=True),
    Score("rouge_l", "title", "ROUGE-L", "0 to 1, best reference", _SHARE, "higher", ("reference",)),
    Score("product_iou", "picture", "product kept (IoU)", "overlap of the product found in the creative with where it should be",
          _SHARE, "higher", ("product",), in_groups=True, sheet=4),
    Score("product_distance", "picture", "product's colour distance", "0 to 1, within its mask", _DISTANCE, "lower", ("product",)),
    Score("product_spill", "picture", "product spilt", "what is found of it outside, as a share of its mask", _DISTANCE, "lower",
          ("product",)),
    Score("unpasted_product_iou", "picture", "painted product (IoU)",
          "the same before the real product was pasted: what the model itself shows", _SHARE, "higher", ("product", "unpasted"),
          in_groups=True),
    Score("unpasted_product_distance", "picture", "painted product's colour distance", "before the real product was pasted",
          _DISTANCE, "lower", ("product", "unpasted")),
    Score("unpasted_product_spill", "picture", "painted product spilt", "before the real product was pasted", _DISTANCE, "lower",
          ("product", "unpasted")),
    Score("copied", "picture", "copy rate", "share that are near-duplicates of a picture that the user clicked", _SHARE, "lower",
          _OWN_CLICKS, in_groups=True),
    Score("reference_copied", "picture", "copy rate of references", "the comparison for the copy rate: no reference is a copy",
          _SHARE, "neither", ("history", "reference")),
    # Who follows a user's style comes nearer to what that user clicked, and is no copy yet: neither better nor worse.
    Score("history_correlation", "picture", "most similar click",
          "correlation with the clicked picture that is most like it, -1 to 1", _COSINE, "neither", _OWN_CLICKS),
    Score("pbs_reference", "picture", "PBS to the reference",
          "is its background like that of the creative the user is known to like? -1 to 1", _COSINE, "higher", ("reference", "pbs"),
          in_groups=True, sheet=2),
    Score("pbs_history", "picture", "PBS to own clicks", "mean over the clicked pictures, -1 to 1", _COSINE, "higher",
          (*_OWN_CLICKS, "pbs")),
    Score("pbs_other_user_history", "picture", "PBS to another user's clicks", "the comparison for own clicks", _COSINE, "neither",
          (*_OTHER_CLICKS, "pbs"), old_name="pbs_stranger_history"),
    Score("pbs_history_margin", "picture", "PBS margin", "own clicks minus another user's: does the background follow the user?",
          _MARGIN, "higher", (*_OTHER_CLICKS, "pbs"), in_groups=True, sheet=1),
    Score("background_reference", "picture", "background to the reference", "cosine outside the product, -1 to 1", _COSINE,
          "higher", ("reference", "background")),
    Score("background_history", "picture", "background to own clicks", "cosine outside the product, -1 to 1", _COSINE, "higher",
          (*_OWN_CLICKS, "background")),
    Score("background_other_user_history", "picture", "background to another user's clicks", "the comparison for own clicks",
          _COSINE, "neither", (*_OTHER_CLICKS, "background"), old_name="background_stranger_history"),
    Score("background_history_margin", "picture", "background margin",
          "own clicks minus another user's, by a network that was not trained for it", _MARGIN, "higher",
          (*_OTHER_CLICKS, "background"), in_groups=True, sheet=3),
    Score("clip_score", "picture", "CLIP score", "picture with title, 0 to 100", (0.0, 100.0), "higher", ("clip",), in_groups=True),
    # Noise is diverse, too: neither better nor worse.
    Score("seed_diversity", "set", "diversity between seeds", "1 - cosine of backgrounds of one pair: 0 when all seeds look alike",
          (0.0, 2.0), "neither", ("background",)),
    Score("user_diversity", "set", "diversity between users",
          "1 - cosine of backgrounds of one product: 0 when it looks alike for everybody; no more than between seeds where the "
          "user decides nothing", (0.0, 2.0), "neither", ("background",)),
    Score("fid", "set", "FID", "distance of all creatives from all references; thousands of pictures are needed for it", _DISTANCE,
          "lower", ("reference", "distance")),
    Score("frechet", "set", "Fréchet distance",
          "of all creatives from all references; thousands of pictures are needed for it", _DISTANCE, "lower",
          ("reference", "distance")),
    Score("kid", "set", "KID", "kernel distance of all creatives from all references", (-inf, inf), "lower",
          ("reference", "distance")),
    Score("kid_std", "set", "KID's deviation", "over subsets", _DISTANCE, "neither", ("reference", "distance")),
]  # fmt: skip


def names_of(*kinds: Kind) -> tuple[str, ...]:
    """Names of the scores of these kinds, in the table's order."""
    return tuple(score.name for score in SCORES if score.kind in kinds)


def find_score(name: str) -> Score | None:
    """By name or old name. A distance by another network than Inception has the network's name after its own: kid_dinov2."""
    known = {score.name: score for score in SCORES} | {score.old_name: score for score in SCORES if score.old_name}
    found = known.get(name)
    if found is None:
        found = known.get(name.rpartition("_")[0])
        return found if found and "distance" in found.needs else None
    return found


def scores_that_need(names: Iterable[str], *needs: str) -> list[str]:
    """Those of `names` whose entries need one of `needs`."""
    return [name for name in names if (score := find_score(name)) and set(needs) & set(score.needs)]


def sheet_scores() -> tuple[str, ...]:
    """Those that creatives are shown by, the first one first."""
    return tuple(score.name for score in sorted(SCORES, key=lambda score: score.sheet) if score.sheet)


def measured(kind: Kind, subject: Any) -> dict[str, float]:
    """The scores of this kind whose entries have a `measure`, of one creative."""
    values = {score.name: score.measure(subject) for score in SCORES if score.kind == kind and score.measure}
    return {name: value for name, value in values.items() if value is not None}


# -- names before 0.2.0 ----------------------------------------------------------------------------------------------------


def old_names() -> dict[str, str]:
    """New name -> old name, of the scores that were renamed."""
    return {score.name: score.old_name for score in SCORES if score.old_name}


def with_old_names(by_name: Mapping[str, Any], renamed: Mapping[str, str] | None = None) -> dict[str, Any]:
    """`by_name`, and after it the same values under their old names: programs find both until 0.3.0."""
    renamed = old_names() if renamed is None else renamed
    return dict(by_name) | {old: by_name[new] for new, old in renamed.items() if new in by_name}


def without_old_names(by_name: Mapping[str, Any]) -> dict[str, Any]:
    """For people, who need each value once."""
    old = set(old_names().values())
    return {name: value for name, value in by_name.items() if name not in old}
