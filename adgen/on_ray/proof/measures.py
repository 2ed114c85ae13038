"""From a proof's creatives to its numbers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from adgen.errors import PairError
from adgen.evaluation.pictures.pbs_features import pbs_features
from adgen.evaluation.proof.measures import chance, pbs_measures, product_measures, style_hits, title_measures
from adgen.evaluation.proof.result import Proof
from adgen.evaluation.titles.scores import ProductTexts
from adgen.model.pbs import PBSEncoder, load_pbs
from adgen.on_ray.proof.creatives import HIDDEN, NONE, OTHER_USER, OWN, Made, noisy, read_shop_picture
from adgen.on_ray.proof.pairs import ProofPairs, Reference
from adgen.on_ray.proof.settings import ProofSettings
from adgen.on_ray.proof.style_classifier import StyleNamer, reconstructed
from adgen.on_ray.rows import Row
from adgen.records import unit_interval
from adgen.shop.synthetic.style_pictures import STYLE_NAMES

Values = dict[str, Any]


def measure(settings: ProofSettings, pairs: ProofPairs, made: Made, classifier: StyleNamer | None) -> Proof:
    """Everything but the comparisons. What cannot be measured is left out, and a note says why."""
    proof = Proof({"num_pairs": len(made.rows), "num_unusable": made.maker.num_unusable})
    proof.notes += pairs.notes
    if made.maker.num_unusable:
        proof.notes.append(f"{made.maker.num_unusable} pairs cannot be made and count for nothing")
    if classifier is None:
        proof.notes.append("no styles.parquet in the tables' folder: nobody knows the users' styles, so they are not measured")
    else:
        proof.values |= classifier_values(pairs, classifier, settings.model) | style_values(pairs, made, classifier)
    proof.values |= title_values(pairs, made)
    proof.values |= product_values(made)
    if settings.encoder is None:
        proof.notes.append("no PBS encoder: name one with --encoder")
    else:
        values, missing = pbs_values(pairs, made, load_pbs(settings.encoder))
        proof.values |= values
        if missing:
            proof.notes.append(f"{missing} pairs have no readable reference picture and count for no PBS")
    return proof


def noise_rows(pairs: ProofPairs, made: Made, classifier: StyleNamer | None) -> list[Values]:
    """Style accuracy for each share of stray clicks."""
    if classifier is None:
        return []
    rows = []
    for share in pairs.noise:
        hits = style_hits(classifier.styles(made.painted(noisy(share))), favourites(pairs, made.rows))
        rows.append({"stray_clicks": share, "style_accuracy": float(hits.mean())})
    return rows


def comparison(name: str, settings: ProofSettings, pairs: ProofPairs, made: Made, classifier: StyleNamer | None) -> Values:
    """A model's row of the ablation: what matters most of the measures."""
    row: Values = {"model": name}
    if classifier is not None:
        row["style_accuracy"] = float(style_hits(classifier.styles(made.painted(OWN)), favourites(pairs, made.rows)).mean())
    if settings.encoder is not None:
        row["pbs_margin"] = pbs_values(pairs, made, load_pbs(settings.encoder))[0].get("pbs_margin")
    titles = title_values(pairs, made)
    return row | {key: titles.get(key) for key in ("allowed_words_rate", "selling_point_coverage", "bleu")}


def favourites(pairs: ProofPairs, rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Each row's user's favourite styles."""
    return [pairs.truth.favourites[row["user_id"]] for row in rows]


MOST_REAL_PICTURES = 1000


def classifier_values(pairs: ProofPairs, classifier: StyleNamer, model: Path) -> Values:
    """The classifier's accuracy on the held-out shop's own product pictures, and on what the model's tokenizer makes of them."""
    styles, pictures = [], []
    for batch in pairs.inputs["products"].batches(["product_id", "image"]):
        for row in batch.to_pylist()[: MOST_REAL_PICTURES - len(pictures)]:
            pictures.append(read_shop_picture(pairs, row["image"]))
            styles.append(pairs.truth.styles[row["product_id"]])
    accuracy = lambda shown: float(np.mean([a == b for a, b in zip(classifier.styles(shown), styles, strict=True)]))  # noqa: E731
    return {
        "classifier_accuracy_on_real": accuracy(pictures),
        "classifier_accuracy_on_reconstructed": accuracy(reconstructed(pictures, model)),
        "numreal_pictures": len(pictures),
    }


def style_values(pairs: ProofPairs, made: Made, classifier: StyleNamer) -> Values:
    """Whose favourite styles the painted pictures have."""
    own = favourites(pairs, made.rows)
    other_users = [pairs.truth.favourites[pairs.other_users[row["user_id"]]] for row in made.rows]
    found = {name: classifier.styles(made.painted(name)) for name in (OWN, NONE, OTHER_USER)}
    hits = style_hits(found[OWN], own)
    return {
        "style_accuracy": float(hits.mean()),
        "style_accuracy_pasted": float(style_hits(classifier.styles(made.pasted(OWN)), own).mean()),
        "style_accuracy_without_history": float(style_hits(found[NONE], own).mean()),
        "style_accuracy_of_other_user": float(style_hits(found[OTHER_USER], other_users).mean()),
        "style_accuracy_under_other_user": float(style_hits(found[OTHER_USER], own).mean()),
        "chance": chance(own, len(STYLE_NAMES)),
        "style_accuracy_by_style": by_style(hits, own),
    }


def by_style(hits: np.ndarray, own: Sequence[tuple[str, ...]]) -> dict[str, float]:
    """Accuracy for the users of one favourite, style by style: where a model is weak."""
    single = {style: [hit for hit, liked in zip(hits, own, strict=True) if liked == (style,)] for style in STYLE_NAMES}
    return {style: float(np.mean(some)) for style, some in single.items() if some}


def title_values(pairs: ProofPairs, made: Made) -> Values:
    """Scores of the titles that the own history gave."""
    references = _references(pairs)
    titles = [references[row["user_id"], row["product_id"]].titles for row in made.rows]
    brands = product_columns(pairs)
    products = [
        ProductTexts(row["product_title"], tuple(row["selling_points"] or ()), *brands[row["product_id"]]) for row in made.rows
    ]
    return title_measures(made.titles(OWN), titles, products)


def product_values(made: Made) -> Values:
    """How much of its product a picture shows: pasted, as painted, and as painted with the foreground path off."""
    shown = {"": made.pasted(OWN), "_unpasted": made.painted(OWN), "_foreground_off": made.painted(HIDDEN)}
    return {f"{k}{end}": v for end, pictures in shown.items() for k, v in product_measures(pictures, made.cutouts).items()}


def pbs_values(pairs: ProofPairs, made: Made, encoder: PBSEncoder) -> tuple[Values, int]:
    """PBS of the pasted creatives to both references; how many pairs lack one of them."""
    references = _references(pairs)
    of_user: dict[str, Reference] = {}
    for each in pairs.references:
        of_user.setdefault(each.user, each)
    own = [_picture(pairs, references[row["user_id"], row["product_id"]]) for row in made.rows]
    others = [_picture(pairs, of_user[pairs.other_users[row["user_id"]]]) for row in made.rows]
    whole = [index for index, both in enumerate(zip(own, others, strict=True)) if None not in both]
    if not whole:
        return {}, len(made.rows)
    features = lambda pictures: pbs_features(encoder, [pictures[index] for index in whole])  # noqa: E731
    near, far = features(own), features(others)
    values = pbs_measures(features(made.pasted(OWN)), near, far)
    if NONE in made.creatives:
        values["pbs_margin_without_history"] = pbs_measures(features(made.pasted(NONE)), near, far)["pbs_margin"]
    if pairs.truth is not None:
        values["pbs_margin_of_real"] = pbs_measures(features(real_pictures(pairs, made.rows)), near, far)["pbs_margin"]
    return values, len(made.rows) - len(whole)


def real_pictures(pairs: ProofPairs, rows: Sequence[Row]) -> list[Image.Image]:
    """For each pair a real picture of some other product in a style that its user likes: what a perfect model
    would show."""
    images = {}
    for batch in pairs.inputs["products"].batches(["product_id", "image"]):
        images |= dict(zip(batch["product_id"].to_pylist(), batch["image"].to_pylist(), strict=True))
    chosen = []
    for row in rows:
        liked = set(pairs.truth.favourites[row["user_id"]])
        fitting = [p for p, image in images.items() if image and p != row["product_id"] and pairs.truth.styles[p] in liked]
        chosen.append(min(fitting, key=lambda product, pair=row["pair_id"]: unit_interval("real", pair, product)))
    return [read_shop_picture(pairs, images[product]) for product in chosen]


def _picture(pairs: ProofPairs, reference: Reference) -> Image.Image | None:
    try:
        return read_shop_picture(pairs, reference.image) if reference.image else None
    except PairError:
        return None


def _references(pairs: ProofPairs) -> dict[tuple[str, str], Reference]:
    return {(each.user, each.product): each for each in pairs.references}


def product_columns(pairs: ProofPairs) -> dict[str, tuple[str | None, str | None]]:
    """(brand, locale) of every product."""
    found: dict[str, tuple[str | None, str | None]] = {}
    for batch in pairs.inputs["products"].batches(["product_id", "brand", "locale"]):
        found |= {row["product_id"]: (row["brand"], row["locale"]) for row in batch.to_pylist()}
    return found
