"""Settings of `jobs/evaluate.py robustness` and `photographs`; no torch here."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from adgen.config import Settings


class RobustnessSettings(Settings):
    """Which encoder, on how many pictures."""

    encoder: Path | None = None
    """A PBS encoder: a directory of stage pbs, or the published checkpoint file. Default the one that ships with the package."""
    inputs: str | None = None
    """Products and references of these tables instead of drawn pictures: a reference is a background for other cut-outs."""
    pictures: int = Field(default=100, ge=2, le=2000)
    """Backgrounds, each seen in every change; all are kept in memory."""
    seed: int = Field(default=0, ge=0)
    """Of what is drawn, and of the changes."""
    side: int = Field(default=256, ge=32, le=2048)
    """Of the pictures that are changed, pixels."""
    published: bool = False
    """Save every picture as JPEG first, as the published conversion tool does."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the encoder runs."""


class PhotographsSettings(Settings):
    """Which photographs, and what compares them."""

    data: Path
    """Folder of pad1m.json and labels.json, or the PAd1M file itself with labels.json in the same folder."""
    labels: Path | None = None
    """JSON object: picture name without folder and ending -> {"bg": its background's kind, "cls": the product's}."""
    encoder: Path | None = None
    """A PBS encoder: a directory of stage pbs, or the published checkpoint file. Default the one that ships with the package."""
    dinov2: Path | None = None
    """A DINOv2 in Hugging Face layout, for the score without an encoder of ours. Default the adapter of `model`."""
    model: Path | None = None
    """Model directory whose own foreground adapter stands in for DINOv2. Default the one that ships with the package."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap."""
    resamples: int = Field(default=2000, ge=100)
    """Of the bootstrap."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run."""
