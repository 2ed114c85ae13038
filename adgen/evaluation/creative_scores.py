"""Scores of creatives, row by row: the title, the product in the picture, copies, and PBS to whom it was made for.

A score that a row cannot have is absent from it, and the row says why; nothing stands in for it. Knows no store, no table
and no Ray: pictures come through a function that reads a URI.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from adgen.errors import PairError
from adgen.evaluation.bleu import written
from adgen.evaluation.pbs import PBSEncoder, pbs, pbs_features
from adgen.evaluation.pictures import as_pixels, placed_product, stacked
from adgen.evaluation.product_fidelity import product_scores
from adgen.evaluation.similarity import nearest_history
from adgen.evaluation.titles import TITLE_SCORES, ProductTexts, title_scores
from adgen.images import cut_out, read_picture

PICTURE_SCORES = (
    "product_iou",
    "product_distance",
    "product_spill",
    "copied",
    "history_correlation",
    "pbs_reference",
    "pbs_history",
    "pbs_stranger_history",
    "pbs_history_margin",
)
"""product_*: see `product_scores`. copied and history_correlation: see `nearest_history`. PBS of the picture to the
reference, the mean to the pictures that its user clicked, to those that another user clicked, and how much nearer the own
ones are."""
ROW_SCORES = (*TITLE_SCORES, *PICTURE_SCORES)
SCORED = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("user_key", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("locale", pa.string()),
        pa.field("channel", pa.string()),
        pa.field("category", pa.string()),
        pa.field("history_length", pa.int32()),
        pa.field("status", pa.string(), nullable=False),
        pa.field("reason", pa.string()),
        pa.field("title", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("left_out", pa.list_(pa.string()), nullable=False),
        *(pa.field(name, pa.float64()) for name in ROW_SCORES),
    ]
)
"""A row of an evaluation: which creative, what it is one of, why which scores are missing, and the scores."""
SIDE, HISTORY_SIDE = 96, 48  # pixels: multiples of the thumbnail that copies are looked for with
_LARGEST = 768  # pixels a side that a product is placed at: beyond it a part of a pixel is nothing
_AT_ONCE = 32  # pictures in one pass of a network
_REMEMBERED = 4096  # shop pictures whose features are kept: users click the same ones


@dataclass
class CreativeFacts:
    """What there is to score of one creative. URIs are resolved."""

    user_key: str
    title: str | None
    """None where there is no creative: a row that failed is counted, not scored as an empty title."""
    picture: bytes | None
    product: ProductTexts | None = None
    cutout: str | None = None
    """The picture that finishing pasted the product from."""
    scale: float | None = None
    reference_titles: tuple[str | None, ...] | None = None
    """None where the pair has no reference."""
    reference_picture: str | None = None
    clicked: tuple[str | None, ...] | None = None
    """Pictures of the history that was drawn for the prompt; None where nobody knows it any more."""
    problems: list[str] = field(default_factory=list)
    """Why what cannot be scored."""
    scores: dict[str, float] = field(default_factory=dict)


class CreativeScorer:
    """Scores batches of creatives, with a PBS encoder or without one."""

    def __init__(self, encoder: PBSEncoder | None, read: Callable[[str], bytes]):
        """read: bytes of a URI, or PairError."""
        self.encoder, self.read = encoder, read
        self.device = encoder.cls_token.device if encoder is not None else torch.device("cpu")
        self._shop_picture = lru_cache(_REMEMBERED)(self._seen)
        self._pixels: Callable[[str], Image.Image] = lru_cache(4)(lambda uri: read_picture(self.read(uri)))

    def score(self, batch: Sequence[CreativeFacts]) -> None:
        """Fills `scores` and `problems` of each. A stranger is the next user of the batch who clicked something."""
        batch = [each for each in batch if each.title is not None]
        for each in batch:
            self._score_title(each)
        shown = [(each, picture) for each in batch if (picture := _picture(each)) is not None]
        histories = [self._clicked(each) for each, _ in shown]
        for start in range(0, len(shown), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            self._score_product_and_copies(shown[part], histories[part])
        if self.encoder is not None and shown:
            self._score_backgrounds(shown, histories)

    # -- title ---------------------------------------------------------------------------------------------------------

    def _score_title(self, each: CreativeFacts) -> None:
        if each.reference_titles is None:
            each.problems.append("no_reference")
        elif not written(each.reference_titles):
            each.problems.append("empty_reference_titles")
        if each.product is None:
            each.problems.append("no_product")
            return
        each.scores |= title_scores(each.title, each.reference_titles or (), each.product)

    # -- product and copies --------------------------------------------------------------------------------------------

    def _score_product_and_copies(self, shown: Sequence[tuple], histories: Sequence[list]) -> None:
        placed = [(each, picture, product) for each, picture in shown if (product := self._product(each, picture)) is not None]
        masks = {id(each): as_pixels(product, SIDE)[3] for each, _, product in placed}
        if placed:
            self._score_products(placed)
        with_history = [(each, picture, seen) for (each, picture), seen in zip(shown, histories, strict=True) if seen]
        if with_history:
            _score_copies(with_history, masks)

    def _score_products(self, placed: Sequence[tuple[CreativeFacts, Image.Image, Image.Image]]) -> None:
        pictures, products = (stacked([row[column] for row in placed], SIDE).to(self.device) for column in (1, 2))
        visible = (products[:, 3] > 0.5).flatten(1).any(1)
        for (each, *_), there in zip(placed, visible.tolist(), strict=True):
            each.problems += [] if there else ["product_not_visible"]
        if not bool(visible.any()):
            return
        good = [each for (each, *_), there in zip(placed, visible.tolist(), strict=True) if there]
        for name, values in product_scores(pictures[visible], products[visible]).items():
            for each, value in zip(good, values.tolist(), strict=True):
                each.scores[name] = value

    def _product(self, each: CreativeFacts, picture: Image.Image) -> Image.Image | None:
        """The product alone where finishing put it, RGBA, at the picture's size: placed at a smaller one it would be off by a
        part of a pixel, and its edges other colours."""
        if each.product is None or each.cutout is None:
            each.problems += ["no_product_picture"] if each.product is not None else []
            return None
        shrink = min(1.0, _LARGEST / max(picture.size))
        size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
        try:
            return placed_product(cut_out(self._pixels(each.cutout)), each.scale or 1.0, *size)
        except PairError as error:
            each.problems.append(f"product_{error.reason}")
            return None

    # -- backgrounds ---------------------------------------------------------------------------------------------------

    def _score_backgrounds(self, shown: Sequence[tuple], histories: Sequence[list]) -> None:
        features = pbs_features(self.encoder, [picture for _, picture in shown], _AT_ONCE)
        users = [each.user_key for each, _ in shown]
        for row, (each, _) in enumerate(shown):
            self._score_reference(each, features[row])
            if not histories[row]:
                continue
            own = _mean_pbs(features[row], histories[row])
            each.scores["pbs_history"] = own
            stranger = _stranger(row, users, histories)
            if stranger is None:
                each.problems.append("no_stranger")
                continue
            other = _mean_pbs(features[row], histories[stranger])
            each.scores |= {"pbs_stranger_history": other, "pbs_history_margin": own - other}

    def _score_reference(self, each: CreativeFacts, feature: Tensor) -> None:
        if each.reference_titles is None:
            return
        if not each.reference_picture:
            each.problems.append("no_reference_picture")
            return
        try:
            theirs = self._shop_picture(each.reference_picture)[0]
            each.scores["pbs_reference"] = float(pbs(feature[None], theirs[None]))
        except PairError as error:
            each.problems.append(f"reference_picture_{error.reason}")

    def _clicked(self, each: CreativeFacts) -> list[tuple[Tensor | None, Tensor]]:
        """Of each clicked picture that can be read its PBS features and its pixels."""
        if each.clicked is None:
            each.problems.append("no_lineage")
            return []
        seen = []
        for uri in each.clicked:
            try:
                seen.append(self._shop_picture(uri or ""))
            except PairError:
                if "unread_history_pictures" not in each.problems:
                    each.problems.append("unread_history_pictures")
        if not seen:
            each.problems.append("no_history")
        return seen

    def _seen(self, uri: str) -> tuple[Tensor | None, Tensor]:
        """(features (F,) or None without encoder, pixels (3, HISTORY_SIDE, HISTORY_SIDE)) of a picture of the shop."""
        if not uri:
            raise PairError("missing_file", "the product has no picture")
        picture = read_picture(self.read(uri)).convert("RGB")
        feature = pbs_features(self.encoder, [picture])[0] if self.encoder is not None else None
        return feature, as_pixels(picture, HISTORY_SIDE)


def _picture(each: CreativeFacts) -> Image.Image | None:
    if each.picture is None:
        return None  # whoever looked for it has said why
    try:
        return read_picture(each.picture).convert("RGB")
    except PairError as error:
        each.problems.append(f"picture_{error.reason}")
        return None


def _score_copies(rows: Sequence[tuple], masks: dict[int, Tensor]) -> None:
    most = max(len(seen) for *_, seen in rows)
    pictures = stacked([picture for _, picture, _ in rows], SIDE)
    product = torch.stack([masks.get(id(each), torch.zeros(SIDE, SIDE)) for each, *_ in rows])
    history, present = torch.zeros(len(rows), most, 3, HISTORY_SIDE, HISTORY_SIDE), torch.zeros(len(rows), most, dtype=torch.bool)
    for row, (*_, seen) in enumerate(rows):
        history[row, : len(seen)] = torch.stack([pixels for _, pixels in seen])
        present[row, : len(seen)] = True
    found = nearest_history(pictures, product, history, present)
    for (each, *_), copied, correlation in zip(rows, found.copied.tolist(), found.correlation.tolist(), strict=True):
        each.scores |= {"copied": float(copied), "history_correlation": correlation}


def _mean_pbs(feature: Tensor, seen: Sequence[tuple[Tensor, Tensor]]) -> float:
    theirs = torch.stack([features for features, _ in seen])
    return float(pbs(feature.expand_as(theirs), theirs).mean())


def _stranger(row: int, users: Sequence[str], histories: Sequence[list]) -> int | None:
    order = ((row + turn) % len(users) for turn in range(1, len(users)))
    return next((other for other in order if users[other] != users[row] and histories[other]), None)
