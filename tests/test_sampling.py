"""Noise that belongs to a row, and draws that follow the logits."""

import pickle

import pytest
import torch
from pydantic import ValidationError

from adgen.errors import AdgenError
from adgen.generation.model_directory import ModelDirectory
from adgen.generation.sampling import guided, gumbel_noise, philox, sample
from adgen.generation.sampling_settings import SAMPLING_FILE, SamplingChoice, SamplingSettings
from adgen.on_ray.refresh.settings import RefreshSettings


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123 for philox4x32-10
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    assert philox(torch.tensor(counter), torch.tensor(key)).tolist() == expected


def test_noise_is_a_function_of_seed_and_step_alone():
    together = gumbel_noise(torch.tensor([5, 2**63 - 1, 7]), 3, 1, 10)
    assert torch.equal(together[1:2], gumbel_noise(torch.tensor([2**63 - 1]), 3, 1, 10))
    assert torch.equal(together, gumbel_noise(torch.tensor([5, 2**63 - 1, 7]), torch.tensor([3, 3, 3]), 1, 10))
    assert torch.equal(together[:, :6], gumbel_noise(torch.tensor([5, 2**63 - 1, 7]), 3, 1, 6))
    others = [gumbel_noise(torch.tensor([5]), 4, 1, 10), gumbel_noise(torch.tensor([5]), 3, 0, 10)]
    assert not any(torch.equal(together[:1], other) for other in others)


def test_noise_is_gumbel_and_finite():
    noise = gumbel_noise(torch.arange(64), 0, 1, 16384)
    assert torch.isfinite(noise).all()
    assert abs(noise.mean().item() - 0.5772) < 0.005
    assert abs(noise.std().item() - 1.2825) < 0.005


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    draws = sample(logits.expand(20000, 4), 1.0, gumbel_noise(torch.arange(20000), 0, 1, 4))
    frequency = draws.bincount(minlength=4) / 20000
    torch.testing.assert_close(frequency, logits.softmax(0), atol=0.012, rtol=0)


def test_temperature_zero_is_greedy_whatever_the_noise():
    logits = torch.randn(5, 9)
    assert torch.equal(sample(logits, 0, None), logits.argmax(-1))


def test_top_k_draws_from_the_k_most_likely():
    logits = torch.arange(10.0).expand(500, 10)
    draws = sample(logits, 5.0, gumbel_noise(torch.arange(500), 0, 0, 10), top_k=3)
    assert set(draws.tolist()) == {7, 8, 9}


def test_guidance_weight_one_is_conditional_and_zero_unconditional():
    c, u = torch.randn(2, 4), torch.randn(2, 4)
    torch.testing.assert_close(guided(c, u, 1.0), c)
    torch.testing.assert_close(guided(c, u, 0.0), u)


# -- what a model says of its own sampling -----------------------------------------------------------------------------


def test_a_job_says_more_than_its_model_and_the_model_more_than_the_paper(tmp_path):
    assert SamplingChoice().of(ModelDirectory(tmp_path).sampling) == SamplingSettings()
    (tmp_path / SAMPLING_FILE).write_text('{"title_temperature": 0.5, "guidance": 3}')
    model = ModelDirectory(tmp_path)
    found = SamplingChoice(title_temperature=0.0).of(model.sampling)
    assert (found.title_temperature, found.guidance, found.picture_temperature) == (0.0, 3.0, 1.0)
    assert SamplingChoice().of(model.sampling).title_temperature == 0.5
    assert RefreshSettings().creative_digests(None)[0] == SamplingSettings().digest()  # what is said twice makes nothing anew
    assert RefreshSettings().creative_digests(model)[0] == SamplingChoice().of(model.sampling).digest()
    assert pickle.loads(pickle.dumps(SamplingChoice(guidance=2))).guidance == 2  # Ray's workers get it so


@pytest.mark.parametrize("text", ["{", '{"guidance": -1}', '{"heat": 1}'])
def test_a_models_own_sampling_that_is_wrong_is_named(tmp_path, text):
    (tmp_path / SAMPLING_FILE).write_text(text)
    with pytest.raises(AdgenError, match=SAMPLING_FILE):
        SamplingChoice().of(ModelDirectory(tmp_path).sampling)


def test_a_job_has_the_bounds_of_every_sampling_setting():
    for name, value in {"guidance": -1, "picture_top_p": 0, "max_title_tokens": 0, "title_top_k": -1}.items():
        with pytest.raises(ValidationError, match=name):
            SamplingChoice(**{name: value})
    assert SamplingChoice.model_fields.keys() == SamplingSettings.model_fields.keys()
