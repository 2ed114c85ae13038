"""How far a set of pictures is from a set of real ones, through torchmetrics: Frechet and kernel distance of features.

Every network comes from a local directory; nothing is downloaded when a job runs.

A directory may hold the Inception of the FID literature, and then the distances are called fid and kid; or a DINOv2 or CLIP
in Hugging Face layout, and then their names say so (Stein et al. 2023 find DINOv2 nearer to people's judgement). Features
are made batch by batch wherever the pictures are; only sums and a bounded sample of them are kept.
"""

import tempfile
import warnings
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from adgen.errors import ModelError
from adgen.evaluation.pictures.backgrounds import IMAGENET_DEVIATION, IMAGENET_MEAN
from adgen.evaluation.pictures.local_weights import local_model, read_model_type
from adgen.evaluation.pictures.tensors import as_tensor
from adgen.model.weight_files import read_tensors

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_INCEPTION_SIDE = 299
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
KID_PICTURES = 10_000  # of each side: kernel distance is an average over small subsets, more of them change little
_KID_SUBSET = 1000


# -- networks --------------------------------------------------------------------------------------------------


class PictureFeatures(nn.Module):
    """One network as torchmetrics takes it: pictures (B, 3, H, W) in 0..1, of any size -> features (B, num_features)."""

    def __init__(
        self, name: str, network: nn.Module, num_features: int, side: int, mean: Sequence[float], deviation: Sequence[float]
    ):
        super().__init__()
        self.name, self.network, self.num_features, self.side = name, network, num_features, side
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None])

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """As the class says."""
        return self._features(self._resized(pixels))

    @torch.no_grad()
    def of_pictures(self, pictures: Sequence[Image.Image]) -> Tensor:
        """RGB pictures, each of a size of its own -> (len(pictures), num_features)."""
        return self._features(torch.cat([self._resized(as_tensor(picture)[None]) for picture in pictures]))

    def _resized(self, pixels: Tensor) -> Tensor:
        """Sizes are made equal here, with antialiasing, or distances between sets of different sizes would be the resizer's."""
        return F.interpolate(pixels.to(self.mean), (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)

    def _features(self, pixels: Tensor) -> Tensor:
        if self.name == "inception":
            return self.network((pixels * 255).round().byte())
        pixels = (pixels - self.mean) / self.deviation
        if self.name == "clip":
            return self.network.get_image_features(pixel_values=pixels).pooler_output
        return self.network(pixel_values=pixels).last_hidden_state[:, 0]


def load_picture_features(directory: str | Path) -> PictureFeatures:
    """The network in a local directory: Inception by its usual file, else what config.json says (dinov2, clip).

    ModelError names the file that is needed, or the package for Inception.
    """
    from transformers import CLIPModel, Dinov2Model

    directory = Path(directory)
    if (directory / INCEPTION_FILE).is_file():
        return _inception(directory / INCEPTION_FILE)
    if not (directory / "config.json").is_file():
        raise ModelError(
            f"{directory}: no weights for distances of sets: {INCEPTION_FILE} (FID's Inception) or a DINOv2 or CLIP in "
            "Hugging Face layout (config.json, model.safetensors) must lie there; nothing is downloaded"
        )
    if read_model_type(directory) == "clip":
        model = local_model(directory, CLIPModel, "clip")
        side, size = model.config.vision_config.image_size, model.config.projection_dim
        return PictureFeatures("clip", model, size, side, CLIP_MEAN, CLIP_DEVIATION).eval()
    model = local_model(directory, Dinov2Model, "dinov2")
    side = 224 // model.config.patch_size * model.config.patch_size
    return PictureFeatures("dinov2", model, model.config.hidden_size, side, IMAGENET_MEAN, IMAGENET_DEVIATION).eval()


def _inception(file: Path) -> PictureFeatures:
    tensors = dict(read_tensors(file))
    try:
        import torch_fidelity  # noqa: F401
        from torchmetrics.image.fid import NoTrainInceptionV3
    except (ImportError, RuntimeError) as error:  # a torchvision for another torch raises RuntimeError
        raise ModelError(
            f"{file}: FID's Inception needs the package torch-fidelity and the torchvision of this torch ({error}); install "
            "them, or name a DINOv2 directory, which needs neither"
        ) from None
    # torch-fidelity unpickles its file, so it is given one that we wrote from nothing but tensors.
    with tempfile.NamedTemporaryFile(suffix=".pth") as tensors_only:
        torch.save(tensors, tensors_only.name)
        try:
            network = NoTrainInceptionV3("inception-v3-compat", ["2048"], tensors_only.name)
        except (RuntimeError, KeyError) as error:
            raise ModelError(f"{file}: not the weights of FID's Inception: {str(error).splitlines()[0]}") from None
    return PictureFeatures("inception", network, 2048, _INCEPTION_SIDE, (0.0,) * 3, (1.0,) * 3).eval()


# -- distances -------------------------------------------------------------------------------------------------


class SetDistance:
    """Frechet and kernel distance between features of real and of generated pictures. They are added batch by batch; neither
    order nor batches change a distance. Memory: KID_PICTURES features a side, and sums."""

    def __init__(self, features: str, num_features: int):
        from torchmetrics.image.fid import FrechetInceptionDistance

        self.features = features
        self.counts = {True: 0, False: 0}
        self._frechet = FrechetInceptionDistance(feature=_Given(num_features))
        self._sample = {side: _Sample(KID_PICTURES) for side in (True, False)}

    def add(self, features: Tensor, real: bool) -> None:
        """Features (B, num_features) of real or of generated pictures."""
        features = features.detach().cpu()
        self._frechet.update(features.double(), real=real)
        self._sample[real].add(features.float())
        self.counts[real] += len(features)

    def compute(self, seed: int = 0) -> dict[str, float]:
        """fid, kid and, where there are more pictures than a subset takes, kid_std for Inception, else names that end in the
        network's; empty with fewer than two pictures on either side, as `counts` then says. Fewer pictures than features make
        the Frechet distance too large: the kernel distance is the one to read."""
        if min(self.counts.values()) < 2:
            return {}
        of = "" if self.features == "inception" else f"_{self.features}"
        mean, deviation = self._kernel(seed)
        frechet = float(self._frechet.compute())
        subsets_differ = min(self.counts.values()) > _KID_SUBSET
        found = {f"{'fid' if not of else 'frechet'}{of}": frechet, f"kid{of}": mean}
        return found | ({f"kid_std{of}": deviation} if subsets_differ else {})

    def _kernel(self, seed: int) -> tuple[float, float]:
        from torchmetrics.image.kid import KernelInceptionDistance

        real, generated = (self._sample[side].features() for side in (True, False))
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # that it keeps features: ours are bounded
            kernel = KernelInceptionDistance(_Given(real.shape[1]), subset_size=min(_KID_SUBSET, len(real), len(generated)))
            torch.manual_seed(seed)
            kernel.update(real, real=True)
            kernel.update(generated, real=False)
            mean, deviation = kernel.compute()
        return float(mean), float(deviation)


class _Sample:
    """At most `most` of the features that were added, drawn by their own bytes: the same ones in whatever order they came."""

    def __init__(self, most: int):
        self.most = most
        self._draws, self._parts = np.zeros(0, np.uint64), []
        self._limit = 2**64 - 1  # a higher draw has `most` lower ones already

    def add(self, features: Tensor) -> None:
        draws = np.array([int.from_bytes(blake2b(row.tobytes(), digest_size=8).digest()) for row in features.numpy()], np.uint64)
        kept = draws <= self._limit
        self._draws = np.concatenate([self._draws, draws[kept]])
        self._parts.append(features[torch.from_numpy(kept)])
        if len(self._draws) > 2 * self.most:  # not at every batch: each time all that is kept is copied
            self._prune()

    def features(self) -> Tensor:
        """(at most `most`, num_features)."""
        self._prune()
        return self._parts[0]

    def _prune(self) -> None:
        order = np.argsort(self._draws, kind="stable")[: self.most]
        self._draws, self._parts = self._draws[order], [torch.cat(self._parts)[torch.from_numpy(order)]]
        if len(order) == self.most:
            self._limit = int(self._draws[-1])


class _Given(nn.Module):
    """What torchmetrics calls its network, for features that were made elsewhere."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features
