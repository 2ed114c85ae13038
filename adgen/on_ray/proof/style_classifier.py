"""The style classifier of a proof: its real pictures are drawn on the cluster, it learns here, and is tested on real
pictures of the held-out shop before it networks any creative."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from adgen.evaluation.proof.style_classifier import EPOCHS, LARGEST_SIDE, StyleClassifier, as_array, train_style_classifier
from adgen.progress import Progress
from adgen.shop.synthetic.style_pictures import STYLE_NAMES, draw_style_pictures

PICTURES_PER_TASK = 100


class StyleNamer:
    """Pictures -> names of their styles."""

    def __init__(self, classifier: StyleClassifier, side: int):
        self.classifier, self.side = classifier, side

    def styles(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Of pictures of any size."""
        arrays = np.stack([as_array(picture, self.side) for picture in pictures])
        return [STYLE_NAMES[index] for index in self.classifier.styles(arrays)]


def train_classifier(seed: int, count: int, side: int, progress: Progress) -> StyleNamer:
    """A classifier of pictures that are `side` pixels wide, trained on `count` real ones."""
    side = min(side, LARGEST_SIDE)
    progress.phase("draw real pictures", count)
    pictures, styles = [], []
    starts = range(0, count, PICTURES_PER_TASK)
    waiting = [_draw.remote(seed, start, min(PICTURES_PER_TASK, count - start), side) for start in starts]
    for reference in waiting:
        some = ray.get(reference)
        pictures.append(some[0])
        styles.append(some[1])
        progress.advance(len(some[1]))
    progress.phase("train classifier", EPOCHS * count)
    data = np.concatenate(pictures), np.concatenate(styles)
    return StyleNamer(train_style_classifier(*data, len(STYLE_NAMES), seed, each=progress.advance), side)


@ray.remote(num_cpus=1)
def _draw(seed: int, start: int, count: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    return draw_style_pictures(seed, start, count, side)


@torch.no_grad()
def reconstructed(pictures: Sequence[Image.Image], model: Path) -> list[Image.Image]:
    """What the model's image tokenizer makes of pictures: the best that a picture of this model can be."""
    from adgen.generation.pictures import square_pixels
    from adgen.model.checkpoint import load
    from adgen.model.image_tokens import to_uint8

    loaded = load(model, dtype=torch.float32)
    tokenizer, side = loaded.image_tokenizer.eval(), loaded.config.image.image_size
    out = []
    for start in range(0, len(pictures), 32):
        pixels = torch.stack([square_pixels(picture, side) for picture in pictures[start : start + 32]])
        decoded = to_uint8(tokenizer.decode(tokenizer.encode(pixels)))
        out += [Image.fromarray(each.numpy()) for each in decoded]
    return out
