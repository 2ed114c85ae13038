"""adgen/evaluation/pictures/distances.py, clip_score.py, local_weights.py: real loading code on small random networks."""

import json
import math
import sys

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from support.networks import save_clip, save_dinov2

from adgen.errors import InputError, ModelError
from adgen.evaluation.pictures import distances as distribution
from adgen.evaluation.pictures.backgrounds import load_dinov2
from adgen.evaluation.pictures.clip_score import TitlePictureScore
from adgen.evaluation.pictures.distances import INCEPTION_FILE, SetDistance, load_picture_features


@pytest.fixture(scope="module")
def dinov2(tmp_path_factory):
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return save_clip(tmp_path_factory.mktemp("clip"))


def pictures(number: int, seed: int = 0, shift: float = 0.0) -> torch.Tensor:
    return (torch.rand(number, 3, 40, 40, generator=torch.Generator().manual_seed(seed)) * 0.5 + shift).clamp(0, 1)


@pytest.mark.parametrize("kind", ["dinov2", "clip"])
def test_distances_through_a_local_network(kind, request):
    network = load_picture_features(request.getfixturevalue(kind))
    near, far = SetDistance(network.name, network.num_features), SetDistance(network.name, network.num_features)
    for part in (slice(0, 10), slice(10, 24)):  # in batches
        for distance, shift in ((near, 0.0), (far, 0.4)):
            distance.add(network(pictures(24, 1)[part]), real=True)
            distance.add(network(pictures(24, 2, shift)[part]), real=False)
    near, far = near.compute(), far.compute()
    assert list(near) == [f"frechet_{kind}", f"kid_{kind}"], "all subsets are the whole: they have no deviation"
    assert all(math.isfinite(value) for value in (*near.values(), *far.values()))
    assert far[f"frechet_{kind}"] > 2 * near[f"frechet_{kind}"]
    assert far[f"kid_{kind}"] > near[f"kid_{kind}"]


def test_the_frechet_distance_is_the_closed_form_s():
    """Two sets whose covariances are equal: what is left is the squared distance of their means."""
    features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    distance = SetDistance("inception", 4)
    distance.add(features, real=True)
    distance.add(features + torch.tensor([3.0, 0, 4.0, 0]), real=False)
    found = distance.compute()
    assert found["fid"] == pytest.approx(25, rel=1e-4)
    assert found == distance.compute(), "the same seed, the same subsets"


def test_subsets_of_many_pictures_have_a_deviation(monkeypatch):
    monkeypatch.setattr(distribution, "_KID_SUBSET", 20)
    distance = SetDistance("inception", 4)
    for real in (True, False):
        distance.add(torch.randn(60, 4, generator=torch.Generator().manual_seed(int(real))), real=real)
    assert list(distance.compute()) == ["fid", "kid", "kid_std"]
    assert distance.compute()["kid_std"] > 0


def test_neither_order_nor_batches_change_a_distance(monkeypatch):
    monkeypatch.setattr(distribution, "KID_PICTURES", 20)
    features = {real: torch.randn(60, 4, generator=torch.Generator().manual_seed(real)) + real for real in (0, 1)}
    straight, turned = SetDistance("dinov2", 4), SetDistance("dinov2", 4)
    for real, rows in features.items():
        straight.add(rows, real=bool(real))
        for part in rows.flip(0).split(7):
            turned.add(part, real=bool(real))
    assert straight.compute() == pytest.approx(turned.compute(), rel=1e-6)
    kept = straight._sample[True].features()
    assert len(kept) == 20
    assert not torch.equal(kept.sort(0).values, features[1][:20].sort(0).values), "not the first ones: parts come as they are done"


def test_pictures_of_other_sizes_have_nearly_the_same_features(dinov2):
    network = load_picture_features(dinov2)
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    small = torch.nn.functional.interpolate(ramp, 32, mode="area")
    assert torch.cosine_similarity(network(ramp), network(small)).item() > 0.999


def test_one_picture_makes_no_distance():
    distance = SetDistance("inception", 4)
    distance.add(torch.ones(1, 4), real=True)
    distance.add(torch.ones(5, 4), real=False)
    assert distance.compute() == {}
    assert distance.counts == {True: 1, False: 5}


def test_missing_weights_are_named(tmp_path, dinov2):
    with pytest.raises(ModelError, match=rf"{INCEPTION_FILE}.*nothing is downloaded"):
        load_picture_features(tmp_path)
    (tmp_path / "config.json").write_text((dinov2 / "config.json").read_text())
    with pytest.raises(ModelError, match=r"model\.safetensors.* is missing; weights are never downloaded"):
        load_picture_features(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="not a dinov2 that transformers can load"):
        load_dinov2(tmp_path)
    config = json.loads((dinov2 / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes((dinov2 / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    with pytest.raises(ModelError, match=r"key encoder\.layer\.1\..* is missing"):
        load_dinov2(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(ModelError, match="model_type is 'vit', expected dinov2"):
        load_picture_features(tmp_path)
    with pytest.raises(ModelError, match="no such directory"):
        load_dinov2(tmp_path / "elsewhere")


def test_loading_says_nothing(dinov2, capfd):
    load_dinov2(dinov2)
    assert capfd.readouterr() == ("", "")


def test_a_file_of_inception_is_never_unpickled(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"weight": Evil()}, tmp_path / INCEPTION_FILE)
    with pytest.raises(ModelError, match="not unpickled"):
        load_picture_features(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_inception_says_which_package_it_needs(tmp_path, monkeypatch):
    torch.save({"weight": torch.zeros(1)}, tmp_path / INCEPTION_FILE)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ModelError, match=rf"{INCEPTION_FILE}: FID's Inception needs the package torch-fidelity"):
        load_picture_features(tmp_path)


def test_clip_scores_pictures_with_their_titles(clip):
    rng = np.random.default_rng(0)
    shown = [Image.fromarray(rng.integers(0, 256, (50, 40, 3), np.uint8)) for _ in range(4)]
    titles = ["red mug", "a title that has many more letters than positions", "", "红色马克杯"]
    whole, halves = TitlePictureScore(clip), TitlePictureScore(clip)
    whole.add(shown, titles)
    halves.add(shown[:2], titles[:2])
    halves.add(shown[2:], titles[2:])
    assert 0 <= whole.compute()["clip_score"] <= 100
    assert whole.compute()["clip_score"] == pytest.approx(halves.compute()["clip_score"], abs=1e-3)
    singly = []
    for picture, title in zip(shown, titles, strict=True):
        singly.append(_cosine(clip, picture, title))
    assert whole.compute()["clip_score"] == pytest.approx(max(0, np.mean(singly)), abs=0.01)
    assert whole.each(shown, titles) == pytest.approx([max(0, each) for each in singly], abs=0.01)
    assert whole.each([], []) == []


def _cosine(clip, picture, title) -> float:
    """By transformers' own forward, which divides by the norms and multiplies by the temperature."""
    model = transformers.CLIPModel.from_pretrained(clip).eval()
    ids = transformers.CLIPTokenizer.from_pretrained(clip)([title], truncation=True, max_length=16, return_tensors="pt")
    pixels = transformers.CLIPImageProcessorPil.from_pretrained(clip)([picture], return_tensors="pt")
    with torch.no_grad():
        return float(model(**ids, **pixels).logits_per_image / model.logit_scale.exp() * 100)


def test_clip_names_what_is_missing(tmp_path, clip, dinov2):
    with pytest.raises(InputError, match="there are 1 and 0"):
        TitlePictureScore(clip).add([Image.new("RGB", (32, 32))], [])
    assert TitlePictureScore(clip).compute() == {}
    with pytest.raises(ModelError, match="model_type is 'dinov2', expected clip"):
        TitlePictureScore(dinov2)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    with pytest.raises(ModelError, match=r"preprocessor_config\.json or processor_config\.json is missing"):
        TitlePictureScore(tmp_path)
