"""transformers' Janus as a baseline: the same weights give the same tokens, so the two do the same work."""

import pytest
import torch
from support.engine import GREEDY, SAMPLED
from support.models import small_config, small_model, small_prompter

from adgen.generation.benchmark.clock import StepClock
from adgen.generation.generate import Request, generate
from adgen.generation.prompt import Prompt, Prompter
from adgen.generation.template import load_template

REQUESTS = [Request("fresh mug", 11 + i, (word,)) for i, word in enumerate(("steel", "metal", "tweed"))]


class PaddedNegative(Prompter):
    """Its negative prompt is transformers': the conditional one with padding for all but its first and last token."""

    def negative_prompt(self) -> Prompt:
        length = len(self.picture_prompt(REQUESTS[0].facts, ""))
        ids = [self._id("begin_of_sentence")] + [self.pad_id] * (length - 2) + [self._id("begin_of_image")]
        return Prompt(tuple(ids), (-1,) * length)


def over(*arguments):
    """transformers' Janus over a model; imported when a test needs it, since it takes seconds."""
    from adgen.generation.benchmark.transformers_janus import TransformersJanus

    return TransformersJanus(*arguments)


@pytest.fixture
def prompter() -> Prompter:
    plain = small_prompter()
    template = load_template()
    chat = template.tokens.begin_of_sentence + template.chat  # this tokenizer adds none itself
    return PaddedNegative(plain._full, template.model_copy(update={"chat": chat}), small_config())


def prompts(prompter: Prompter) -> list[tuple[int, ...]]:
    found = [prompter.picture_prompt(request.facts, "").ids for request in REQUESTS]
    assert len(set(map(len, found))) == 1, "transformers takes prompts of one length"
    return found


def test_its_greedy_tokens_and_logits_are_ours_without_history_and_foreground(prompter):
    model = small_model(seed=1)
    baseline = over(model, prompter, GREEDY)
    ours, theirs = [], []
    model.image_head.register_forward_hook(lambda _module, _inputs, logits: ours.append(logits))
    baseline.janus.model.generation_head.register_forward_hook(lambda _module, _inputs, logits: theirs.append(logits))
    codes = [result.codes.tolist() for result in generate(model, prompter, REQUESTS, GREEDY)]
    assert baseline.paint(prompts(prompter)).tolist() == codes
    assert len({tuple(row) for row in codes}) > 1
    assert min(len(set(row)) for row in codes) > 5, "a picture of one token would prove little"
    torch.testing.assert_close(torch.stack(theirs), torch.stack(ours), atol=1e-4, rtol=0)


def test_it_shares_the_weights_and_copies_none(prompter):
    model = small_model()
    janus = over(model, prompter, GREEDY).janus
    assert janus.model.language_model.layers[1].mlp.up_proj.weight is not None
    shared = {p.data_ptr() for p in model.parameters()}
    used = [p for n, p in janus.named_parameters() if "language_model" in n or "generation_" in n or "lm_head" in n]
    assert all(p.data_ptr() in shared for p in used)


def test_a_short_run_has_the_cache_of_a_whole_picture_and_a_strike_a_step(prompter, monkeypatch):
    lengths = []
    baseline = over(small_model(), prompter, SAMPLED)
    kept = baseline.janus._prepare_static_cache
    monkeypatch.setattr(
        baseline.janus, "_prepare_static_cache", lambda **named: lengths.append(named["max_cache_len"]) or kept(**named)
    )
    clock = StepClock(torch.device("cpu"))
    codes = baseline.paint(prompts(prompter), steps=5, clock=clock)
    assert codes.shape == (3, 5)
    assert lengths == [len(prompts(prompter)[0]) + 16]
    assert len(clock.seconds) == 4
    assert min(clock.seconds) > 0


def test_it_draws_when_the_engine_draws(prompter):
    baseline = over(small_model(), prompter, SAMPLED)
    torch.manual_seed(1)
    some, others = (baseline.paint(prompts(prompter)) for _ in range(2))
    assert not torch.equal(some, others)


def test_it_runs_in_bf16(prompter):
    model = small_model().to(torch.bfloat16)
    baseline = over(model, prompter, SAMPLED)
    assert baseline.janus.dtype == torch.bfloat16
    assert baseline.paint(prompts(prompter)).shape == (3, 16)
