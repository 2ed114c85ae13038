"""The creatives of a proof: every pair under every condition, made in one go."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from adgen.evaluation.pictures.tensors import placed_product
from adgen.finishing.paste import compose
from adgen.images import read_picture
from adgen.on_ray.proof.generation import Condition, Creative, Maker, open_maker, with_histories
from adgen.on_ray.proof.pairs import ProofPairs, controlled_user
from adgen.on_ray.proof.settings import ProofSettings
from adgen.on_ray.rows import Row
from adgen.progress import Progress
from adgen.shop.inputs.locations import read_bytes

OWN, NONE, OTHER_USER, HIDDEN, SHEET = "own", "none", "other_user", "hidden", "sheet"
WITHOUT_HISTORY = frozenset({"no_history"})
"""Models of an ablation that were trained without histories, and are shown none."""


@dataclass
class Made:
    """Creatives by condition; those of a condition are in the order of `rows`, but for the sheet's."""

    maker: Maker
    creatives: dict[str, list[Creative]]
    sheet_rows: list[Row]

    @property
    def rows(self) -> list[Row]:
        """The planned pairs."""
        return self.maker.rows

    @property
    def side(self) -> int:
        """Pixels of a picture, along a side."""
        return len(self.creatives[OWN][0].picture)

    @cached_property
    def cutouts(self) -> list[Image.Image]:
        """Each pair's product alone, where it is pasted, RGBA at the pictures' size."""
        return [placed_product(self.maker.product(row), row["scale"] or 1.0, self.side, self.side) for row in self.rows]

    def titles(self, condition: str) -> list[str]:
        """As the model wrote them."""
        return [creative.title for creative in self.creatives[condition]]

    def painted(self, condition: str) -> list[Image.Image]:
        """Pictures as the model painted them."""
        return [Image.fromarray(creative.picture) for creative in self.creatives[condition]]

    def pasted(self, condition: str) -> list[Image.Image]:
        """The same with the real product, at the model's size."""
        return [paste(self.maker, row, picture, self.side) for row, picture in zip(self.rows, self.painted(condition), strict=True)]


def paste(maker: Maker, row: Row, picture: Image.Image, side: int) -> Image.Image:
    """A picture with its product, `side` pixels wide, as finishing pastes it."""
    return compose(picture, maker.product(row), row["scale"] or 1.0, side, side).picture


def make_all(settings: ProofSettings, pairs: ProofPairs, scratch: Path, progress: Progress) -> Made:
    """The model's creatives under its users' own history, none, another user's, the own one with the product hidden, the
    controlled ones where the truth is known, and what the sheet shows."""
    progress.phase("catalog and plan")
    maker = open_maker(settings, settings.model, pairs.inputs, scratch)
    users = [row["user_id"] for row in maker.rows]
    shown = lambda whose: with_histories(maker.rows, maker.draws(maker.rows, pairs.inputs, whose))  # noqa: E731
    conditions = {
        OWN: Condition(maker.rows),
        NONE: Condition(with_histories(maker.rows, [()] * len(users))),
        OTHER_USER: Condition(shown([pairs.other_users[user] for user in users])),
        HIDDEN: Condition(maker.rows, "product hidden"),
    }
    for share in pairs.noise:
        conditions[noisy(share)] = Condition(shown([controlled_user(user, share) for user in users]))
    sheet = sheet_rows(maker, pairs) if settings.sheet else []
    if sheet:
        conditions[SHEET] = Condition(sheet)
    progress.phase("generate", sum(len(condition.rows) for condition in conditions.values()))
    return Made(maker, maker.make(conditions, progress), sheet)


def make_own(settings: ProofSettings, name: str, model: Path, pairs: ProofPairs, scratch: Path, progress: Progress) -> Made:
    """Another model's creatives of the same pairs: with the own history, or none where it has learned none."""
    maker = open_maker(settings, model, pairs.inputs, scratch)
    progress.phase(name, len(maker.rows))
    rows = with_histories(maker.rows, [()] * len(maker.rows)) if name in WITHOUT_HISTORY else maker.rows
    return Made(maker, maker.make({OWN: Condition(rows)}, progress), [])


def noisy(share: float) -> str:
    """Name of the condition with this share of stray clicks."""
    return f"noise {share:g}"


# -- the sheet's creatives -----------------------------------------------------------------------------------------

SHEET_USERS, SHEET_PRODUCTS = 5, 4


def sheet_rows(maker: Maker, pairs: ProofPairs) -> list[Row]:
    """Some products, each for the same users, product by product. A product has one seed, whoever it is for."""
    users = sheet_users([row["user_id"] for row in maker.rows], pairs)
    products = {row["product_id"]: row for row in maker.rows}
    rows = [products[product] for product in list(products)[:SHEET_PRODUCTS] for _ in users]
    owners = users * (len(rows) // len(users))
    drawn = maker.draws(rows, pairs.inputs, owners)
    return [row | {"user_id": user} for row, user in zip(with_histories(rows, drawn), owners, strict=True)]


def sheet_users(users: Sequence[str], pairs: ProofPairs) -> list[str]:
    """The first users of different tastes: of one favourite style each, where the truth is known."""
    if pairs.truth is None:
        return list(dict.fromkeys(users))[:SHEET_USERS]
    by_style: dict[tuple[str, ...], str] = {}
    for user in users:
        favourites = pairs.truth.favourites[user]
        if len(favourites) == 1:
            by_style.setdefault(favourites, user)
    return list(by_style.values())[:SHEET_USERS] or list(dict.fromkeys(users))[:SHEET_USERS]


def read_shop_picture(pairs: ProofPairs, uri: str) -> Image.Image:
    """A picture that a row of the tables names. PairError: it is not there, or no picture."""
    return read_picture(read_bytes(pairs.inputs.resolve(uri)), "picture")
