"""Two ranks in processes of their own, meeting over gloo, against one unsharded model: same tokens, and a group that
fails together."""

import json
import os
import signal
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.engine import SAMPLED, requests
from support.models import save_small_model, small_model, small_prompter
from support.processes import forks_with_deepspeed

from adgen.errors import ModelError, RunError
from adgen.generation import deepspeed_layers
from adgen.generation.engine import Engine, serve_rank, start_rank
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.generate import Request, generate
from adgen.generation.model_directory import ModelDirectory

pytestmark = pytest.mark.slow

SETTINGS = EngineSettings(num_slots=2, tensor_parallel=2, timeout_seconds=20)
TOO_MANY_CODES = Request("mug", 1, history_codes=torch.zeros(1, 9, dtype=torch.int64))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_small_model(directory)
    return directory


class Ranks:
    """Two ranks; rank 1 serves, rank 0 does `lead(engine, directory)`. Each writes what became of it."""

    def __init__(self, lead, model_dir: Path, directory: Path, settings=(SETTINGS, SETTINGS)):
        self.directory = directory
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        context = forks_with_deepspeed()
        self.processes = [
            context.Process(target=run_rank, args=(rank, port, model_dir, settings[rank], lead, directory), daemon=True)
            for rank in range(2)
        ]
        for process in self.processes:
            process.start()

    def wait(self) -> list[dict]:
        for process in self.processes:
            process.join(60)
        paths = [self.directory / f"rank{rank}.json" for rank in range(2)]
        return [json.loads(path.read_text()) if path.exists() else {} for path in paths]

    def wait_for(self, path: Path) -> None:
        end = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < end, "the leader never came to generate"
            assert all(process.is_alive() for process in self.processes), self.wait()
            time.sleep(0.02)


def run_rank(rank, port, model_dir, settings, lead, directory):
    torch.set_num_threads(1)
    outcome = {}
    deepspeed_layers.wrap_decoder = note_shapes(deepspeed_layers.wrap_decoder)
    try:
        engine = start_rank(rank, 2, "127.0.0.1", port, ModelDirectory(model_dir), settings, SAMPLED)
        outcome = follow(engine) if rank else lead(engine, directory)
    except RunError as error:
        outcome = {"error": f"{type(error).__name__}: {error}", "at": time.time()}
    (directory / f"rank{rank}.json").write_text(json.dumps(outcome))


def layout(engine: Engine) -> dict:
    """What this rank holds: the shape of each weight after DeepSpeed, and of a layer's cache."""
    cache = engine._runner.slots.conditional.cache
    return {"shapes": SHAPES, "cache": list(cache.keys[0].shape)}


SHAPES: dict[str, list[int]] = {}


def note_shapes(wrap):
    """`wrap_decoder`, which also notes what it made of the weights: the engine joins them afterwards."""

    def noting(model, *settings):
        wrap(model, *settings)
        SHAPES.update({name: list(p.shape) for name, p in model.named_parameters()})

    return noting


def follow(engine: Engine) -> dict:
    """Serve with heads whose own logits are wrong: the leader's count, or this rank would draw other tokens."""
    for head in (engine._model.decoder.lm_head, engine._model.image_head):
        head.register_forward_hook(lambda module, inputs, output: -output, prepend=True)
    return {"served": serve_rank(engine), "layout": layout(engine)}


def refused_requests() -> list[Request]:
    """One whose title no attempt passes, one whose second does: only the leader is asked, its functions do not travel."""
    first, second = requests()[:2]
    second_title = []

    def check(text: str) -> str | None:
        second_title.append(text)
        return "once" if len(second_title) == 1 else None

    return [replace(first, check_title=lambda text: "never", template_title="a mug!"), replace(second, check_title=check)]


def lead_all_requests(engine: Engine, directory: Path) -> dict:
    results = engine.generate(requests())
    with pytest.raises(ModelError, match="9 codes"):
        engine.generate([TOO_MANY_CODES])
    again = engine.generate(requests()[-1:])
    refused = engine.generate(refused_requests())
    torch.save([(r.title, r.title_attempt, r.is_template, r.codes, r.picture) for r in refused], directory / "refused.pt")
    engine.close()
    with pytest.raises(RunError, match="is closed or has failed"):
        engine.generate(requests()[:1])
    torch.save([(r.title, r.codes, r.picture) for r in [*results, *again]], directory / "results.pt")
    return {"layout": layout(engine), "calls": engine.num_calls}


def lead_for_ever(engine: Engine, directory: Path, rest: float = 0) -> dict:
    time.sleep(rest)
    engine._model.image_head.register_forward_hook(lambda *_: (directory / "painting").touch())
    while True:
        engine.generate(requests())


def lead_after_a_rest(engine: Engine, directory: Path) -> dict:
    return lead_for_ever(engine, directory, rest=3.5)


def lead_nothing(engine: Engine, directory: Path) -> dict:
    (directory / "painting").touch()
    time.sleep(60)


@pytest.fixture(scope="module")
def both(model_dir, tmp_path_factory) -> tuple[dict, dict, list, list]:
    directory = tmp_path_factory.mktemp("both")
    leader, follower = Ranks(lead_all_requests, model_dir, directory).wait()
    return leader, follower, *(torch.load(directory / f"{name}.pt", weights_only=True) for name in ("results", "refused"))


def test_two_ranks_draw_the_unsharded_tokens(both):
    expected = generate(small_model(), small_prompter(), requests(), SAMPLED)
    results = both[2]
    for (title, codes, picture), one in zip(results, [*expected, expected[-1]], strict=True):
        assert title == one.title
        assert torch.equal(codes, one.codes)
        assert torch.equal(picture, one.picture)


def test_a_refused_request_does_not_end_the_group(both):
    leader, follower, results, _ = both
    assert len(results) == 6  # the last one was made after the refusal
    assert leader["calls"] == 5
    assert follower["served"] == 8


def test_two_ranks_draw_the_same_attempts_as_one_process(both):
    one = Engine(small_model(), small_prompter(), EngineSettings(num_slots=2), SAMPLED)
    for (*said, codes, picture), made in zip(both[3], one.generate(refused_requests()), strict=True):
        assert tuple(said) == (made.title, made.title_attempt, made.is_template)
        assert torch.equal(codes, made.codes)
        assert torch.equal(picture, made.picture)
    assert [tuple(row[1:3]) for row in both[3]] == [(2, True), (1, False)]


def test_layers_are_split_and_nothing_else_is(both):
    whole = {name: list(p.shape) for name, p in small_model().named_parameters()}
    first, second = both[0]["layout"]["shapes"], both[1]["layout"]["shapes"]
    assert first.keys() == second.keys() == whole.keys()
    split = {}
    for name, shape in whole.items():
        axes = [axis for axis in range(len(shape)) if first[name][axis] != shape[axis]]
        if axes:
            (axis,) = axes
            assert first[name][axis] + second[name][axis] == shape[axis]
            split.setdefault(name.split(".")[-2], set()).add(axis)
            assert name.startswith("decoder.layers.")
    by_output = {name: {0} for name in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")}
    assert split == {**by_output, "o_proj": {1}, "down_proj": {1}}


def test_each_rank_caches_its_own_heads_only(both):
    assert [rank["layout"]["cache"][1] for rank in both[:2]] == [1, 1]  # of two key/value heads


def test_a_killed_follower_fails_the_leader_within_seconds(model_dir, tmp_path):
    ranks = Ranks(lead_for_ever, model_dir, tmp_path)
    ranks.wait_for(tmp_path / "painting")
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    killed = time.time()
    leader, _ = ranks.wait()
    assert leader["at"] - killed < 5
    assert "RunError: tensor-parallel rank 0 of 2 at 127.0.0.1:" in leader["error"]
    assert "Start all ranks of the group again" in leader["error"]


def test_a_killed_leader_fails_the_follower_that_waits_for_work_within_seconds(model_dir, tmp_path):
    ranks = Ranks(lead_nothing, model_dir, tmp_path)
    ranks.wait_for(tmp_path / "painting")
    os.kill(ranks.processes[0].pid, signal.SIGKILL)
    killed = time.time()
    _, follower = ranks.wait()
    assert follower["at"] - killed < 5
    assert "RunError: tensor-parallel rank 1 of 2 at 127.0.0.1:" in follower["error"]


def test_a_rank_that_hangs_fails_the_others_at_the_timeout_which_waiting_for_work_does_not_count_for(model_dir, tmp_path):
    impatient = SETTINGS.model_copy(update={"timeout_seconds": 3.0})
    ranks = Ranks(lead_after_a_rest, model_dir, tmp_path, (impatient, impatient))
    ranks.wait_for(tmp_path / "painting")
    os.kill(ranks.processes[1].pid, signal.SIGSTOP)
    stopped = time.time()
    ranks.processes[0].join(30)
    os.kill(ranks.processes[1].pid, signal.SIGKILL)
    leader, _ = ranks.wait()
    assert leader["at"] - stopped < 15
    assert "rank 0 of 2" in leader["error"]


def test_an_error_of_one_rank_alone_fails_the_other_at_once(model_dir, tmp_path):
    """Rank 1 refuses, because it was started with other settings; rank 0 must not wait for its sums."""
    other = SETTINGS.model_copy(update={"num_slots": 3})
    leader, follower = Ranks(lead_for_ever, model_dir, tmp_path, (SETTINGS, other)).wait()
    assert "SettingsError: tensor-parallel rank 1 of 2" in follower["error"]
    assert "RunError: tensor-parallel rank 0 of 2" in leader["error"]
    assert leader["at"] - follower["at"] < SETTINGS.timeout_seconds / 4


def test_ranks_that_never_meet_say_so(model_dir):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = SETTINGS.model_copy(update={"start_timeout_seconds": 1.0})
    with pytest.raises(RunError, match=r"rank 1 of 2 at 127.0.0.1:\d+ failed while connecting to the other ranks"):
        start_rank(1, 2, "127.0.0.1", port, ModelDirectory(model_dir), settings)
