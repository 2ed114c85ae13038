"""What may be traded for speed, each off by default: it runs, it changes what it says it changes, and it is recorded."""

import pytest
import torch
from support.engine import SAMPLED, assert_same, requests, small_engine
from support.models import small_model, small_prompter

from adgen.config import validate_settings
from adgen.errors import SettingsError
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import generate
from adgen.generation.linears import narrowed, preparation

LOSSY = (
    {"cache_dtype": "float8_e4m3fn"},
    {"weights": "int8"},
    {"weights": "float8_e4m3fn"},
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("option", LOSSY, ids=lambda option: "-".join(map(str, next(iter(option.items())))))
def test_an_option_runs_and_is_what_the_record_names(option):
    engine = small_engine(num_slots=3, **option)
    assert engine.settings.lossy_options() == option
    results = engine.generate(requests())
    plain = generate(small_model(), small_prompter(), requests(), SAMPLED)
    assert any(not torch.equal(a.codes, b.codes) for a, b in zip(results, plain, strict=True)), "it changed nothing"
    assert_same(engine.generate(requests()), results)


def test_by_default_nothing_is_lossy():
    assert EngineSettings().lossy_options() == {}
    assert EngineSettings(num_slots=7, dtype="bfloat16", deepspeed=False).lossy_options() == {}


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
    assert narrowed(module, weights="int8", config=None) is module
    assert type(module.weight.data) is torch.Tensor


@pytest.mark.parametrize(("name", "default", "other"), [("speculation", 1, 4), ("drop_masked_history", False, True)])
def test_a_removed_option_is_ignored_at_its_default_and_refused_otherwise(name, default, other, caplog):
    assert validate_settings(EngineSettings, {name: default}, "run.json") == EngineSettings()
    assert f"run.json: {name}: removed in version 0.2.0" in caplog.text
    with pytest.raises(SettingsError, match=f"run.json: {name}: removed in version 0.2.0 .value {other}"):
        validate_settings(EngineSettings, {name: other}, "run.json")
