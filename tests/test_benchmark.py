"""jobs/benchmark.py engine, from its pieces to the JSON line."""

import pytest
import torch

from adgen.errors import SettingsError
from adgen.generation.benchmark.requests import bench_prompter, bench_requests
from adgen.generation.benchmark.sizes import SIZES, random_model, sharing_copy, size
from adgen.generation.generate import generate
from adgen.generation.sampling import SamplingSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("prompt_tokens", [300, 401, 1200])
def test_prompts_have_exactly_the_length_that_was_asked_for(name, prompt_tokens):
    config = size(name)
    prompter = bench_prompter(config)
    requests = bench_requests(config, prompter, 3, prompt_tokens)
    assert {len(prompter.picture_prompt(r.facts, "")) for r in requests} == {prompt_tokens}
    assert len(requests[0].history_titles) == len(requests[0].history_codes) <= config.history_items
    assert not torch.equal(requests[0].condition, requests[1].condition), "a shared product would be computed once"
    if prompt_tokens == 1200:
        assert len(requests[0].history_titles) == config.history_items


def test_a_prompt_shorter_than_the_template_is_refused():
    config = size("tiny")
    with pytest.raises(SettingsError, match="the template alone takes"):
        bench_requests(config, bench_prompter(config), 1, 10)


def test_an_unknown_size_is_refused():
    with pytest.raises(SettingsError, match="size 'huge' is unknown; known are bench-30m, tiny"):
        size("huge")


def test_random_weights_give_different_pictures_and_finite_ones():
    config = size("tiny", num_layers=2)
    model, prompter = random_model(config, CPU, torch.float32), bench_prompter(config)
    assert len(model.decoder.layers) == 2
    requests = bench_requests(config, prompter, 2, 200)
    some, others = generate(model, prompter, requests, SamplingSettings(max_title_tokens=2))
    assert not torch.equal(some.codes, others.codes)
    assert len(set(some.codes.tolist())) > 8
    assert some.picture.float().std() > 0
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_sharing_copy_holds_the_same_tensors_in_other_modules():
    model = random_model(size("tiny"), CPU, torch.bfloat16)
    copy = sharing_copy(model)
    pairs = zip(model.named_parameters(), copy.named_parameters(), strict=True)
    assert all(a == b and p.data_ptr() == q.data_ptr() and q.dtype == torch.bfloat16 for (a, p), (b, q) in pairs)
    assert copy.decoder.layers[0] is not model.decoder.layers[0]
