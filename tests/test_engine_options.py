"""What may be traded for speed, each off by default: it runs, it changes what it says it changes, and it is recorded."""

import pytest
import torch
from support.engine import SAMPLED, assert_same, requests, small_engine
from support.models import small_config, small_model, small_prompter

from adgen.errors import SettingsError
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request, embed_history, generate, kept_history
from adgen.generation.linears import narrowed, preparation
from adgen.generation.reading import reading
from adgen.generation.sampling import gumbel_noise, uniform_noise
from adgen.generation.speculating import Drafts, verified

TRADES = (
    {"cache_dtype": "float8_e4m3fn"},
    {"weights": "int8"},
    {"weights": "float8_e4m3fn"},
    {"drop_masked_history": True},
    {"speculation": 4},
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("option", TRADES, ids=lambda option: "-".join(map(str, next(iter(option.items())))))
def test_an_option_runs_and_is_what_the_record_names(option):
    engine = small_engine(num_slots=3, **option)
    assert engine.settings.lossy_options() == option
    results = engine.generate(requests())
    plain = generate(small_model(), small_prompter(), requests(), SAMPLED)
    assert any(not torch.equal(a.codes, b.codes) for a, b in zip(results, plain, strict=True)), "it changed nothing"
    assert_same(engine.generate(requests()), results)


def test_by_default_nothing_is_traded():
    assert EngineSettings().lossy_options() == {}
    assert EngineSettings(num_slots=7, dtype="bfloat16", deepspeed=False).lossy_options() == {}


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


# -- draft and verification ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 3, 7])
def test_a_greedy_picture_is_the_same_token_for_token(window):
    greedy = SAMPLED.model_copy(update={"picture_temperature": 0.0})
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=3, speculation=window), greedy)
    assert_same(engine.generate(requests()), generate(small_model(), small_prompter(), requests(), greedy))
    assert engine.timings.picture_steps <= engine.num_calls * small_config().image.tokens_per_picture


def test_a_model_that_repeats_itself_paints_several_tokens_a_step():
    model = small_model()
    model.image_head.vision_head.weight.zero_()
    model.image_head.vision_head.bias.copy_(torch.linspace(0, 1, 64))
    sharp = SAMPLED.model_copy(update={"picture_temperature": 0.5})
    engine = Engine(model, small_prompter(), EngineSettings(num_slots=2, speculation=5), sharp)
    engine.generate(requests()[:2])
    assert engine.timings.picture_steps == 4  # 16 tokens: one from the prompt, then five a step, all accepted


def test_speculation_does_not_feel_its_neighbours():
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=3, speculation=4), SAMPLED)
    together = engine.generate(requests())
    alone = [engine.generate([request])[0] for request in requests()]
    assert_same(alone, together)


def test_verification_draws_from_p_whatever_was_proposed():
    """Frequencies of the first two codes against p's, chi-square at the 0.1% level."""
    count, generator = 60_000, torch.Generator().manual_seed(5)
    p = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.1, 0.6, 0.1, 0.2], [0.25, 0.25, 0.25, 0.25]])
    q = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.2, 0.2]])
    seeds = torch.randint(0, 2**62, (count,), generator=generator)
    proposed = torch.stack([(q[i].log() + gumbel_noise(seeds, i, 9, 4)).argmax(-1) for i in range(2)], dim=1)
    uniform = torch.cat([uniform_noise(seeds, i, 10, 1) for i in range(2)], dim=1)
    drafts = Drafts(proposed, q.expand(count, -1, -1))
    codes, num_kept = verified(p.expand(count, -1, -1), drafts, uniform, gumbel_noise(seeds, 0, 11, 4))
    assert set(num_kept.tolist()) == {1, 2, 3}
    for position in range(3):
        drawn = codes[num_kept > position, position]
        expected = p[position] * len(drawn)
        chi_square = ((torch.bincount(drawn, minlength=4) - expected) ** 2 / expected).sum()
        assert chi_square < 16.3  # 3 degrees of freedom


def test_speculation_draws_pictures_from_the_plain_distribution():
    """The fourth code's frequencies over many seeds, with and without: two-sample chi-square at the 0.1% level."""

    def frequencies(window: int) -> torch.Tensor:
        model = small_model()
        model.image_head.vision_head.weight.mul_(0.3)
        model.image_head.vision_head.bias[8:] -= 30.0  # eight codes are enough to compare
        sampling = SAMPLED.model_copy(update={"guidance": 1.5, "max_title_tokens": 1})
        engine = Engine(model, small_prompter(), EngineSettings(num_slots=64, speculation=window), sampling)
        rows = [Request("mug", seed + 10_000 * window) for seed in range(1024)]
        codes = torch.stack([result.codes for result in engine.generate(rows)])
        return torch.bincount(codes[:, 3], minlength=8)

    one, other = frequencies(1).double(), frequencies(3).double()
    assert one[8:].sum() == other[8:].sum() == 0
    seen = (one + other) > 0
    chi_square = ((one - other) ** 2 / (one + other))[seen].sum()
    assert chi_square < 24.3  # 7 degrees of freedom
