"""Scores of creatives, row by row: the title, the product in the picture, copies, and backgrounds of whom it was made for.

A score that a row cannot have is absent from it, and the row says why; nothing stands in for it. Knows no store, no table
and no Ray: pictures come through a function that reads a URI.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import islice

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from adgen.cutouts import cut_out
from adgen.errors import PairError
from adgen.evaluation.pictures.copies import Nearest, nearest_history
from adgen.evaluation.pictures.product_fidelity import product_scores
from adgen.evaluation.pictures.tensors import as_pixels, placed_product, stacked
from adgen.evaluation.scores import measured, names_of
from adgen.evaluation.scoring.backgrounds import BackgroundScorer
from adgen.evaluation.scoring.facts import CreativeFacts, Shown
from adgen.evaluation.scoring.networks import ScoringNetworks
from adgen.evaluation.scoring.other_users import OtherUser
from adgen.evaluation.scoring.shop_pictures import PIXELS_SIDE, Seen, ShopPictures
from adgen.evaluation.titles.bleu import bleu_counts, written
from adgen.evaluation.titles.scores import title_scores
from adgen.images import read_picture

PRODUCT_SCORES = ("product_iou", "product_distance", "product_spill")
UNPASTED_SCORES = tuple(f"unpasted_{name}" for name in PRODUCT_SCORES)
ROW_SCORES = names_of("title", "picture")
CORPUS_BLEU = "corpus_bleu"
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
        pa.field("bleu_counts", pa.list_(pa.int32())),
        *(pa.field(name, pa.float64()) for name in ROW_SCORES),
    ]
)
"""A row of an evaluation: which creative, what it is one of, why which scores are missing, what it adds to the BLEU of all, and
the scores."""
SIDE = 2 * PIXELS_SIDE  # pixels that products and copies are looked for at
_LARGEST = 768  # pixels a side that a product is placed at: beyond it a part of a pixel is nothing
_AT_ONCE = 32  # pictures in one pass of a network


class CreativeScorer:
    """Scores batches of creatives, with the networks that there are."""

    def __init__(self, networks: ScoringNetworks, read: Callable[[str], bytes], other_users: Sequence[OtherUser] = ()):
        """read: bytes of a URI, or PairError. other_users: the run's panel; clicks are ShopPictures."""
        self.networks = networks
        self.shop = ShopPictures(networks, read)
        self.backgrounds = BackgroundScorer(self.shop, other_users)
        self.device = networks.device
        self._pixels: Callable[[str], Image.Image] = lru_cache(4)(lambda uri: read_picture(read(uri)))

    def score(self, batch: Sequence[CreativeFacts]) -> None:
        """Fills `scores`, `bleu_counts`, `features` and `problems` of each; none depends on the others of the batch."""
        made = [each for each in batch if each.title is not None]
        for each in made:
            _score_title(each)
            each.scores |= measured("title", each)
        self.shop.look_at(picture for each in made for picture in (each.reference_picture, *(each.clicked or ())) if picture)
        shown = filter(None, map(self._shown, made))
        while part := list(islice(shown, _AT_ONCE)):
            self._score_products([(each.facts, each.picture, each.product) for each in part], PRODUCT_SCORES)
            self._score_products(self._unpasted(part), UNPASTED_SCORES)
            _score_copies([each for each in part if each.history])
            self.backgrounds.score(part)
            self._see_sets(part)
            self._score_with_titles([each for each in part if each.facts.title.strip()])
            for each in part:
                each.facts.scores |= measured("picture", each)

    def _shown(self, facts: CreativeFacts) -> Shown | None:
        picture = _readable(facts, facts.picture, "picture")
        if picture is None:
            return None
        return Shown(facts, picture, self._product(facts, picture), self._history(facts), self._reference(facts))

    # -- product -------------------------------------------------------------------------------------------------------

    def _product(self, facts: CreativeFacts, picture: Image.Image) -> Image.Image | None:
        """The product alone where finishing puts it in a picture of this size, RGBA: placed at a smaller one it would be off by
        a part of a pixel, and its edges other colours."""
        if facts.product is None or facts.cutout is None:
            if facts.product is not None:
                facts.lacks("no_product_picture")
            return None
        shrink = min(1.0, _LARGEST / max(picture.size))
        size = (max(1, round(picture.width * shrink)), max(1, round(picture.height * shrink)))
        try:
            return placed_product(cut_out(self._pixels(facts.cutout)), facts.scale or 1.0, *size)
        except PairError as error:
            facts.lacks(f"product_{error.reason}")
            return None

    def _unpasted(self, shown: Sequence[Shown]) -> list[tuple[CreativeFacts, Image.Image, Image.Image | None]]:
        painted = ((each.facts, _readable(each.facts, each.facts.unpasted, "unpasted")) for each in shown)
        return [(facts, picture, self._product(facts, picture)) for facts, picture in painted if picture is not None]

    def _score_products(self, rows: Sequence[tuple[CreativeFacts, Image.Image, Image.Image | None]], names: Sequence[str]) -> None:
        """rows: pictures with their products in the same frames."""
        placed = [row for row in rows if row[2] is not None]
        if not placed:
            return
        pictures, products = (stacked([row[column] for row in placed], SIDE).to(self.device) for column in (1, 2))
        visible = (products[:, 3] > 0.5).flatten(1).any(1)
        for (facts, *_), there in zip(placed, visible.tolist(), strict=True):
            if not there:
                facts.lacks("product_not_visible")
        if not bool(visible.any()):
            return
        good = [facts for (facts, *_), there in zip(placed, visible.tolist(), strict=True) if there]
        found = product_scores(pictures[visible], products[visible])
        for name, of in zip(names, PRODUCT_SCORES, strict=True):
            for facts, value in zip(good, found[of].tolist(), strict=True):
                facts.scores[name] = value

    # -- pictures of the shop ------------------------------------------------------------------------------------------

    def _history(self, facts: CreativeFacts) -> list[Seen]:
        if facts.clicked is None:
            facts.lacks("no_lineage")
            return []
        seen = self.backgrounds.seen(facts.clicked)
        if len(seen) < len(facts.clicked):
            facts.lacks("unread_history_pictures")
        if not seen:
            facts.lacks("no_history")
        return seen

    def _reference(self, facts: CreativeFacts) -> Seen | None:
        if facts.reference_titles is None:
            return None
        if facts.reference_picture is None:
            facts.lacks("no_reference_picture")
            return None
        try:
            return self.shop.seen(facts.reference_picture)
        except PairError as error:
            facts.lacks(f"reference_picture_{error.reason}")
            return None

    # -- sets and titles -----------------------------------------------------------------------------------------------

    def _see_sets(self, shown: Sequence[Shown]) -> None:
        """Features for the distance of all creatives from all references; a pair's reference is seen once, whatever the seeds."""
        if self.networks.pictures is None:
            return
        compared = [each for each in shown if each.reference is not None and each.facts.variant == 0]
        for name, rows, pictures in (
            ("picture", shown, [each.picture for each in shown]),
            ("reference", compared, [self.shop.open(each.facts.reference_picture) for each in compared]),
        ):
            for each, feature in zip(rows, self.networks.pictures.of_pictures(pictures) if pictures else (), strict=True):
                each.facts.features[name] = feature

    def _score_with_titles(self, shown: Sequence[Shown]) -> None:
        if self.networks.titles is None:
            return
        scores = self.networks.titles.each([each.picture for each in shown], [each.facts.title for each in shown])
        for each, value in zip(shown, scores, strict=True):
            each.facts.scores["clip_score"] = value


def _score_title(facts: CreativeFacts) -> None:
    if facts.reference_titles is None:
        facts.lacks("no_reference")
    elif not written(facts.reference_titles):
        facts.lacks("empty_reference_titles")
    if facts.product is None:
        facts.lacks("no_product")
        return
    if not any(facts.product.selling_points):
        facts.lacks("no_selling_points")
    if not facts.title.strip():
        facts.lacks("empty_title")
    facts.scores |= title_scores(facts.title, facts.reference_titles or (), facts.product)
    if given := written(facts.reference_titles or ()):
        facts.bleu_counts = bleu_counts(facts.title, given, facts.product.locale)


def _readable(facts: CreativeFacts, data: bytes | None, what: str) -> Image.Image | None:
    """RGB; None where there is none, and whoever looked for it has said why."""
    try:
        return read_picture(data).convert("RGB") if data is not None else None
    except PairError as error:
        facts.lacks(f"{what}_{error.reason}")
        return None


def _score_copies(rows: Sequence[Shown]) -> None:
    if not rows:
        return
    mine = _nearest([as_pixels(each.picture, SIDE) for each in rows], [_mask(each.product) for each in rows], rows)
    for each, copied, correlation in zip(rows, mine.copied.tolist(), mine.correlation.tolist(), strict=True):
        each.facts.scores |= {"copied": float(copied), "history_correlation": correlation}
    compared = [each for each in rows if each.reference is not None]
    if not compared:
        return
    nothing = torch.zeros(PIXELS_SIDE, PIXELS_SIDE)
    masks = [nothing if each.reference.product is None else each.reference.product for each in compared]
    theirs = _nearest([each.reference.pixels for each in compared], masks, compared)
    for each, copied in zip(compared, theirs.copied.tolist(), strict=True):
        each.facts.scores["reference_copied"] = float(copied)


def _mask(product: Image.Image | None) -> Tensor:
    return torch.zeros(SIDE, SIDE) if product is None else as_pixels(product, SIDE)[3]


def _nearest(pictures: Sequence[Tensor], masks: Sequence[Tensor], rows: Sequence[Shown]) -> Nearest:
    most = max(len(each.history) for each in rows)
    history = torch.zeros(len(rows), most, 3, PIXELS_SIDE, PIXELS_SIDE)
    present = torch.zeros(len(rows), most, dtype=torch.bool)
    for row, each in enumerate(rows):
        history[row, : len(each.history)] = torch.stack([seen.pixels for seen in each.history])
        present[row, : len(each.history)] = True
    return nearest_history(torch.stack(list(pictures)), torch.stack(list(masks)), history, present)
