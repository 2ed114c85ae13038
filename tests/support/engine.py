"""Requests, sampling and engines of the smallest size, and whether two made the same."""

import itertools

import torch

from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request
from adgen.generation.sampling_settings import SamplingSettings
from support.models import small_model, small_prompter

GREEDY = SamplingSettings(title_temperature=0, picture_temperature=0, max_title_tokens=12)
SAMPLED = SamplingSettings(max_title_tokens=12)


def requests() -> list[Request]:
    """Short and long, with and without history and product; the texts spell no special token."""
    generator = torch.Generator().manual_seed(7)
    codes = lambda n: torch.randint(0, 64, (n, 4), generator=generator)  # noqa: E731
    picture = lambda: torch.rand(3, 64, 64, generator=generator) * 2 - 1  # noqa: E731
    return [
        Request("fresh mug", 11, ("steel", "warm"), ("red lamp", "a mug"), codes(2), picture()),
        Request("a lamp with a very long title that goes on and on", 12, (), ("x",), codes(3), picture()),
        Request("红色茶杯", 13, ("新款",), (), codes(0), picture()),
        Request("mug", 2**63 - 1, ("a",), ("lamp", "", "mug", "warm 500ml"), codes(4), None),
        Request("", 0, (), (), torch.zeros(0, 0, dtype=torch.int64), None),
    ]


def chain(prompter, written: list[str]) -> dict[int, int]:
    """Token to token from the end of the open tag through `written`, each of which is one token."""
    vocabulary = prompter._full.get_vocab()
    tokens = [prompter.title_prompt(requests()[0].facts).ids[-1], *(vocabulary[text] for text in written)]
    assert len(set(tokens[:-1])) == len(tokens) - 1, "a chain cannot leave a token twice"
    return dict(itertools.pairwise(tokens))


def small_engine(**settings) -> Engine:
    return Engine(small_model(), small_prompter(), EngineSettings(**settings), SAMPLED)


def assert_same(results, expected):
    for one, other in zip(results, expected, strict=True):
        assert (one.title, one.title_closed) == (other.title, other.title_closed)
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.picture, other.picture)
