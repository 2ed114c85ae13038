"""The catalog's `map` over a cluster: actors that read pictures and encode them, each with a model loaded once."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.util import ActorPool

from adgen.errors import EngineLost
from adgen.generation.model_directory import ModelDirectory
from adgen.model.config import ModelConfig
from adgen.on_ray.cluster import cluster_device, num_engines, slot_resources
from adgen.on_ray.cluster_settings import ClusterSettings

RESTARTS = 3
"""How often an encoder's process, or its node, may die: it is started again somewhere else, and its batch done again."""


class HistoryEncoder:
    """Clicked products' pictures -> image tokens (n, tokens). Pickles as a path; loads the image tokenizer, and nothing else of the
    model, when first asked. device: auto, cpu or cuda, where that is done."""

    def __init__(self, model: ModelDirectory, device: str = "cpu"):
        self.model, self.device = model, device

    def __call__(self, pictures: list[Image.Image]) -> np.ndarray:
        """Codes of the pictures, int64."""
        import torch

        from adgen.generation.pictures import history_pixels, picture_codes

        tokenizer, config = self._loaded()
        return picture_codes(torch.stack([history_pixels(p, config.image) for p in pictures]), tokenizer).numpy()

    def reduce(self, picture: Image.Image) -> Image.Image:
        """The picture in the size that the model is shown at first."""
        from adgen.generation.pictures import history_source

        return history_source(picture, self.model.config.image)

    def _loaded(self) -> tuple[Any, ModelConfig]:
        if not hasattr(self, "_parts"):
            import torch

            from adgen.model.checkpoint import load_image_tokenizer
            from adgen.model.device import pick_device

            tokenizer, config = load_image_tokenizer(self.model.path)
            device = "cpu" if self.device == "cpu" else pick_device("auto")  # a GPU is this process's only where Ray gave it one
            if device == "cuda":  # 10 bits of a convolution's inputs would pick other codes than a CPU does
                torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
            self._parts = tokenizer.to(device), config
        return self._parts

    def __getstate__(self) -> dict:
        return {"model": self.model, "device": self.device}


class TitleTokenizer:
    """A clicked title -> exactly as many tokens as the model reads of one. Pickles as a path."""

    def __init__(self, model: ModelDirectory):
        self.model = model

    def __call__(self, title: str) -> list[int]:
        """Token ids."""
        return self.model.prompter.history_title_ids(title)


# Restarts bound it, not retries: until Ray knows that a node is gone, each second in which its actor cannot be reached takes one.
@ray.remote(num_cpus=1, max_restarts=RESTARTS, max_task_retries=-1)
class _Encode:
    def run(self, function: Callable, batch: Any) -> Any:
        return function(batch)


def encoder_resources(device: str) -> dict[str, float]:
    """What Ray sets aside for an encoder."""
    own = slot_resources(device)
    return {"num_cpus": own["CPU"], "num_gpus": own.get("GPU", 0)}


class catalog_encoders:
    """An ordered `map` over actors, which are started when there is something to encode. device: auto, cpu or cuda; each GPU has
    one, since engines start only when the plan is made."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.actors: list = []

    def __enter__(self) -> Callable[[Callable, Iterable], Iterator]:
        return self._map

    def _map(self, function: Callable, batches: Iterable) -> Iterator:
        batches = list(batches)
        if not batches:
            return iter(())
        if not self.actors:
            # As many as find room: a batch given to one that waits for a CPU might never start.
            # Where GPUs are wanted and none is there yet, CPUs do it: nobody waits here for a GPU that may never come.
            device = "cpu" if self.device == "cpu" else cluster_device("auto")
            encoder = _Encode.options(**encoder_resources(device))
            self.actors = [encoder.remote() for _ in range(num_engines(ClusterSettings(), device))]
        shared = ray.put(function)  # one pickle of the function a map: its model is loaded once an actor
        return _living(ActorPool(self.actors).map(lambda actor, batch: actor.run.remote(shared, batch), batches))

    def __exit__(self, *_: Any) -> None:
        for actor in self.actors:
            ray.kill(actor)


def _living(results: Iterator) -> Iterator:
    """The results; EngineLost where the processes that make them keep dying."""
    try:
        yield from results
    except ray.exceptions.RayActorError as error:
        said = str(error).strip().splitlines()[0]
        raise EngineLost(
            f"the processes that encode product pictures were lost {RESTARTS + 1} times: {said} Start it again when the machines "
            "are healthy and have memory"
        ) from None
