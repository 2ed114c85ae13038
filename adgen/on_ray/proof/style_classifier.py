"""The style classifier of a proof: its real pictures are drawn on the cluster, it learns here, and is tested on real
pictures of the held-out shop before it judges any creative."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from adgen.evaluation.proof.style_classifier import EPOCHS, LARGEST_SIDE, StyleClassifier, as_array, train_style_classifier
from adgen.progress import Progress
from adgen.shop.synthetic.style_pictures import draw_style_pictures
from adgen.shop.synthetic.styles import TEN, StyleSet

PICTURES_PER_TASK = 100


class StyleNamer:
    """Pictures -> names of their styles."""

    def __init__(self, classifier: StyleClassifier, side: int, names: Sequence[str] = TEN.names):
        self.classifier, self.side, self.names = classifier, side, names

    def styles(self, pictures: Sequence[Image.Image]) -> list[str]:
        """Of pictures of any size."""
        arrays = np.stack([as_array(picture, self.side) for picture in pictures])
        return [self.names[index] for index in self.classifier.styles(arrays)]


def train_classifier(seed: int, count: int, side: int, progress: Progress, styles: StyleSet = TEN) -> StyleNamer:
    """A classifier of pictures that are `side` pixels wide, trained on `count` real ones."""
    side = min(side, LARGEST_SIDE)
    pictures = draw_real_pictures(seed, count, side, progress, styles)
    return learn(seed, pictures, progress, styles)


def learn(seed: int, pictures: tuple[np.ndarray, np.ndarray], progress: Progress, styles: StyleSet) -> StyleNamer:
    """A classifier of what `draw_real_pictures` drew."""
    progress.phase("train classifier", EPOCHS * len(pictures[0]))
    classifier = train_style_classifier(*pictures, len(styles.names), seed, each=progress.advance)
    return StyleNamer(classifier, pictures[0].shape[1], styles.names)


def draw_real_pictures(seed: int, count: int, side: int, progress: Progress, styles: StyleSet) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (count, side, side, 3) uint8 that no shop has, and their styles (count,), indices of `styles.names`."""
    progress.phase("draw real pictures", count)
    starts = range(0, count, PICTURES_PER_TASK)
    waiting = [_draw.remote(seed, start, min(PICTURES_PER_TASK, count - start), side, styles) for start in starts]
    drawn = []
    for reference in waiting:
        drawn.append(ray.get(reference))
        progress.advance(len(drawn[-1][1]))
    return np.concatenate([pictures for pictures, _ in drawn]), np.concatenate([found for _, found in drawn])


@ray.remote(num_cpus=1)
def _draw(seed: int, start: int, count: int, side: int, styles: StyleSet) -> tuple[np.ndarray, np.ndarray]:
    return draw_style_pictures(seed, start, count, side, styles)


@torch.no_grad()
def reconstructed(pictures: Sequence[Image.Image], model: Path) -> list[Image.Image]:
    """What the model's image tokenizer makes of pictures: the best that a picture of this model can be."""
    from adgen.generation.pictures import square_pixels
    from adgen.model.checkpoint import load_image_tokenizer
    from adgen.model.image_tokens import to_uint8

    tokenizer, config = load_image_tokenizer(model)
    side = config.image.image_size
    out = []
    for start in range(0, len(pictures), 32):
        pixels = torch.stack([square_pixels(picture, side) for picture in pictures[start : start + 32]])
        decoded = to_uint8(tokenizer.decode(tokenizer.encode(pixels)))
        out += [Image.fromarray(each.numpy()) for each in decoded]
    return out
