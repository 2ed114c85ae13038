"""CLIP's score of pictures with their titles, through torchmetrics, with the CLIP of a local directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.errors import InputError, ModelError
from adgen.evaluation.pictures.local_weights import local_model, require_files


class TitlePictureScore:
    """Cosine of picture and title, times 100, mean over all that were added; not below 0 (Hessel et al. 2021)."""

    def __init__(self, directory: str | Path, device: str | torch.device = "cpu"):
        """ModelError names the file of the directory that is missing."""
        from torchmetrics.multimodal.clip_score import CLIPScore

        model, processor = _load_clip(Path(directory))
        self._device = torch.device(device)
        self._clip, self._processor = model.to(self._device), processor
        self._score = CLIPScore(model_name_or_path=lambda: (model, processor)).to(self._device)
        self.count = 0

    @torch.no_grad()
    def add(self, pictures: Sequence[Image.Image], titles: Sequence[str]) -> None:
        """A batch. InputError unless there are as many titles as pictures."""
        _check_counts(pictures, titles)
        if pictures:
            self._score.update([_as_bytes(picture).to(self._device) for picture in pictures], list(titles))
            self.count += len(pictures)

    @torch.no_grad()
    def each(self, pictures: Sequence[Image.Image], titles: Sequence[str]) -> list[float]:
        """The same of every picture with its title, batched. torchmetrics gives only a mean; a test checks that the mean of
        these values equals it. InputError unless there are as many titles as pictures."""
        _check_counts(pictures, titles)
        if not pictures:
            return []
        images = self._processor(images=[_as_bytes(picture) for picture in pictures])["pixel_values"]
        text = self._processor(text=list(titles))
        shown = self._clip.get_image_features(images.to(self._device))
        said = self._clip.get_text_features(text["input_ids"].to(self._device), text["attention_mask"].to(self._device))
        return (100 * F.cosine_similarity(shown, said)).clamp(min=0).tolist()

    def compute(self) -> dict[str, float]:
        """`clip_score`; empty when nothing was added."""
        return {"clip_score": float(self._score.compute())} if self.count else {}


def _check_counts(pictures: Sequence[Image.Image], titles: Sequence[str]) -> None:
    if len(pictures) != len(titles):
        raise InputError(f"CLIP scores pictures with their titles, but there are {len(pictures)} and {len(titles)}")


def _as_bytes(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def _load_clip(directory: Path) -> tuple[nn.Module, "_Processor"]:
    from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

    model = local_model(directory, CLIPModel, "clip")
    require_files(directory, ("preprocessor_config.json", "processor_config.json"))
    require_files(directory, ("tokenizer.json", "vocab.json"))
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        images = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"{directory}: tokenizer or preprocessor cannot be loaded: {str(error).splitlines()[0]}") from None
    return _Clip(model), _Processor(tokenizer, images, model.config.text_config.max_position_embeddings)


class _Clip(nn.Module):
    """The CLIP that torchmetrics 1.9 expects: transformers 5 returns records where it takes tensors."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output


class _Processor:
    """Titles and pictures as the network takes them. Long titles are cut here, keeping the end token that carries the
    text's feature; torchmetrics would cut it off."""

    def __init__(self, tokenizer: Any, images: Any, max_tokens: int):
        self.tokenizer, self.images, self.max_tokens = tokenizer, images, max_tokens

    def __call__(self, text: list[str] | None = None, images: list[Tensor] | None = None, **options: Any) -> Any:
        if text is not None:
            return self.tokenizer(text, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
        return self.images(images, return_tensors="pt")
