"""An engine in an actor: a shard's pairs get title and picture."""

import copy
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from adgen.config import FinishSettings
from adgen.errors import PairError
from adgen.finishing.fallbacks import plain_background, template_title
from adgen.finishing.finish import ProductFacts, product_cutout
from adgen.finishing.gates import picture_complaint, title_complaint
from adgen.generation.model_directory import ModelDirectory
from adgen.images import square_frame, use_limits
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.payload import lossless, pack, product_facts, unpack
from adgen.on_ray.refresh.provenance import provenance
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.on_ray.refresh.speed import shard_speed
from adgen.on_ray.rows import Row, as_row_error

if TYPE_CHECKING:
    from torch import Tensor

    from adgen.generation.engine import Engine
    from adgen.generation.generate import Result


class Generate:
    """One engine, built once; its pictures are encoded here, without loss."""

    def __init__(self, context: Context, engine: "Engine | None" = None):
        """engine: one that is ready, for a rank of several; default one of our own."""
        self.context = context
        use_limits(context.settings.pictures)
        if engine is not None:
            self.engine = engine

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
        pairs, pictures = unpack(row["shard"])
        conditions = self._conditions(pairs, pictures)
        wanted = [pair for pair in pairs if pair["reason"] is None]
        engine = self.engine
        before = copy.copy(engine.timings)
        requests = self._requests(wanted, conditions, pictures)
        results = engine.generate(requests)
        speed = shard_speed(engine, engine.timings - before, len(wanted))
        seconds = speed["engine_seconds"] / max(1, len(wanted))
        for pair, result in zip(wanted, results, strict=True):
            background, made = self.made(result, product_facts(pair, pictures[pair["product_id"]]))
            pair |= {"title": result.title, "picture": lossless(background), "seconds": seconds} | made
            pair |= provenance(result, self.context.settings)
        if self.context.settings.plan.variants > 1:
            for pair, agreement in zip(wanted, engine.style_agreements(requests, results), strict=True):
                pair["style_agreement"] = agreement
        done = {"shard": pack(pairs, pictures), "engine_calls": len(wanted), "kernels_off": ",".join(sorted(engine.switched_off))}
        return row | speed | done

    def made(self, result: "Result", product: ProductFacts) -> tuple[np.ndarray, Row]:
        """The background (H, W, 3) uint8 that the creative gets, and the columns that say how title and picture came about."""
        finish, background = self.context.settings.finish, result.picture.numpy()
        is_plain = finish.fallbacks and picture_complaint(background, finish) is not None
        if is_plain:
            background = plain_background(product, len(background))
        return background, {
            "attempt": result.title_attempt + result.picture_attempt,
            "title_source": "template" if result.is_template else "model",
            "picture_source": "plain" if is_plain else "model",
        }

    def _conditions(self, pairs: list[Row], pictures: dict[str, bytes]) -> dict[str, Any]:
        """What the model sees of each product; a pair whose product cannot be shown gets the reason."""
        from adgen.generation.pictures import condition_pixels

        conditions: dict[str, Any] = {}
        for pair in pairs:
            product = pair["product_id"]
            if pair["reason"] is not None or product in conditions:
                continue
            try:
                fact = product_facts(pair, pictures[product])
                conditions[product] = condition_pixels(
                    square_frame(product_cutout(fact)), fact.scale or 1.0, self.model.config.foreground
                )
            except PairError as error:
                pair["reason"], pair["detail"] = error.reason, error.detail
        return conditions

    def _requests(self, pairs: list[Row], conditions: dict[str, Any], pictures: dict[str, bytes]) -> list:
        import torch

        from adgen.generation.generate import Request

        size = self.model.config.image.tokens_per_history_picture
        finish = self.context.settings.finish
        facts = [product_facts(pair, pictures[pair["product_id"]]) for pair in pairs]
        return [
            Request(
                product_title=pair["product_title"],
                seed=pair["seed"],
                selling_points=tuple(pair["selling_points"] or ()),
                history_titles=tuple(pair["history_titles"]),
                history_codes=torch.tensor(pair["history_codes"], dtype=torch.int64).reshape(-1, size),
                condition=conditions[pair["product_id"]],
                template_title=template_title(fact, finish),
                check_title=partial(
                    title_complaint, product_texts=(fact.title, *fact.selling_points), locale=fact.locale, settings=finish
                ),
                check_picture=partial(_complaint, settings=finish),
            )
            for pair, fact in zip(pairs, facts, strict=True)
        ]


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
