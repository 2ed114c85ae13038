"""Nothing but the engine happens on the engine's time: no picture is decoded or encoded in its stage, and the next shard is ready
before the last one ends. No Ray is started; a stand-in for the engine says when it was asked."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.models import save_small_model, small_config

from adgen.errors import PairError
from adgen.finishing import fallbacks
from adgen.finishing.finish import ProductFacts
from adgen.generation.generate import Result
from adgen.generation.pictures import condition_pixels
from adgen.generation.timings import PhaseTimings
from adgen.images import condition_square, square_frame
from adgen.on_ray.refresh.commit import FinishAndCommit
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.generate import Generate
from adgen.on_ray.refresh.payload import pack, pack_files, painted, raw, unpack
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.speed import EngineSpan, RunSpeed, busy_share

WAIT = 120  # seconds: only a fault waits so long
SIDE = 16


class StandIn:
    """In the engine's place: paints a picture of the seed's colour; `before` is called with the requests first."""

    num_slots, switched_off, settings = 2, frozenset(), SimpleNamespace(weights="same")

    def __init__(self, before=lambda requests: None):
        self.before, self.timings, self.threads = before, PhaseTimings(), []

    def generate(self, requests):
        self.threads.append((threading.get_ident(), torch.get_num_threads()))
        self.before(requests)
        self.timings.picture += 0.5
        shades = (torch.full((SIDE, SIDE, 3), request.seed, dtype=torch.uint8) for request in requests)
        return [Result(r.product_title, True, torch.arange(4), shade, 2) for r, shade in zip(requests, shades, strict=True)]


class Stage(Generate):
    """With that engine, made where `Generate` makes its own."""

    def __init__(self, context, stand_in):
        super().__init__(context)
        self.stand_in = stand_in

    @property
    def engine(self):
        """The stand-in."""
        return self.stand_in


@pytest.fixture
def context(tmp_path) -> Context:
    save_small_model(tmp_path / "model")
    settings = RefreshSettings(model=tmp_path / "model", store=str(tmp_path / "store"), campaign="spring", device="cpu")
    return Context(settings, "20260101000000-000000-00000000", "", "")


def cutout() -> Image.Image:
    picture = Image.new("RGBA", (40, 60), (0, 0, 0, 0))
    picture.paste((200, 30, 60, 255), (8, 10, 30, 50))
    return picture


def shard(index: int, seeds: tuple[int, ...]) -> dict:
    facts = {"product_id": "mug", "product_title": "Blue mug", "selling_points": [], "scale": 0.8, "locale": None, "channel": None}
    empty = {"cutout": "mug.png", "history_titles": [], "history_codes": b"", "reason": None, "detail": None, "attempt": 0}
    pairs = [facts | empty | {"pair_id": f"{index}-{seed}", "seed": seed} for seed in seeds]
    pairs.append(pairs[0] | {"pair_id": f"{index}-bad", "reason": "missing_file"})
    squares = {"mug": condition_square(square_frame(cutout()), 0.8).tobytes()}
    return {
        "index": index,
        "shard": pack(pa.Table.from_pylist(pairs)),
        "pictures": b"not looked at",
        "squares": pack_files(squares),
    }


def rows_of(row: dict) -> list[dict]:
    return unpack(row["shard"]).to_pylist()


def test_the_next_shard_is_ready_before_the_engine_ends_with_the_last(context):
    """The engine holds its first shard back until the requests of the second are there."""
    second_is_ready = threading.Event()

    class Watched(Stage):
        def requests(self, pairs, squares):
            found = super().requests(pairs, squares)
            if pairs[0]["seed"] == 21:
                second_is_ready.set()
            return found

    stand_in = StandIn(lambda requests: requests[0].seed == 21 or second_is_ready.wait(WAIT) or pytest.fail("nothing is prepared"))
    stage = Watched(context, stand_in)
    with ThreadPoolExecutor(2) as calls:
        done = list(calls.map(stage, [shard(0, (11, 12)), shard(1, (21, 22))]))
    assert [pair["pair_id"] for row in done for pair in rows_of(row) if pair["picture"]] == ["0-11", "0-12", "1-21", "1-22"]
    assert len(set(stand_in.threads)) == 1, "sums of another number of threads end in other bits"
    assert {pair["num_threads"] for row in done for pair in rows_of(row)} == {stand_in.threads[0][1], None}


def test_the_engines_stage_neither_decodes_nor_encodes(context, monkeypatch):
    row = shard(0, (11, 12))
    refuse = lambda *_, **__: pytest.fail("a picture is read or written while an engine waits")  # noqa: E731
    monkeypatch.setattr(Image, "open", refuse)
    monkeypatch.setattr(Image.Image, "save", refuse)
    monkeypatch.setattr(Image.Image, "resize", refuse)
    made = Stage(context, StandIn())(row)
    first, second, bad = rows_of(made)
    assert (painted(first["picture"]) == 11).all()
    assert (painted(second["picture"]) == 12).all()
    assert bad["picture"] is None
    assert made["pictures"] == b"not looked at"
    assert "squares" not in made


def test_the_model_is_shown_what_it_was_shown_when_engines_cut_out(context):
    seen = []
    Stage(context, StandIn(seen.extend))(shard(0, (11, 12)))
    expected = condition_pixels(square_frame(cutout()), 0.8, small_config().foreground)
    assert torch.equal(seen[0].condition, expected)
    assert seen[0].condition is seen[1].condition, "a product is read once for all of its pairs"


def test_finishing_puts_a_plain_background_where_a_gate_complains_of_the_picture(context):
    finisher = FinishAndCommit(context)
    product = ProductFacts("Blue mug", cutout=b"no picture")
    lively = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    pair = {"picture": raw(lively)}
    assert (finisher.background(pair, product) == lively).all()
    assert pair["picture_source"] == "model"
    with pytest.raises(PairError):  # the product's picture, that the plain one is made of
        finisher.background({"picture": raw(np.zeros((SIDE, SIDE, 3), np.uint8))}, product)
    assert fallbacks.usable_background(lively, product, context.settings.finish) == (pytest.approx(lively), "model")


def test_engines_are_busy_but_for_what_they_wait():
    spans = [EngineSpan(0, 10, 9), EngineSpan(2, 12, 10)]
    assert busy_share(spans) == 0.95
    assert busy_share([*spans, EngineSpan(20, 30, 10)]) == pytest.approx(29 / 40), "the place of the one that ended stood empty"
    assert busy_share([]) is None
    run = RunSpeed(RefreshSettings())
    counts = {"engine_seconds": 3.0, "roofline_seconds": None, "engine_calls": 2, "made_ok": 2}
    for started, ended in ((104, 107), (100, 103)):
        run.count(counts | {"engine": "a:1", "engine_started": started, "engine_ended": ended})
    run.count(counts | {"engine": None, "engine_started": None, "engine_ended": None})
    assert run.report()["engine_busy"] == 0.8571
