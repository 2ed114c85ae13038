"""What the options' benchmark reports."""

import pytest
import torch

from adgen.generation.benchmark import options
from adgen.generation.benchmark.options import OPTIONS, forced_distributions, measure_options
from adgen.generation.benchmark.sizes import size


@pytest.fixture(scope="module")
def costs():
    torch.set_num_threads(1)
    config = size("tiny", 2)
    small = config.model_copy(update={"name": "two layers"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(options, "size", lambda name: small)
        return {cost.name: cost for cost in measure_options("tiny", 2, 260, 1, torch.device("cpu"), lambda text: None)}


def test_every_option_is_measured(costs):
    assert costs.keys() == OPTIONS.keys()
    assert all(cost.speed_up > 0 and cost.step_speed_up > 0 for cost in costs.values())


def test_every_lossy_option_moves_the_distribution(costs):
    assert all(0 < cost.moved < 1 for cost in costs.values())
    assert costs["top-p 0.95"].moved == pytest.approx(0.05, abs=0.02), "what a nucleus leaves out is what it moves"
    assert costs["top-p 0.95"].argmax_kept == 1


def test_the_plain_engine_moves_nothing():
    from support.engine import requests, small_engine

    engine, again = small_engine(num_slots=2), small_engine(num_slots=2)
    made = engine.generate(requests()[:2])
    codes = torch.stack([result.codes for result in made])
    one, other = (forced_distributions(e, requests()[:2], codes) for e in (engine, again))
    assert torch.equal(one, other)
    torch.testing.assert_close(one.sum(-1), torch.ones(one.shape[:2]))
    assert [r.codes.tolist() for r in engine.generate(requests()[:2])] == codes.tolist(), "it draws again afterwards"
