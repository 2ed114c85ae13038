"""An engine in an actor: a shard's pairs get title and picture."""

import copy
import os
import socket
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from adgen.config import FinishSettings
from adgen.finishing.fallbacks import template_title
from adgen.finishing.gates import picture_complaint, title_complaint
from adgen.generation.model_directory import ModelDirectory
from adgen.images import CONDITION_SIDE
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import PRODUCT_FACTS, pack, product_facts, raw, unpack, unpack_files, with_columns
from adgen.on_ray.refresh.provenance import PROVENANCE, provenance
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.speed import shard_speed
from adgen.on_ray.rows import Row, as_row_error

if TYPE_CHECKING:
    from torch import Tensor

    from adgen.generation.engine import Engine
    from adgen.generation.generate import Request, Result


SHOWN = ["history_titles", "history_codes"]
"""What only the model reads."""
ASKED = (*PRODUCT_FACTS, *SHOWN, "seed", "attempt", "reason")
MADE = ("title", "picture", "attempt", "title_source", "seconds", "style_agreement", *PROVENANCE)
"""What an engine adds to a shard's columns, or changes in them."""


class Generate:
    """One engine, built once. Two threads may call it: one has its shard ready for the engine, or puts it away, while the other's
    is generated."""

    def __init__(self, context: Context, engine: "Engine | None" = None):
        """engine: one that is ready, for a rank of several; default one of our own."""
        self.context = context
        # A thread of its own: torch counts threads by the one that asks, and sums over another number of them end in other bits.
        self._engine_thread = ThreadPoolExecutor(1)
        if engine is not None:
            self.engine = engine
            self._engine_thread = None

    @cached_property
    def engine(self) -> "Engine":
        """Built for the first shard, so that `as_row_error` reports what goes wrong."""
        return build_engine(self.context.settings, self.model)

    @cached_property
    def model(self) -> ModelDirectory:
        """The model's directory, opened here once."""
        return ModelDirectory(self.context.settings.model)

    @as_row_error
    def __call__(self, row: Row) -> Row:
        """Adds title and picture to each pair without a reason."""
        shard = unpack(row["shard"])
        pairs = shard.select(ASKED).to_pylist()
        wanted = [pair for pair in pairs if pair["reason"] is None]
        requests = self.requests(wanted, unpack_files(row.pop("squares")))
        results, own, about = self._in_turn(requests)
        own["seconds"] = about["engine_seconds"] / max(1, len(wanted))
        for pair, result, agreement in zip(wanted, results, own.pop("agreements"), strict=True):
            pair |= made_by(result) | provenance(result, self.context.settings) | own | {"style_agreement": agreement}
        shard = pack(with_columns(shard.drop_columns(SHOWN), pairs, MADE))
        return row | about | {"shard": shard, "engine_calls": len(wanted)}

    def _in_turn(self, requests: "list[Request]") -> "tuple[list[Result], Row, Row]":
        if self._engine_thread is None:
            return self._generate(requests)
        return self._engine_thread.submit(self._generate, requests).result()

    def _generate(self, requests: "list[Request]") -> "tuple[list[Result], Row, Row]":
        """All that needs the engine: results, what else is known of all of them, and how fast it was."""
        import torch

        engine = self.engine
        before, started = copy.copy(engine.timings), time.time()
        results = engine.generate(requests)
        ranked = self.context.settings.plan.variants > 1
        agreements = engine.style_agreements(requests, results) if ranked else [None] * len(results)
        about = {"engine": ENGINE_NAME, "engine_started": started, "engine_ended": time.time()}
        about |= shard_speed(engine, engine.timings - before, len(requests))
        about["kernels_off"] = ",".join(sorted(engine.switched_off))
        return results, {"agreements": agreements, "num_threads": torch.get_num_threads()}, about

    def requests(self, pairs: list[Row], squares: Mapping[str, bytes]) -> "list[Request]":
        """What the engine is asked for each pair; a product without a square is not shown."""
        import torch

        from adgen.generation.generate import Request

        size = self.model.config.image.tokens_per_history_picture
        finish = self.context.settings.finish
        conditions = self._conditions(squares)
        facts = [product_facts(pair, None) for pair in pairs]
        return [
            Request(
                product_title=pair["product_title"],
                seed=pair["seed"],
                selling_points=tuple(pair["selling_points"] or ()),
                history_titles=tuple(pair["history_titles"]),
                history_codes=torch.tensor(np.frombuffer(pair["history_codes"], "<u2").astype(np.int64)).reshape(-1, size),
                condition=conditions.get(pair["product_id"]),
                template_title=template_title(fact, finish),
                check_title=partial(
                    title_complaint, product_texts=(fact.title, *fact.selling_points), locale=fact.locale, settings=finish
                ),
                check_picture=partial(_complaint, settings=finish),
            )
            for pair, fact in zip(pairs, facts, strict=True)
        ]

    def _conditions(self, squares: Mapping[str, bytes]) -> dict[str, "Tensor"]:
        """What the model sees of each product, once for all of its pairs."""
        from adgen.generation.pictures import square_condition

        pixels = {
            product: np.frombuffer(data, np.uint8).reshape(CONDITION_SIDE, CONDITION_SIDE, 3) for product, data in squares.items()
        }
        return {product: square_condition(each, self.model.config.foreground) for product, each in pixels.items()}


ENGINE_NAME = f"{socket.gethostname()}:{os.getpid()}"
"""Of this process's engine, among those of a run."""


def made_by(result: "Result") -> Row:
    """A pair's columns with what an engine made; whether its picture is used, finishing decides."""
    return {
        "title": result.title,
        "picture": raw(result.picture.numpy()),
        "attempt": result.title_attempt + result.picture_attempt,
        "title_source": "template" if result.is_template else "model",
    }


def _complaint(picture: "Tensor", settings: FinishSettings) -> str | None:
    return picture_complaint(picture.numpy(), settings)


def build_engine(settings: RefreshSettings, directory: ModelDirectory) -> "Engine":
    """The settings' engine, of one rank, on this process's device."""
    import torch

    from adgen.generation.engine import Engine
    from adgen.model.device import pick_device

    device = pick_device(settings.device)
    if device == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    model = directory.load(device, settings.engine.torch_dtype(device))
    return Engine(model, directory.prompter, settings.engine, settings.sampling.of(directory.sampling), device=device)
