"""What may be traded for speed, each off by default: it runs, it changes what it says it changes, and it is recorded."""

import pytest
import torch
from small_models import small_config, small_model, small_prompter
from test_engine import assert_same, small_engine
from test_generate import SAMPLED, requests

from adgen.errors import SettingsError
from adgen.generation.engine import Engine, EngineSettings
from adgen.generation.generate import embed_history, generate, kept_history
from adgen.generation.linears import narrowed, preparation
from adgen.generation.reading import reading

LOSSY = {"cache_dtype": "float8_e4m3fn"}, {"weights": "int8"}, {"weights": "float8_e4m3fn"}, {"drop_masked_history": True}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("option", LOSSY, ids=lambda option: "-".join(map(str, next(iter(option.items())))))
def test_an_option_runs_and_is_what_the_record_names(option):
    engine = small_engine(num_slots=3, **option)
    assert engine.settings.lossy() == option
    results = engine.generate(requests())
    plain = generate(small_model(), small_prompter(), requests(), SAMPLED)
    assert any(not torch.equal(a.codes, b.codes) for a, b in zip(results, plain, strict=True)), "it changed nothing"
    assert_same(engine.generate(requests()), results)


def test_by_default_nothing_is_traded():
    assert EngineSettings().lossy() == {}
    assert EngineSettings(num_slots=7, dtype="bfloat16", deepspeed=False).lossy() == {}


def test_dropped_history_is_what_the_masks_zero_and_the_rest_keeps_its_positions():
    model, prompter, request = small_model(), small_prompter(), requests()[0]
    history, kept = embed_history(model, prompter, request), kept_history(model, prompter, request)
    rate = small_config().preference.keep_rate
    pictures, titles = 2 * 4, 2 * 6
    assert len(kept) == len(history) == pictures + titles
    assert [int(kept[:pictures].sum()), int(kept[pictures:].sum())] == [int(rate * pictures), int(rate * titles)]
    prompt = prompter.title_prompt(request.facts)
    read = reading(model, prompt, history, kept)
    assert len(read) == len(prompt) - int((~kept).sum())
    whole = reading(model, prompt, history)
    assert torch.equal(read.embeds, whole.embeds[read.positions])
    assert {prompt.slots[i] for i in range(len(prompt)) if i not in read.positions} == set((~kept).nonzero().flatten().tolist())


def test_dropping_with_noise_drops_what_the_noisy_masks_zeroed():
    model, prompter, request = small_model(), small_prompter(), requests()[3]
    gumbel = [kept_history(model, prompter, request, noise=True) for _ in range(2)]
    assert torch.equal(*gumbel)
    # In the masks' own output a dropped token is one constant vector: the two must name the same tokens.
    pictures = model.image_embedding(request.history_codes[None])
    generator = torch.Generator().manual_seed(request.seed)
    mask = model.preference.visual_mask_generator
    noise = -torch.empty(1, 4, 4).exponential_(generator=generator).log()
    rows = mask(pictures, noise).flatten(1, 2)[0]
    constant = rows[~gumbel[0][: len(rows)]]
    assert torch.allclose(constant, constant[:1].expand_as(constant), atol=1e-6)


def test_narrow_weights_stay_near_the_plain_ones():
    plain = torch.nn.Linear(256, 96, bias=False).requires_grad_(False)
    x = torch.randn(8, 256, generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    for weights, bound in (("int8", 0.01), ("float8_e4m3fn", 0.05)):
        narrow = torch.nn.Linear(256, 96, bias=False).requires_grad_(False)
        narrow.load_state_dict(plain.state_dict())
        narrow = preparation(weights, 8)(narrow)
        error = ((narrow(x) - expected).norm() / expected.norm()).item()
        assert 0 < error < bound


def test_narrow_weights_without_torchao_say_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(SettingsError, match=r"engine\.weights int8 needs the package torchao"):
        Engine(small_model(), small_prompter(), EngineSettings(weights="int8"), SAMPLED)


def test_what_is_not_a_plain_linear_is_not_narrowed():
    class Sum(torch.nn.Linear):
        pass

    module = Sum(8, 8)
    assert narrowed(module, "int8", None) is module
    assert type(module.weight.data) is torch.Tensor
