"""Training and inference agree: the same sequence, the same alignment, the same numbers. No Ray."""

import pytest
import torch
from small_examples import example
from small_models import small_config, small_model, small_prompter

from adgen.generation.generate import Request, embed, embed_history, foreground_additions, generate, prefill
from adgen.generation.sampling import SamplingSettings
from adgen.model.image_tokens import to_unit_range
from adgen.training.batches import IGNORED, LanguageCollator
from adgen.training.language import LanguageTask
from adgen.training.settings import TrainingSettings
from adgen.training.step import TorchStep
from adgen.training.trainable import choose_trainable

CONFIG = small_config()
PROMPTER = small_prompter()
STILL = {"prompt": 0.0, "foreground": 0.0}
GREEDY = SamplingSettings(title_temperature=0, picture_temperature=0, guidance=1.0, control_strength=1.0, max_title_tokens=40)


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


@pytest.mark.parametrize("stage", ["general", "personal"])
@pytest.mark.parametrize("residual", [True, False])
def test_teacher_forced_logits_are_those_of_cached_generation(stage, residual):
    """Rows of different lengths and histories in one padded batch, against each one alone with a cache, step by step."""
    preference = CONFIG.preference.model_copy(update={"residual": residual})
    model = small_model(preference=preference)
    settings = training_settings(stage)
    collator, task = LanguageCollator(PROMPTER, CONFIG, settings), LanguageTask(model, PROMPTER, settings).eval()
    examples = rows(4)
    batch = collator(examples)
    with torch.no_grad():
        hidden = task.hidden(batch)
        texts = model.text_logits(hidden.gather(1, batch["answer_at"][..., None].expand(-1, -1, hidden.shape[-1])))
        pictures = model.image_logits(hidden[:, -1 - CONFIG.image.tokens_per_picture : -1])
        for row, request in enumerate(requests(collator, examples)):
            text, picture = cached_logits(model, request, examples[row]["titles"][0], batch["codes"][row])
            answer = batch["answer_ids"][row] != IGNORED
            assert (texts[row][answer] - text).abs().max() < 1e-4
            assert (pictures[row] - picture).abs().max() < 1e-4


def cached_logits(model, request: Request, title: str, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of each answer token and picture token, one position at a time, as generation computes them."""
    history = embed_history(model, PROMPTER, request)
    opened, whole = PROMPTER.title_prompt(request.facts), PROMPTER.picture_prompt(request.facts, title)
    assert whole.ids[: len(opened)] == opened.ids
    cache = model.decoder.new_cache(1, len(whole) + len(codes), "cpu", torch.float32)
    hidden = prefill(model, cache, [embed(model, opened, history)])
    texts = [model.text_logits(hidden)]
    for token in whole.ids[len(opened) : -1]:
        hidden = model.decoder.extend(model.decoder.embed_tokens(torch.tensor([[token]])), cache)[:, 0]
        texts.append(model.text_logits(hidden))
    hidden = model.decoder.extend(model.decoder.embed_tokens(torch.tensor([[whole.ids[-1]]])), cache)[:, 0]
    additions = foreground_additions(model, [request], strength=1.0)
    pictures = []
    for step, code in enumerate(codes):
        pictures.append(model.image_logits(hidden))
        embeds = model.image_embedding(code[None])[:, None]
        hidden = model.decoder.extend(embeds, cache, additions=additions[:, :, step : step + 1])[:, 0]
    return torch.cat(texts[:-1]), torch.cat(pictures)


@pytest.mark.parametrize("preset", ["full", "released"])
def test_an_overfitted_model_generates_its_references(preset):
    """What training drives to zero is what inference does: greedy generation repeats titles and codes."""
    model = small_model()
    settings = training_settings(trainable={"preset": preset})
    collator, examples = LanguageCollator(PROMPTER, CONFIG, settings), rows(3)
    choose_trainable(model, "personal", settings.trainable)
    task = LanguageTask(model, PROMPTER, settings)
    step = TorchStep(task, settings.optimizer, accumulation=1)
    batch = collator(examples)
    task.eval()  # no dropout, no noise: three examples by heart
    for number in range(260):
        loss, _ = step.forward(batch)
        step.backward(loss)
        step.apply(3e-3 if number < 200 else 1e-3)
        if loss < 0.01:
            break
    assert loss < 0.05
    made = generate(model, PROMPTER, requests(collator, examples), GREEDY)
    assert [result.title for result in made] == [row["titles"][0] for row in examples]
    assert torch.equal(torch.stack([result.codes for result in made]), batch["codes"])
