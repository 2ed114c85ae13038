"""What there is to score of a creative, and what comes of it."""

from dataclasses import dataclass, field

from PIL import Image
from torch import Tensor

from adgen.evaluation.scoring.shop_pictures import Seen, ShopPicture
from adgen.evaluation.titles.scores import ProductTexts


@dataclass
class CreativeFacts:
    """One creative, as tables and the store describe it. URIs are resolved."""

    pair_id: str
    user_key: str
    title: str | None
    """None where there is no creative: a row that failed is counted, not scored as an empty title."""
    picture: bytes | None
    unpasted: bytes | None = None
    """What the model painted, before the product was pasted; None where it was not kept."""
    variant: int = 0
    """Number of the seed, where a pair has several creatives."""
    product: ProductTexts | None = None
    cutout: str | None = None
    """The picture that finishing pasted the product from."""
    scale: float | None = None
    reference_titles: tuple[str | None, ...] | None = None
    """None where the pair has no reference."""
    reference_picture: ShopPicture | None = None
    clicked: tuple[ShopPicture, ...] | None = None
    """Pictures of the history that was drawn for the prompt; None where nobody knows it any more."""
    problems: list[str] = field(default_factory=list)
    """Why what cannot be scored."""
    scores: dict[str, float] = field(default_factory=dict)
    bleu_counts: list[int] | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    """For scores of many creatives together: `background`, `picture`, `reference` of `features.FEATURE_ROWS`."""

    def lacks(self, problem: str) -> None:
        """Say once why a score cannot be."""
        if problem not in self.problems:
            self.problems.append(problem)


@dataclass
class Shown:
    """A creative whose picture can be read."""

    facts: CreativeFacts
    picture: Image.Image
    """RGB."""
    product: Image.Image | None
    """The product alone where finishing put it, RGBA; None where nobody knows it."""
    history: list[Seen]
    reference: Seen | None
