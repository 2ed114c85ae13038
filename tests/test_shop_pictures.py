"""adgen/evaluation/scoring/shop_pictures.py: pictures are read once, seen in batches, and forgotten when there are too many."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.evaluations import save_small_encoder
from support.networks import save_dinov2

from adgen.errors import PairError
from adgen.evaluation.scoring import shop_pictures
from adgen.evaluation.scoring.networks import NetworkPaths, ScoringNetworks, load_networks
from adgen.evaluation.scoring.shop_pictures import ShopPicture, ShopPictures
from adgen.shop.inputs.locations import read_bytes


@pytest.fixture(scope="module")
def networks(tmp_path_factory) -> ScoringNetworks:
    folder = tmp_path_factory.mktemp("networks")
    paths = NetworkPaths(encoder=save_small_encoder(folder / "pbs"), dinov2=save_dinov2(folder / "dinov2"))
    return load_networks(paths, torch.device("cpu"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[ShopPicture]:
    """Seven with their cut-outs, one whose cut-out is of another frame, one without, one broken, one missing, one of nothing but
    product."""
    folder = tmp_path_factory.mktemp("pictures")
    cutout = Image.new("RGBA", (40, 50))
    cutout.paste((0, 200, 0, 255), (10, 10, 30, 40))
    cutout.save(folder / "cutout.png")
    cutout.resize((80, 50)).save(folder / "other.png")
    Image.new("RGBA", (40, 50), (0, 200, 0, 255)).save(folder / "all.png")
    for number in range(8):
        Image.radial_gradient("L").resize((40, 50)).point(lambda value, by=number: value // (by + 1)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    place = lambda image, cutout="cutout.png": ShopPicture(str(folder / image), cutout and str(folder / cutout))  # noqa: E731
    whole = [place(f"{number}.png") for number in range(7)]
    return [
        *whole,
        place("7.png", "other.png"),
        place("7.png", None),
        place("broken.png"),
        place("nowhere.png"),
        place("7.png", "all.png"),
    ]


def test_many_are_seen_as_each_alone_and_read_once(networks, pictures, monkeypatch):
    reads, passes = Counter(), []
    features = shop_pictures.pbs_features
    monkeypatch.setattr(
        shop_pictures, "pbs_features", lambda encoder, images: passes.append(len(images)) or features(encoder, images)
    )

    def counted(uri: str) -> bytes:
        reads[Path(uri).name] += 1
        return read_bytes(uri)

    shop = ShopPictures(networks, counted)
    shop.look_at([*pictures, *pictures])
    assert passes == [10]
    together = [shop.seen(picture) for picture in pictures[:9]]
    assert passes == [10]
    assert reads["0.png"] == 1
    for picture, seen in zip(pictures, together, strict=False):
        alone = ShopPictures(networks, read_bytes).seen(picture)
        assert alone.features.keys() == seen.features.keys()
        for network, feature in alone.features.items():
            assert torch.allclose(feature, seen.features[network], atol=1e-5)


def test_a_background_is_told_only_where_the_product_is_known(networks, pictures):
    shop = ShopPictures(networks, read_bytes)
    shop.look_at(pictures)
    assert shop.seen(pictures[0]).features.keys() == {"pbs", "background"}
    assert shop.seen(pictures[0]).product.max() == 1
    for unknown in (pictures[7], pictures[8]):
        assert shop.seen(unknown).features.keys() == {"pbs"}
        assert shop.seen(unknown).product is None
    assert shop.seen(pictures[11]).features.keys() == {"pbs"}, "nothing but product"


def test_what_cannot_be_read_says_so_every_time(networks, pictures):
    shop = ShopPictures(networks, read_bytes)
    shop.look_at(pictures)
    for _ in range(2):
        with pytest.raises(PairError, match="unreadable"):
            shop.seen(pictures[9])
        with pytest.raises(PairError, match="missing_file"):
            shop.seen(pictures[10])
        with pytest.raises(PairError, match="no picture"):
            shop.seen(ShopPicture(None))


def test_the_oldest_are_forgotten_and_seen_again(networks, pictures, monkeypatch):
    monkeypatch.setattr(shop_pictures, "REMEMBERED", 3)
    shop = ShopPictures(networks, read_bytes)
    first = shop.seen(pictures[0])
    shop.look_at(pictures[1:7])
    assert len(shop._known) == 3
    assert torch.equal(shop.seen(pictures[0]).pixels, first.pixels)
