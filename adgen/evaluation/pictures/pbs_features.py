"""PBS (personalized background similarity) of pictures: what the encoder is shown, and its features (docs/design.md 6.11). Their
cosine is `model.pbs.pbs`; a creative's scores are made of it in evaluation/scoring/backgrounds.py."""

import io
from collections.abc import Iterable
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from adgen.errors import InputError
from adgen.model.pbs import PBSEncoder, preprocess


def reencoded(picture: Image.Image) -> Image.Image:
    """The picture after JPEG at Pillow's own quality: the published conversion tool stores what it scores that way, so a
    number to be compared with published ones has to go through it."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG")
    return Image.open(buffer).convert("RGB")


@torch.no_grad()
def pbs_features(encoder: PBSEncoder, pictures: Iterable[Image.Image], batch_size: int = 32) -> Tensor:
    """Pictures, taken one batch at a time -> features (N, F) on the CPU. InputError when there is no picture."""
    device, config = encoder.cls_token.device, encoder.config
    pixels, features = (preprocess(picture, config) for picture in pictures), []
    while batch := list(islice(pixels, batch_size)):
        features.append(encoder(torch.stack(batch).to(device)).cpu())
    if not features:
        raise InputError("no picture to score with PBS")
    return torch.cat(features)
