"""The engine on one rank: fixed slots, counts, memory, and DeepSpeed around the layers or not."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.engine import GREEDY, SAMPLED, assert_same, chain, requests, small_engine
from support.models import bpe_tokenizer, script_titles, small_config, small_model, small_prompter

from adgen.config import validate_settings
from adgen.errors import ModelError, RunError, SettingsError
from adgen.generation import batch
from adgen.generation import engine as engine_module
from adgen.generation.deepspeed_layers import wrap_decoder
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request, generate
from adgen.generation.layers import StepLayers
from adgen.generation.sampling_settings import SamplingSettings
from adgen.generation.slots import Slots
from adgen.model.config import LoRAConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Other tests' threads on the same cores would make these small models wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("deepspeed", [True, False])
def test_results_are_those_of_the_simple_loop_in_order(deepspeed):
    expected = generate(small_model(), small_prompter(), requests(), SAMPLED)
    engine = small_engine(num_slots=2, deepspeed=deepspeed)
    assert engine.deepspeed is deepspeed
    assert_same(engine.generate(requests()), expected)


def test_calls_and_creatives_are_counted_without_dummy_rows():
    engine = small_engine(num_slots=2)
    results = engine.generate(requests())
    assert (engine.num_calls, engine.num_generated) == (3, 5)
    assert [r.num_slots for r in results] == [2] * 5
    assert engine.generate([]) == []
    engine.generate(requests()[:1])
    assert (engine.num_calls, engine.num_generated) == (4, 6)


def test_a_short_batch_runs_in_full_slots_and_gives_the_same_bytes(monkeypatch):
    rows = []
    step = StepLayers.step
    monkeypatch.setattr(StepLayers, "step", lambda layers, x, *rest: rows.append(len(x)) or step(layers, x, *rest))
    engine = small_engine(num_slots=4)
    together = engine.generate(requests())
    alone = [engine.generate([request])[0] for request in requests()]
    assert set(rows) == {4, 8}, "titles and pictures have one shape each"
    assert_same(alone, together)


def test_the_same_request_in_the_same_slots_gives_the_same_bytes_from_a_new_engine():
    assert_same(small_engine(num_slots=3).generate(requests()), small_engine(num_slots=3).generate(requests()))


def test_deepspeed_changes_nothing_on_one_rank():
    plain, wrapped = small_model(), small_model()
    wrap_decoder(wrapped, torch.float32)
    x = torch.randn(3, 9, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(plain.decoder(x), wrapped.decoder(x))
    assert [n for n, _ in plain.named_parameters()] == [n for n, _ in wrapped.named_parameters()]


@pytest.mark.parametrize("deepspeed", [True, False])
def test_every_weight_is_in_the_engines_dtype(deepspeed):
    model = small_model()
    engine = Engine(model, small_prompter(), EngineSettings(dtype="bfloat16", deepspeed=deepspeed), SAMPLED)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert len(engine.generate(requests())) == 5


def test_without_deepspeed_installed_the_engine_runs_plainly_and_says_so(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "deepspeed", None)  # what an import of a missing package looks like
    engine = small_engine(num_slots=2)
    assert engine.deepspeed is False
    assert "DeepSpeed is not installed" in caplog.text
    assert_same(engine.generate(requests()), generate(small_model(), small_prompter(), requests(), SAMPLED))


@pytest.mark.slow
def test_importing_the_engine_loads_no_deepspeed_and_deepspeed_leaves_stdout_to_the_job():
    code = """
import sys, torch, adgen.generation.engine as engine
print([m for m in ("deepspeed", "ray", "boto3") if m in sys.modules])
from support.models import small_model, small_prompter
print(engine.Engine(small_model(), small_prompter()).deepspeed)
"""
    directory = Path(__file__).parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=directory).stdout
    assert out.split("\n") == ["[]", "True", ""]


def out_of_memory_above(limit, monkeypatch):
    def slots_that_fit(config, layers, num_slots, *sizes):
        if num_slots > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return Slots(config, layers, num_slots, *sizes)

    monkeypatch.setattr(batch, "Slots", slots_that_fit)


def test_out_of_memory_halves_the_slots_and_goes_on_recorded(monkeypatch, caplog):
    out_of_memory_above(2, monkeypatch)
    engine = small_engine(num_slots=8)
    results = engine.generate(requests())
    assert_same(results, generate(small_model(), small_prompter(), requests(), SAMPLED))
    assert (engine.num_slots, engine.num_halvings, engine.settings.num_slots) == (2, 2, 8)
    assert [r.num_slots for r in results] == [2] * 5
    assert (engine.num_calls, engine.num_generated) == (3, 5)
    assert "going on with 2 slots" in caplog.text


def test_out_of_memory_with_one_slot_says_what_to_do(monkeypatch):
    out_of_memory_above(0, monkeypatch)
    with pytest.raises(RunError, match=r"num_slots 1 on 1 rank.*tensor_parallel.*dtype.*2\.00 GiB"):
        small_engine(num_slots=2).generate(requests())


def test_a_request_that_the_model_cannot_take_leaves_the_engine_usable():
    engine = small_engine(num_slots=2)
    with pytest.raises(ModelError, match="9 codes, this model needs 4"):
        engine.generate([Request("mug", 1, history_codes=torch.zeros(1, 9, dtype=torch.int64))])
    assert len(engine.generate(requests())) == 5


def test_tensor_parallel_needs_its_ranks():
    with pytest.raises(SettingsError, match=r"tensor_parallel is 2.*1 rank.*start_rank"):
        small_engine(tensor_parallel=2)


def test_heads_that_ranks_cannot_share_are_refused():
    with pytest.raises(SettingsError, match=r"tensor_parallel 3 does not divide the model's 2 key/value heads"):
        wrap_decoder(small_model(), torch.float32, tensor_parallel=3)


def test_low_rank_updates_are_never_dropped_silently():
    with pytest.raises(ModelError, match="merge them first"):
        wrap_decoder(small_model(lora=LoRAConfig(rank=2)), torch.float32, tensor_parallel=2)


@pytest.mark.parametrize("field", ["num_slots", "tensor_parallel", "dtype", "slots"])
def test_bad_settings_name_the_field(field):
    with pytest.raises(SettingsError, match=field):
        validate_settings(EngineSettings, {field: 0}, "refresh.toml")


def test_the_small_model_shares_key_value_heads():
    assert small_config().decoder.num_key_value_heads < small_config().decoder.num_heads


# -- titles that close -----------------------------------------------------------------------------------------------


def scripted(merge: bool):
    """A model whose titles close as "mug!", or end in the middle and are empty, as the seed decides: at different steps."""
    prompter = small_prompter(bpe_tokenizer(merge_across_tags=merge))
    model = script_titles(small_model(), chain(prompter, ["m", "u", "g", "!", "</", "prompt", ">"]))
    ids = prompter._full.get_vocab()
    embeddings = model.decoder.embed_tokens.weight
    for token, following in (("m", "!"), ("u", prompter.template.tokens.end_of_sentence)):
        model.decoder.lm_head.weight[ids[following]] += embeddings[ids[token]]
    return model, prompter


@pytest.mark.parametrize("merge", [False, True], ids=["plain", "merging"])
@pytest.mark.parametrize("settings", [{}, {"deepspeed": False, "num_slots": 2}, {"num_slots": 7}], ids=str)
def test_titles_that_close_at_different_steps_are_those_of_the_simple_loop(merge, settings):
    model, prompter = scripted(merge)
    rows = [replace(request, seed=seed) for seed, request in enumerate(requests() * 2)]
    expected = generate(model, prompter, rows, SAMPLED)
    assert {result.title for result in expected} == {"mug!", ""}, "the titles were meant to differ"
    engine = Engine(model, prompter, EngineSettings(**{"num_slots": 5} | settings), SAMPLED)
    assert_same(engine.generate(rows), expected)
    steps = engine.timings.picture_steps
    alone = engine.titles(rows)
    assert [(each.first, each.title) for each in alone] == [(result.title, result.title) for result in expected]
    assert engine.timings.picture_steps == steps, "titles alone paint nothing"


# -- at the edges ----------------------------------------------------------------------------------------------------


def test_unmerged_low_rank_updates_are_merged_and_not_lost():
    lora = LoRAConfig(rank=2)

    def updated():
        model = small_model(lora=lora)
        for name, parameter in model.named_parameters():
            if "lora" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
        return model

    expected = generate(updated(), small_prompter(), requests(), SAMPLED)
    engine = Engine(updated(), small_prompter(), EngineSettings(num_slots=2), SAMPLED)
    assert engine.model_config.lora is None
    assert [r.codes.tolist() for r in engine.generate(requests())] == [r.codes.tolist() for r in expected]


def test_a_prompt_that_fills_the_models_positions_is_painted_to_its_end():
    sampling = SAMPLED.model_copy(update={"max_title_tokens": 1, "picture_temperature": 0.0})
    request, prompter = requests()[0], small_prompter()
    needed = len(prompter.picture_prompt(request.facts, "")) + small_config().image.tokens_per_picture
    config = small_config(decoder=small_config().decoder.model_copy(update={"max_positions": needed}))
    model = small_model(decoder=config.decoder)
    [expected] = generate(model, small_prompter(config=config), [request], sampling)
    engine = Engine(model, small_prompter(config=config), EngineSettings(num_slots=1), sampling)
    assert_same(engine.generate([request]), [expected])


def test_a_request_that_cannot_be_taken_is_refused_before_the_first_batch():
    engine = small_engine(num_slots=2)
    with pytest.raises(ModelError, match="9 codes, this model needs 4"):
        engine.generate([*requests(), Request("mug", 1, history_codes=torch.zeros(1, 9, dtype=torch.int64))])
    assert engine.num_calls == 0


def test_a_cpu_that_runs_out_of_memory_halves_too():
    assert engine_module._out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))
    interrupted = RuntimeError("capture failed")
    interrupted.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    assert engine_module._out_of_memory(interrupted)
    assert not engine_module._out_of_memory(RuntimeError("something else"))


def test_more_clicked_products_than_the_model_takes_are_refused():
    too_many = replace(requests()[0], history_titles=("a",) * 5, history_codes=torch.zeros(5, 4, dtype=torch.int64))
    with pytest.raises(ModelError, match="shows 5 clicked products, this model takes 4"):
        small_engine().generate([too_many])
    with pytest.raises(ModelError, match="shows 5 clicked products, this model takes 4"):
        generate(small_model(), small_prompter(), [too_many], SAMPLED)


def test_a_title_that_its_check_refuses_is_drawn_again_and_its_neighbours_stay_as_they_are():
    """Also where the tries end: the first title, or the template, which is what the picture is painted for."""
    alone = Engine(small_model(), small_prompter(), EngineSettings(num_slots=4), SAMPLED)
    plain = alone.generate(requests()[:4])
    never = replace(requests()[0], check_title=lambda text: "never right")
    fallen = replace(requests()[1], check_title=lambda text: "never right", template_title="a mug!")
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=4), SAMPLED)
    made = engine.generate([never, fallen, *requests()[2:4]])
    assert_same(made[2:], plain[2:])
    assert [(r.title_attempt, r.is_template) for r in made] == [(2, False), (2, True), (0, False), (0, False)]
    assert made[0].title == plain[0].title
    assert made[1].title == "a mug!"
    assert not torch.equal(made[1].codes, plain[1].codes), "painted for the title that stays"
    assert_same(engine.generate([never, fallen, *requests()[2:4]]), made)
    written = engine.titles([never, fallen, *requests()[2:4]])
    assert [(each.title, each.is_template) for each in written] == [(each.title, each.is_template) for each in made]
    assert [each.first for each in written] == [each.title for each in plain]
    assert engine.timings.title_steps > alone.timings.title_steps * 2
    assert engine.timings.picture_steps == 2 * alone.timings.picture_steps, "pictures are painted once"


def test_an_attempt_that_passes_ends_the_tries_and_draws_with_a_seed_of_its_own():
    greedy = replace_sampling(GREEDY, retry_temperature=3.0)
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), greedy)
    [first] = engine.generate(requests()[:1])
    drawn = []

    def check(text: str) -> str | None:
        drawn.append(text)
        return "first" if len(drawn) <= 2 else None  # the row and the copy that fills the batch

    [again] = engine.generate([replace(requests()[0], check_title=check)])
    assert (first.title_attempt, again.title_attempt, again.is_template) == (0, 1, False)
    once = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), replace_sampling(greedy, attempts=1))
    [kept] = once.generate([replace(requests()[0], check_title=lambda text: "never right")])
    assert_same([kept], [first])


def test_a_picture_that_its_check_refuses_is_painted_again_alone():
    engine = small_engine(num_slots=2)
    plain = engine.generate(requests()[:2])
    steps = engine.timings.picture_steps
    blank = plain[0].picture
    check = lambda picture: "blank" if torch.equal(picture, blank) else None  # noqa: E731
    made = engine.generate([replace(request, check_picture=check) for request in requests()[:2]])
    assert [result.picture_attempt for result in made] == [1, 0]
    assert_same(made[1:], plain[1:])
    assert made[0].title == plain[0].title
    assert not torch.equal(made[0].codes, plain[0].codes)
    assert engine.timings.picture_steps == 3 * steps


def test_a_title_that_never_closes_costs_less_when_it_is_drawn_again():
    endless = SAMPLED.model_copy(update={"max_title_tokens": 30, "retry_title_tokens": 5})
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=1), endless)
    [made] = engine.generate([replace(requests()[0], check_title=lambda text: "never right")])
    assert (made.title_closed, made.title_attempt) == (False, 2)
    assert engine.timings.title_steps == 30 + 5 + 5


@pytest.mark.parametrize("attempts", [0, 10])
def test_attempts_out_of_range_are_refused_by_name(attempts):
    with pytest.raises(SettingsError, match=rf"attempts: .* \(value {attempts}\)"):
        validate_settings(SamplingSettings, {"attempts": attempts}, "a file")


def test_the_attempts_of_today_leave_every_digest_as_it_was():
    assert SamplingSettings().digest() == SamplingSettings(attempts=3, retry_temperature=0.7).digest()
    assert SamplingSettings().digest() != SamplingSettings(attempts=2).digest()


def replace_sampling(sampling: SamplingSettings, **changes) -> SamplingSettings:
    return sampling.model_copy(update=changes)
