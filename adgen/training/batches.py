"""Examples as tensors: prompts padded on the left, so that every row's picture ends the sequence (docs/design.md 6.7).

Whatever is drawn for a sample (title, clicks, dropouts, noise) is a function of the seed, the epoch and the sample's
number: neighbours, workers and crashes change nothing.

Shapes: B samples, P prompt positions, A answer tokens, N history items, T tokens an item, K picture tokens.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from adgen.errors import ModelError
from adgen.generation.prompt import Prompt, Prompter, PromptFacts
from adgen.model.config import ModelConfig
from adgen.records import digest, unit_interval
from adgen.shop.history import draw, filled
from adgen.shop.synthetic.grammar import TONES
from adgen.shop.synthetic.open_words import CHINESE as OPEN_CHINESE
from adgen.shop.synthetic.open_words import open_words
from adgen.training.settings import TrainingSettings
from adgen.training.task import Batch

IGNORED = -100

# An example as it is cached: a reference creative, its product, and what its user clicked. No user is named. Readers add
# `number`, its place among all.
CLICK = pa.struct(
    [
        pa.field("product", pa.string()),
        pa.field("title", pa.string()),
        pa.field("codes", pa.binary()),
        pa.field("close", pa.float32()),
    ]
)
EXAMPLES = pa.schema(
    [
        pa.field("product_title", pa.string()),
        pa.field("selling_points", pa.list_(pa.string())),
        pa.field("titles", pa.list_(pa.string())),
        pa.field("codes", pa.binary()),  # uint16, little-endian, raster order
        pa.field("condition", pa.binary()),  # PNG, the product on white
        pa.field("clicks", pa.list_(CLICK)),  # oldest first, without the product itself
    ]
)


@dataclass(frozen=True)
class Sample:
    """One example with all its draws made."""

    prompt: Prompt
    answer_start: int
    """Position of the first answer token; the end of the prompt where no title is learned."""
    facts: PromptFacts
    history_titles: list[list[int]]
    """Of the clicks that the model reads; in stage general the prompt shows none of them."""
    history_codes: np.ndarray  # (n, T)
    codes: np.ndarray  # (K,)
    condition: np.ndarray  # (S, S, 3) uint8
    hidden: bool
    seed: int


class LanguageCollator:
    """Rows of `EXAMPLES` -> the batch of a language stage."""

    def __init__(self, prompter: Prompter, config: ModelConfig, settings: TrainingSettings):
        self.prompter, self.config, self.settings = prompter, config, settings
        self.reads_clicks = settings.stage == "personal" or settings.losses.clicks > 0

    def __call__(self, rows: Sequence[dict], epochs: Sequence[int] | None = None) -> Batch:
        """epochs: of each row; None for evaluation, where the draw is always the same and nothing is dropped but what the model
        never sees (a share of 1)."""
        epochs = [None] * len(rows) if epochs is None else epochs
        return stack([self.sample(row, epoch) for row, epoch in zip(rows, epochs, strict=True)], self.prompter.pad_id, self.config)

    def sample(self, row: dict, epoch: int | None) -> Sample:
        """One row with its draws; ModelError when it is too long for the model."""
        dropout, key = self.settings.dropout, (self.settings.seed, epoch, row["number"])
        dropped = {
            name: getattr(dropout, name) == 1
            or (epoch is not None and unit_interval("dropout", name, *key) < getattr(dropout, name))
            for name in ("prompt", "foreground", "history")
        }
        if epoch is not None and unit_interval("open words", *key) < self.settings.open_words:
            row = row | _open_worded(key)
        clicks = self.shown_clicks(row, key) if self.reads_clicks and not dropped["history"] else []
        title = row["titles"][int(unit_interval("title", *key) * len(row["titles"]))]
        facts = facts_of(row, clicks if self.settings.stage == "personal" else [])
        prompt = self.prompter.picture_prompt(facts, title)
        start = _shared(self.prompter.title_prompt(facts).ids, prompt.ids)
        if dropped["prompt"]:
            prompt, clicks = self.prompter.negative_prompt(), []
            start = len(prompt)
        self._check_length(prompt, row)
        return Sample(
            prompt,
            start,
            facts,
            [self.prompter.history_title_ids(click["title"]) for click in clicks],
            history_codes(clicks, self.config),
            np.frombuffer(row["codes"], "<u2").astype(np.int64),
            np.array(Image.open(io.BytesIO(row["condition"]))),
            dropped["foreground"],
            int(digest("noise", *key)[:15], 16),
        )

    def shown_clicks(self, row: dict, key: tuple) -> list[dict]:
        """The coarse step, as in a refresh, with the sample's key in the place of a pair's; fewer clicks than the model takes are
        repeated."""
        items = self.config.history_items
        _, epoch, _ = key
        most = items
        if epoch is not None and unit_interval("dropout", "clicks", *key) < self.settings.dropout.clicks:
            most = int(unit_interval("clicks", *key) * (items + 1))
        clicks = row["clicks"]
        products, close = [click["product"] for click in clicks], [click["close"] for click in clicks]
        titles = [click["title"] for click in clicks]
        chosen = draw(digest(*key), products, close, most, None, row["product_title"] or None, titles)
        return filled([clicks[index] for index in chosen], items)

    def _check_length(self, prompt: Prompt, row: dict) -> None:
        needed = len(prompt) + self.config.image.tokens_per_picture
        if needed > self.config.decoder.max_positions:
            raise ModelError(
                f"example {row['number']}: prompt, title and picture need {needed} positions, the model has "
                f"{self.config.decoder.max_positions}: lower the template's title limits, or use a model with more"
            )


def _open_worded(key: tuple) -> dict:
    """The texts of an example of any words, a function of the key alone."""
    rng = np.random.default_rng(int(digest("open words", *key)[:15], 16))
    words = open_words("train", "zh" if rng.random() < OPEN_CHINESE else "en", rng)
    title = words.title(int(rng.integers(len(TONES))))
    return {"product_title": title, "selling_points": list(words.points), "titles": words.creative_titles(0)}


def facts_of(row: dict, clicks: Sequence[dict]) -> PromptFacts:
    """What the prompt of an example says."""
    titles = tuple(click["title"] for click in clicks)
    return PromptFacts(row["product_title"], tuple(row["selling_points"] or ()), titles, len(clicks))


def history_codes(clicks: Sequence[dict], config: ModelConfig) -> np.ndarray:
    """(n, tokens_per_history_picture) int64."""
    raw = b"".join(click["codes"] for click in clicks)
    return np.frombuffer(raw, "<u2").astype(np.int64).reshape(len(clicks), config.image.tokens_per_history_picture)


def stack(samples: Sequence[Sample], pad_id: int, config: ModelConfig) -> Batch:
    """Samples -> tensors. `answer_at` (B, A) are the positions that predict `answer_ids`; -100 pads."""
    length = max(len(s.prompt) for s in samples)
    num_items = max(len(s.history_titles) for s in samples)
    batch = {
        "ids": _left([s.prompt.ids for s in samples], length, pad_id),
        "slots": _left([_widened(s, num_items, config) for s in samples], length, -1),
        "attention": _left([(1,) * len(s.prompt) for s in samples], length, 0),
        "codes": torch.from_numpy(np.stack([s.codes for s in samples])),
        "condition": torch.from_numpy(np.stack([s.condition for s in samples])),
        "hidden": torch.tensor([s.hidden for s in samples]),
        "seeds": torch.tensor([s.seed for s in samples]),
        "num_items": torch.tensor([len(s.history_titles) for s in samples]),
    }
    batch["history_codes"], batch["history_titles"] = _histories(samples, num_items, config)
    # begin-of-image is the last prompt token and nobody's choice; what stands before it, back to the answer's start, is.
    answers = [s.prompt.ids[s.answer_start : -1] for s in samples]
    longest = max(1, *map(len, answers))
    batch["answer_ids"] = torch.tensor([[*a, *[IGNORED] * (longest - len(a))] for a in answers])
    first = torch.tensor([length - len(s.prompt) + s.answer_start - 1 for s in samples])
    batch["answer_at"] = (first[:, None] + torch.arange(longest)).clamp(0, length - 1)
    return batch


def _histories(samples: Sequence[Sample], num_items: int, config: ModelConfig) -> tuple[Tensor, Tensor]:
    codes = torch.zeros(len(samples), num_items, config.image.tokens_per_history_picture, dtype=torch.int64)
    titles = torch.zeros(len(samples), num_items, config.preference.tokens_per_title, dtype=torch.int64)
    for row, sample in enumerate(samples):
        if count := len(sample.history_titles):
            codes[row, :count] = torch.from_numpy(sample.history_codes)
            titles[row, :count] = torch.tensor(sample.history_titles)
    return codes, titles


def _widened(sample: Sample, num_items: int, config: ModelConfig) -> list[int]:
    """The prompt's slots as rows of a history of `num_items` items: titles' rows begin after all pictures'."""
    pictures = len(sample.history_titles) * config.image.tokens_per_history_picture
    shift = num_items * config.image.tokens_per_history_picture - pictures
    return [slot + shift if slot >= pictures and slot >= 0 else slot for slot in sample.prompt.slots]


def _left(rows: Sequence[Sequence[int]], length: int, padding: int) -> Tensor:
    return torch.tensor([[*[padding] * (length - len(row)), *row] for row in rows])


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
