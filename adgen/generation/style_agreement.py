"""How well a drawn picture fits the style of the clicks in its prompt: one of the scores that variants of a pair are ranked by."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch.nn import functional as F

from adgen.generation.generate import Request, Result
from adgen.generation.pictures import history_pixels
from adgen.model.uniadgen import UniAdGen


@torch.inference_mode()
def style_agreements(model: UniAdGen, requests: Sequence[Request], results: Sequence[Result]) -> list[float | None]:
    """For each result the cosine (-1 to 1) of its picture, read by the model's style encoder as if it were clicked, with the style
    embedding of its request's clicks. None without clicked pictures, and for a model without style encoder."""
    if model.preference.style_encoder is None:
        return [None] * len(requests)
    pairs = zip(requests, results, strict=True)
    return [_agreement(model, *pair) if len(pair[0].history_codes) else None for pair in pairs]


def _agreement(model: UniAdGen, request: Request, result: Result) -> float:
    clicks = model.encode_clicks(request.history_codes.to(model.device)[None])
    style = model.preference.style_embedding(clicks)[0, 0]
    # One by one, and small: the score is the same whoever was drawn beside it.
    pixels = history_pixels(Image.fromarray(result.picture.numpy()), model.config.image)[None]
    codes = model.image_tokenizer.encode(pixels.to(model.device, model.dtype))
    drawn = model.encode_clicks(codes[None])[0, 0]
    return float(F.cosine_similarity(drawn.float(), style.float(), dim=0))
