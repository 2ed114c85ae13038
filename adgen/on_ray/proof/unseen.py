"""The proof on unseen ground: shops of the evaluation split whose styles, words, photographs and numbers of clicks no training
showed, each a section of its own. Titles are drawn alone, so that there can be many."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from adgen.evaluation.pictures.pbs_features import pbs_features
from adgen.evaluation.proof.judges import StyleJudge, border_statistics
from adgen.evaluation.proof.measures import style_hits
from adgen.evaluation.proof.unseen import (
    FEW_CLICKS_LESS,
    STYLE,
    STYLE_OF_ONE_CLICK,
    TITLE_GOALS,
    Finding,
    Goal,
    mean_of,
    style_findings,
    title_findings,
    title_values,
)
from adgen.evaluation.titles.scores import ProductTexts
from adgen.generation.model_directory import ModelDirectory
from adgen.model.pbs import PBSEncoder, load_pbs, pbs
from adgen.on_ray.proof.creatives import noisy, paste, read_shop_picture
from adgen.on_ray.proof.generation import Condition, Creative, open_maker, with_histories
from adgen.on_ray.proof.measures import product_columns, real_pictures
from adgen.on_ray.proof.pairs import choose_pairs, controlled_user, draw_held_out_shop, with_newest_clicks
from adgen.on_ray.proof.settings import ProofSettings
from adgen.on_ray.proof.style_classifier import draw_real_pictures, learn
from adgen.on_ray.rows import Row
from adgen.progress import Progress
from adgen.shop.synthetic.styles import style_set

OWN, OTHER_USER = "own clicks", "another user's clicks"
PBS_APART = Goal(0.42)
"""1 less the PBS of one product on two backgrounds, as reported of the paper's encoder."""


@dataclass(frozen=True)
class Ground:
    """What a section's shop has that training had not."""

    styles: tuple[str, ...]
    words: str
    pbs_margin: Goal
    clicks: tuple[int, ...] = ()
    """Numbers of newest clicks that users are cut to, for sections of their own."""
    has_strays: bool = False
    has_pictures: bool = True


@dataclass(frozen=True)
class Shown:
    """Whose clicks the users of a section are shown."""

    name: str
    of: Callable[[str], str]
    """User -> whose."""
    num_clicks: int | None = None
    """Where users are cut to so many."""

    @property
    def is_painted(self) -> bool:
        """Of the cut histories only those of one click are: what a picture follows is asked where there is least to follow."""
        return self.num_clicks in (None, 1)


GROUNDS = {
    "drawn": Ground(("many",), "mixed", Goal(0.3), clicks=(0, 1, 2, 3, 5, 6, 20), has_strays=True),
    "open words": Ground(("ten",), "open", Goal(0.3), has_pictures=False),
    "photographs": Ground((), "open", Goal(0.2)),
}
STYLES, CLICKS = 40, 20  # of the drawn ground's shop; clicks of each of its users


def prove_unseen(settings: ProofSettings, scratch: Path, progress: Progress) -> list[Finding]:
    """Every section that `settings` name; photographs where a folder of them is named."""
    findings = []
    for name in settings.unseen:
        if name != "photographs" or settings.photographs is not None:
            folder = scratch / name.replace(" ", "-")
            folder.mkdir()
            findings += _Section(name, GROUNDS[name], settings, folder, progress).findings()
    return findings


class _Section:
    """One ground: its shop, its creatives, its lines."""

    def __init__(self, name: str, ground: Ground, settings: ProofSettings, scratch: Path, progress: Progress):
        self.name, self.ground, self.settings, self.progress = name, ground, settings, progress
        photographs = settings.photographs if name == "photographs" else None
        self.styles = style_set(ground.styles, STYLES, photographs, "eval")
        side = ModelDirectory(settings.model).config.image.image_size
        progress.phase(f"{name}: shop")
        more = {"styles": self.styles, "words": ground.words} | ({"clicks": (CLICKS, CLICKS)} if ground.clicks else {})
        uri = draw_held_out_shop(scratch / "shop", settings.seed, settings.titles, side, os.cpu_count() or 1, **more)
        pairs = choose_pairs(uri, settings.titles, settings.noise if ground.has_strays else (), scratch)
        users = list(dict.fromkeys(each.user for each in pairs.references))
        newest = {_cut_user(user, count): (user, count) for user in users for count in ground.clicks}
        self.pairs = with_newest_clicks(pairs, newest, scratch)
        self.maker = open_maker(settings, settings.model, self.pairs.inputs, scratch)
        self.painted_rows = self.maker.rows[: settings.pictures if ground.has_pictures else 0]
        columns = product_columns(self.pairs)
        self.texts = [
            ProductTexts(row["product_title"], tuple(row["selling_points"] or ()), *columns[row["product_id"]])
            for row in self.maker.rows
        ]

    def findings(self) -> list[Finding]:
        """Of titles, then of pictures."""
        conditions = list(self._conditions())
        rows = {shown.name: self._rows(shown) for shown in conditions}
        num = len(self.painted_rows)
        titles = {f"titles, {name}": Condition(some, "title") for name, some in rows.items()}
        pictures = {each.name: Condition(rows[each.name][:num]) for each in conditions if num and each.is_painted}
        self.progress.phase(f"{self.name}: generate", sum(len(each.rows) for each in (*titles.values(), *pictures.values())))
        made = self.maker.make(titles | pictures, self.progress)
        values = {shown.name: self._title_values(made[f"titles, {shown.name}"]) for shown in conditions}
        found = [line for shown in conditions for line in self._of_titles(shown, values)]
        painted = {shown: made[shown.name] for shown in conditions if shown.name in pictures}
        return found + (self._of_pictures(painted, rows) if painted else [])

    def _conditions(self) -> Iterator[Shown]:
        yield Shown(OWN, lambda user: user)
        yield Shown(OTHER_USER, lambda user: self.pairs.other_users[user])
        for count in self.ground.clicks:
            yield Shown("1 click" if count == 1 else f"{count} clicks", lambda user, count=count: _cut_user(user, count), count)
        for share in self.pairs.noise:
            yield Shown(noisy(share), lambda user, share=share: controlled_user(user, share))

    def _rows(self, shown: Shown) -> list[Row]:
        rows = self.maker.rows
        return with_histories(rows, self.maker.draws(rows, self.pairs.inputs, [shown.of(row["user_id"]) for row in rows]))

    def _of_titles(self, shown: Shown, values: dict[str, dict[str, list[float]]]) -> list[Finding]:
        goals = dict(TITLE_GOALS)
        if shown.num_clicks is not None:
            goals["allowed_words"] = Goal(round(mean_of(values[OWN]["allowed_words"])[0] - FEW_CLICKS_LESS, 4))
        return title_findings(self.name, shown.name, values[shown.name], goals)

    def _title_values(self, made: list[Creative]) -> dict[str, list[float]]:
        columns = ([each.title for each in made], [each.first_title or "" for each in made], [each.is_template for each in made])
        return title_values(*columns, self.texts)

    def _of_pictures(self, made: dict[Shown, list[Creative]], rows: dict[str, list[Row]]) -> list[Finding]:
        real, judges = real_pictures(self.pairs, self.painted_rows), self._judges()
        # What a real picture reaches is the judge's matter, and asked of the users' own styles whatever is shown.
        real_hits = {name: style_hits(judge.styles(real), self._liked()) for name, judge in judges.items()}
        found = []
        for shown, creatives in made.items():
            pictures = [Image.fromarray(each.picture) for each in creatives]
            wanted, goal = self._wanted(shown, rows[shown.name])
            for name, judge in judges.items():
                hits = style_hits(judge.styles(pictures), wanted)
                found += style_findings(self.name, shown.name, name, hits, real_hits[name], goal)
        if self.settings.encoder is not None:
            own = next(creatives for shown, creatives in made.items() if shown.name == OWN)
            found += self._of_pbs(own, real, load_pbs(self.settings.encoder))
        return found

    def _liked(self) -> list[tuple[str, ...]]:
        return [self.pairs.truth.favourites[row["user_id"]] for row in self.painted_rows]

    def _wanted(self, shown: Shown, rows: list[Row]) -> tuple[list[tuple[str, ...]], Goal | None]:
        """The styles that each picture may have: its user's, whoever's clicks were shown, or the one click's own."""
        truth = self.pairs.truth
        if shown.name == OTHER_USER:
            return [truth.favourites[self.pairs.other_users[row["user_id"]]] for row in self.painted_rows], None
        if shown.num_clicks == 1:
            clicked = [row["history_ids"] for row in rows[: len(self.painted_rows)]]
            return [tuple(truth.styles[click] for click in clicks) for clicks in clicked], STYLE_OF_ONE_CLICK
        return self._liked(), STYLE if shown.name == OWN else None

    def _judges(self) -> dict[str, StyleJudge]:
        side = min(64, ModelDirectory(self.settings.model).config.image.image_size)
        drawn = draw_real_pictures(self.settings.seed, self.settings.classifier_pictures, side, self.progress, self.styles)
        border = StyleJudge(border_statistics, *drawn, self.styles.names)
        return {"border statistics": border, "classifier": learn(self.settings.seed, drawn, self.progress, self.styles)}

    def _of_pbs(self, made: list[Creative], real: list[Image.Image], encoder: PBSEncoder) -> list[Finding]:
        """Own less another user's reference; of real pictures, how far one product lies apart on two backgrounds, and, harder,
        another product in the reference's style less the reference's product in another one."""
        references = {(each.user, each.product): each.image for each in self.pairs.references}
        rows = self.painted_rows
        first = {each.user: each.image for each in reversed(self.pairs.references)}
        picture = lambda uri: read_shop_picture(self.pairs, uri)  # noqa: E731
        features = lambda pictures: pbs_features(encoder, pictures)  # noqa: E731
        own = features([picture(references[row["user_id"], row["product_id"]]) for row in rows])
        other = features([picture(first[self.pairs.other_users[row["user_id"]]]) for row in rows])
        painted = [Image.fromarray(each.picture) for each in made]
        creatives = features([paste(self.maker, *each, each[1].width) for each in zip(rows, painted, strict=True)])
        elsewhere = features([self._picture_of(row["product_id"]) for row in rows])
        margin = (pbs(creatives, own) - pbs(creatives, other)).tolist()
        same_product = pbs(elsewhere, own)
        return [
            Finding(self.name, OWN, "PBS, own less another user's", *mean_of(margin), self.ground.pbs_margin),
            Finding(
                self.name, "real pictures", "PBS, one product on two backgrounds", *mean_of((1 - same_product).tolist()), PBS_APART
            ),
            Finding(
                self.name,
                "real pictures",
                "PBS, same style less same product",
                *mean_of((pbs(features(real), own) - same_product).tolist()),
            ),
        ]

    def _picture_of(self, product: str) -> Image.Image:
        return read_shop_picture(self.pairs, self._images[product])

    @cached_property
    def _images(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for batch in self.pairs.inputs["products"].batches(["product_id", "image"]):
            found |= dict(zip(batch["product_id"].to_pylist(), batch["image"].to_pylist(), strict=True))
        return found


def _cut_user(user: str, count: int) -> str:
    return f"{user} with {count} newest"
