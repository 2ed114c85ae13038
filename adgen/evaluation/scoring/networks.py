"""The networks that score pictures, from local directories: which are given, what a report calls them, and how they are loaded."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch

from adgen.errors import ModelError, SettingsError
from adgen.evaluation.pictures.backgrounds import PatchEncoder
from adgen.evaluation.pictures.clip_score import TitlePictureScore
from adgen.evaluation.pictures.distances import PictureFeatures, load_picture_features
from adgen.evaluation.pictures.encoders import patch_encoder
from adgen.model.pbs import PBSEncoder, load_pbs
from adgen.shipped import shipped_encoder, shipped_model

_WEIGHTS = {".safetensors", ".bin", ".pth", ".json"}


@dataclass(frozen=True)
class NetworkPaths:
    """Where they lie, by the names of their settings; picklable. None: not given."""

    encoder: Path | None = None
    dinov2: Path | None = None
    adapter: Path | None = None
    """Not used where dinov2 is given."""
    fid: Path | None = None
    clip: Path | None = None

    @classmethod
    def of(cls, settings: Any) -> "NetworkPaths":
        """Those of settings with these names, absolute; where they name none, what ships with the package."""
        given: dict[str, Path | None] = {each.name: getattr(settings, each.name) for each in fields(cls)}
        given["encoder"] = given["encoder"] or shipped_encoder()
        given["adapter"] = None if given["dinov2"] else given["adapter"] or shipped_model()
        return cls(**{name: path and path.resolve() for name, path in given.items()})

    @property
    def any(self) -> bool:
        """Whether there is a network to run."""
        return any(getattr(self, each.name) is not None for each in fields(self))

    @property
    def sees_backgrounds(self) -> bool:
        """Whether one of them does."""
        return any((self.encoder, self.dinov2, self.adapter))


class ScoringNetworks(NamedTuple):
    """Those that are given, loaded."""

    pbs: PBSEncoder | None = None
    patches: PatchEncoder | None = None
    """Sees backgrounds without having been trained for it: a DINOv2, or a model's own."""
    pictures: PictureFeatures | None = None
    """Whose features distances of sets are taken between."""
    titles: TitlePictureScore | None = None
    device: torch.device = torch.device("cpu")


class NamedNetwork(NamedTuple):
    """Who gave a kind of score."""

    name: str
    digest: str
    """Of the files: scores of two networks cannot be compared."""


def name_networks(paths: NetworkPaths, networks: ScoringNetworks) -> dict[str, NamedNetwork | None]:
    """By kind of score: pbs, background, distance, clip; None where nobody networks."""
    backgrounds = paths.dinov2 or paths.adapter
    return {
        "pbs": NamedNetwork("PBS encoder", _digest(paths.encoder)) if paths.encoder else None,
        "background": NamedNetwork(networks.patches.name, _digest(backgrounds)) if backgrounds else None,
        "distance": NamedNetwork(networks.pictures.name, _digest(paths.fid)) if paths.fid else None,
        "clip": NamedNetwork("CLIP", _digest(paths.clip)) if paths.clip else None,
    }


def _digest(path: Path) -> str:
    """Of the names and bytes of a file, or of a directory's weights and sizes."""
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.suffix in _WEIGHTS)
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(file.name.encode() + b"\0" + hashlib.file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def load_networks(paths: NetworkPaths, device: torch.device) -> ScoringNetworks:
    """All that are given, on the device. SettingsError names the setting, and what its directory lacks."""
    seeing, second = ("dinov2", paths.dinov2) if paths.dinov2 else ("adapter", paths.adapter)
    return ScoringNetworks(
        pbs=_load("encoder", paths.encoder, lambda path: load_pbs(path).to(device)),
        patches=_load(seeing, second, lambda _: patch_encoder(paths.dinov2, paths.adapter, device)),
        pictures=_load("fid", paths.fid, lambda path: load_picture_features(path).to(device)),
        titles=_load("clip", paths.clip, lambda path: TitlePictureScore(path, device)),
        device=device,
    )


def _load(setting: str, path: Path | None, load: Callable[[Path], Any]) -> Any:
    if path is None:
        return None
    if not path.exists():
        raise SettingsError(f"{setting}: {path}: there is no such file or directory; nothing is downloaded")
    try:
        return load(path)
    except ModelError as error:
        raise SettingsError(f"{setting}: {error}") from None
