"""The language task in small: settings, examples, the requests that they stand for, and logits as generation computes them."""

import torch

from adgen.generation.generate import Request, embed, embed_history, foreground_additions, prefill
from adgen.model.image_tokens import to_unit_range
from adgen.training.batches import LanguageCollator
from adgen.training.settings import TrainingSettings
from support.examples import example
from support.models import small_config, small_prompter

CONFIG = small_config()
PROMPTER = small_prompter()
STILL = {"prompt": 0.0, "foreground": 0.0}


def training_settings(stage: str = "personal", **changes) -> TrainingSettings:
    return TrainingSettings(**({"stage": stage, "dropout": STILL, "steps": 4, "batch": 4} | changes))


def rows(count: int, clicks: tuple[int, ...] = (4, 2, 0, 3)) -> list[dict]:
    return [example(number, CONFIG, clicks[number % len(clicks)]) for number in range(count)]


def requests(collator: LanguageCollator, examples: list[dict], stage: str = "personal") -> list[Request]:
    samples = [collator.sample(row, None) for row in examples]
    return [
        Request(s.facts.product_title, 0, s.facts.selling_points, s.facts.history_titles, torch.from_numpy(s.history_codes),
                to_unit_range(torch.from_numpy(s.condition)))
        for s in samples
    ]  # fmt: skip


def cached_logits(model, request: Request, title: str, codes: torch.Tensor, prompter=PROMPTER) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of each answer token and picture token, one position at a time, as generation computes them."""
    history = embed_history(model, prompter, request)
    opened, whole = prompter.title_prompt(request.facts), prompter.picture_prompt(request.facts, title)
    assert whole.ids[: len(opened)] == opened.ids
    cache = model.decoder.new_cache(1, len(whole) + len(codes), "cpu", torch.float32)
    hidden = prefill(model, cache, [embed(model, opened, history)])
    texts = [model.text_logits(hidden)]
    for token in whole.ids[len(opened) : -1]:
        hidden = model.decoder.extend(model.decoder.embed_tokens(torch.tensor([[token]])), cache)[:, 0]
        texts.append(model.text_logits(hidden))
    hidden = model.decoder.extend(embed(model, whole, history)[None, -1:], cache)[:, 0]
    additions = foreground_additions(model, [request], strength=1.0)
    pictures = []
    for step, code in enumerate(codes):
        pictures.append(model.image_logits(hidden))
        embeds = model.image_embedding(code[None])[:, None]
        hidden = model.decoder.extend(embeds, cache, additions=additions[:, :, step : step + 1])[:, 0]
    return torch.cat(texts[:-1]), torch.cat(pictures)
