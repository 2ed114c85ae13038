"""What the report calls scores, what they mean, and which way is better."""

_LABELS = {
    "title_empty": ("empty titles", "share of creatives without a title"),
    "allowed_words": ("allowed words", "share of the title's words that are the product's own, or stop words"),
    "selling_point_coverage": ("selling points said", "share of the product's selling points that the title holds"),
    "number_unit_agreement": ("numbers that agree", "share of the title's numbers, with their units, that the product has"),
    "width": ("title width", "columns; a Chinese character takes two"),
    "within_good_width": ("within good width", "share of titles that most shops show whole"),
    "within_max_width": ("within largest width", "share of titles that are not cut"),
    "bleu": ("mean BLEU of titles", "0 to 100, sentence by sentence"),
    "corpus_bleu": ("BLEU of all titles", "0 to 100, sacrebleu's of the corpus; the number that papers give"),
    "rouge_l": ("ROUGE-L", "0 to 1, best reference"),
    "product_iou": ("product kept (IoU)", "overlap of the product found in the creative with where it should be"),
    "product_distance": ("product's colour distance", "0 to 1, within its mask"),
    "product_spill": ("product spilt", "what is found of it outside, as a share of its mask"),
    "unpasted_product_iou": ("painted product (IoU)", "the same before the real product was pasted: what the model itself shows"),
    "unpasted_product_distance": ("painted product's colour distance", "before the real product was pasted"),
    "unpasted_product_spill": ("painted product spilt", "before the real product was pasted"),
    "copied": ("copy rate", "share that are near-duplicates of a picture that the user clicked"),
    "reference_copied": (
        "copy rate of references",
        "what the copy rate is seen beside: no reference is a copy",
    ),
    "history_correlation": ("likest click", "correlation with the clicked picture that is most like it, -1 to 1"),
    "pbs_reference": ("PBS to the reference", "is its background like that of the creative the user is known to like? -1 to 1"),
    "pbs_history": ("PBS to own clicks", "mean over the clicked pictures, -1 to 1"),
    "pbs_stranger_history": ("PBS to a stranger's clicks", "what own clicks are seen beside"),
    "pbs_history_margin": ("PBS margin", "own clicks less a stranger's: does the background follow the user?"),
    "background_reference": ("background to the reference", "cosine outside the product, -1 to 1"),
    "background_history": ("background to own clicks", "cosine outside the product, -1 to 1"),
    "background_stranger_history": ("background to a stranger's clicks", "what own clicks are seen beside"),
    "background_history_margin": ("background margin", "own clicks less a stranger's, by a network that was not trained for it"),
    "clip_score": ("CLIP score", "picture with title, 0 to 100"),
    "seed_diversity": ("diversity between seeds", "1 - cosine of backgrounds of one pair: 0 when all seeds look alike"),
    "user_diversity": (
        "diversity between users",
        "1 - cosine of backgrounds of one product: 0 when it looks alike for everybody; no more than between seeds where the user "
        "decides nothing",
    ),
    "fid": ("FID", "distance of all creatives from all references; thousands of pictures are needed for it"),
    "frechet": ("Fréchet distance", "of all creatives from all references; thousands of pictures are needed for it"),
    "kid": ("KID", "kernel distance of all creatives from all references"),
    "kid_std": ("KID's deviation", "over subsets"),
}
UNCERTAIN = {
    "one_row": "of one creative, so without an interval",
    "one_user": "of one user's creatives, so without an interval",
    "few_effective_users": "of fewer than four effective users (few, or most creatives are of a few), so without an interval",
    "no_variance": "the same everywhere, so without an interval",
    "too_few_pictures": "not told, since there are fewer than two pictures on a side",
}
"""What is said of scores by `Summary.uncertain`."""
_LESS_IS_BETTER = frozenset(
    {
        "title_empty",
        "product_distance",
        "product_spill",
        "unpasted_product_distance",
        "unpasted_product_spill",
        "copied",
    }
)
# Who follows a user's style comes nearer to what that user clicked, and is no copy yet: history_correlation is neither.
_NEITHER = frozenset({"width", "history_correlation", "reference_copied", "pbs_stranger_history", "background_stranger_history"})
_NEITHER |= {"seed_diversity", "user_diversity"}  # noise is diverse, too


def label(name: str) -> str:
    """For people; what has no label of its own is called by its name."""
    known, network = _known(name)
    return (known[0] if known else name.replace("_", " ")) + (f" ({network})" if network else "")


def meaning(name: str) -> str:
    """One line, or nothing."""
    known, _ = _known(name)
    return known[1] if known else ""


def _known(name: str) -> tuple[tuple[str, str] | None, str]:
    """Label and meaning, and the network whose distance it is where that is not the usual one: `kid_dinov2`."""
    start, _, network = name.rpartition("_")
    is_distance = start in ("frechet", "kid", "kid_std") and name not in _LABELS
    return (_LABELS[start], network) if is_distance else (_LABELS.get(name), "")


def verdict(name: str, difference: float) -> str:
    """`better` or `worse` for a difference that is significant; nothing for a score that is neither good nor bad."""
    if name in _NEITHER:
        return ""
    return "better" if (difference > 0) != (name in _LESS_IS_BETTER) else "worse"
