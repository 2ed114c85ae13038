"""Training examples made of noise, for tests of batches, losses and steps: real rows, no shop."""

import io

import numpy as np
from PIL import Image

from adgen.model.config import ModelConfig

TITLES = ("fresh mug", "red lamp", "a warm mug", "steel mug 500ml", "新款 茶杯", "lamp, warm")


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def example(number: int, config: ModelConfig, clicks: int = 4) -> dict:
    """A row of `EXAMPLES`; the same number gives the same row."""
    rng = np.random.default_rng(number)

    def codes(count: int) -> bytes:
        return rng.integers(0, config.image.codebook_size, count).astype("<u2").tobytes()

    side, size = config.foreground.condition_size, config.image.image_size
    return {
        "number": number,
        "product_title": f"{TITLES[number % 6]} no {number}",
        "selling_points": ["warm", f"{number} ml"],
        "titles": [TITLES[(number + 1) % 6]],
        "codes": codes(config.image.tokens_per_picture),
        "condition": png(rng.integers(0, 255, (side, side, 3), dtype=np.uint8)),
        "picture": png(rng.integers(0, 255, (size, size, 3), dtype=np.uint8)),
        "clicks": [
            {
                "product": f"p{n}",
                "title": TITLES[n % 6] + f" {n}",
                "codes": codes(config.image.tokens_per_history_picture),
                "close": 0.3,
            }
            for n in range(clicks)
        ],
    }
