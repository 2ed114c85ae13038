"""The published loop that the engine is measured against: it computes the same creatives, and wastes what it must."""

import pytest
import torch
from support.engine import GREEDY, SAMPLED, chain, requests
from support.models import bpe_tokenizer, script_titles, small_model, small_prompter

from adgen.generation.benchmark.published import PublishedLoop
from adgen.generation.generate import generate
from adgen.generation.timings import PhaseTimings


def logits_of(model, act) -> list[torch.Tensor]:
    """What the image head gave while `act` ran, a call each."""
    seen: list[torch.Tensor] = []
    hook = model.image_head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.float()))
    act()
    hook.remove()
    return seen


def test_its_logits_are_the_simple_loops():
    model, prompter = small_model(), small_prompter()
    ours = logits_of(model, lambda: generate(model, prompter, requests(), GREEDY))
    published = logits_of(model, lambda: PublishedLoop(model, prompter, GREEDY).generate(requests()))
    assert len(published) == 2 * len(ours) == 32  # the published head runs a branch at a time
    for step, both in enumerate(ours):
        torch.testing.assert_close(torch.cat(published[2 * step : 2 * step + 2]), both, atol=1e-4, rtol=0)


@pytest.mark.parametrize("written", [None, ["m", "u", "g", "!", "</", "prompt", ">"]], ids=["never closed", "closed"])
def test_its_greedy_creatives_are_the_simple_loops(written):
    prompter = small_prompter(bpe_tokenizer(merge_across_tags=True))
    model = small_model() if written is None else script_titles(small_model(), chain(prompter, written))
    ours = generate(model, prompter, requests(), GREEDY)
    published = PublishedLoop(model, prompter, GREEDY).generate(requests())
    assert all(result.title_closed for result in ours) == (written is not None)
    for one, other in zip(ours, published, strict=True):
        assert (one.title, one.title_closed, one.codes.tolist()) == (other.title, other.title_closed, other.codes.tolist())
        assert (one.picture.int() - other.picture.int()).abs().max() <= 1


def test_it_samples():
    model, prompter = small_model(), small_prompter()
    torch.manual_seed(0)
    some, others = (PublishedLoop(model, prompter, SAMPLED).generate(requests()) for _ in range(2))
    assert any(not torch.equal(one.codes, other.codes) for one, other in zip(some, others, strict=True))


def test_it_computes_the_foreground_at_every_step_and_each_condition_layer_twice():
    model, prompter = small_model(), small_prompter()
    calls = {"features": 0, "layer": 0}
    model.foreground.adapter.register_forward_hook(lambda *_: calls.update(features=calls["features"] + 1))
    model.foreground.condition_layers[1].register_forward_hook(lambda *_: calls.update(layer=calls["layer"] + 1))
    timings = PhaseTimings()
    PublishedLoop(model, prompter, GREEDY).generate(requests(), timings)
    assert calls == {"features": 15, "layer": 30}
    assert (timings.title_steps, timings.picture_steps) == (12, 16)
    assert min(timings.prefill, timings.title, timings.picture, timings.vq) > 0


def test_a_step_can_be_measured_at_any_cache_length():
    model, prompter = small_model(), small_prompter()
    loop = PublishedLoop(model, prompter, GREEDY)
    cache = loop.cache_of(10, 40)
    with torch.inference_mode():
        codes = list(loop.paint(cache, torch.randn(10, 64), loop.products(requests()), range(7, 10)))
    assert [row.shape for row in codes] == [(5,)] * 3
    assert cache.length == 43  # three whole steps: draw, foreground, read


def test_it_runs_in_bf16():
    results = PublishedLoop(small_model().to(torch.bfloat16), small_prompter(), SAMPLED).generate(requests())
    assert [result.codes.shape for result in results] == [(16,)] * 5
