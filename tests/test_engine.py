"""The engine on one rank: fixed slots, counts, memory, and DeepSpeed around the layers or not."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_models import small_config, small_model, small_prompter
from test_generate import SAMPLED, requests

from adgen.config import validate_settings
from adgen.errors import ModelError, RunError, SettingsError
from adgen.generation import batch
from adgen.generation.deepspeed_layers import wrap_decoder
from adgen.generation.engine import Engine, EngineSettings
from adgen.generation.generate import Request, generate
from adgen.generation.layers import StepLayers
from adgen.generation.slots import Slots
from adgen.model.config import LoRAConfig


@pytest.fixture(autouse=True)
def one_thread():
    """Other tests' threads on the same cores would make these small models wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def small_engine(**settings) -> Engine:
    return Engine(small_model(), small_prompter(), EngineSettings(**settings), SAMPLED)


def assert_same(results, expected):
    for one, other in zip(results, expected, strict=True):
        assert (one.title, one.title_closed) == (other.title, other.title_closed)
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.picture, other.picture)


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


def test_importing_the_engine_loads_no_deepspeed_and_deepspeed_leaves_stdout_to_the_job():
    code = """
import sys, torch, adgen.generation.engine as engine
print([m for m in ("deepspeed", "ray", "boto3") if m in sys.modules])
from small_models import small_model, small_prompter
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
