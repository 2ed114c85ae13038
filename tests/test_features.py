"""adgen/evaluation/features.py: what stored features say together, against the same computed at once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adgen.errors import SettingsError
from adgen.evaluation.distribution import SetDistance
from adgen.evaluation.features import (
    FEATURE_ROWS,
    FEATURES,
    from_bytes,
    seed_diversity,
    set_distance,
    to_bytes,
    user_diversity,
)
from adgen.evaluation.similarity import diversity

SIZE, USERS, PRODUCTS, SEEDS = 6, 5, 4, 3


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random ones, as precise as they are stored."""
    return torch.randn(*shape, SIZE, generator=torch.Generator().manual_seed(seed)).half().float()


def row(user: int, product: int, variant: int = 0, **given: torch.Tensor | None) -> dict:
    stored = {name: value if value is None else to_bytes(value) for name, value in given.items()}
    ids = {"pair_id": f"pair-{user}-{product}", "user_key": f"user-{user}", "product_id": f"product-{product}", "variant": variant}
    return ids | dict.fromkeys(("background", "picture", "reference")) | stored


def write(folder, rows: list[dict], part: int = 5):
    """Rows in parts, in an order that is nobody's."""
    (folder / FEATURES).mkdir(parents=True)
    rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    for start in range(0, len(rows), part):
        pq.write_table(pa.Table.from_pylist(rows[start : start + part], FEATURE_ROWS), folder / FEATURES / f"{start:06d}.parquet")
    return folder


def test_features_come_back_as_they_were_stored():
    [feature] = features(1)
    assert np.array_equal(from_bytes(to_bytes(feature)), feature.numpy())


def test_diversity_between_seeds_is_that_of_each_pair_s_creatives(tmp_path):
    backgrounds = features(USERS, PRODUCTS, SEEDS)
    made = [row(u, p, s, background=backgrounds[u, p, s]) for u in range(USERS) for p in range(PRODUCTS) for s in range(SEEDS)]
    folder = write(tmp_path, [*made, row(0, 9, 0, background=backgrounds[0, 0, 0]), row(1, 9, 0)])
    found = seed_diversity(folder, 200, 0)
    singly = diversity(backgrounds.flatten(0, 1))
    assert found.mean == pytest.approx(float(singly.mean()), abs=1e-6)
    assert (found.rows, found.users) == (USERS * PRODUCTS, USERS), "a pair with one picture, and one with none, says nothing"
    assert found.low < found.mean < found.high


def test_diversity_between_users_compares_users_and_not_seeds(tmp_path):
    backgrounds = features(USERS, PRODUCTS)
    rows = [row(u, p, s, background=backgrounds[u, p] * (-1) ** s) for u in range(USERS) for p in range(PRODUCTS) for s in (0, 1)]
    again = row(0, 0, background=-backgrounds[0, 0]) | {"pair_id": "pair-0-0-in another channel"}
    found = user_diversity(write(tmp_path, [*rows, again]), 200, 0)
    assert found.mean == pytest.approx(float(diversity(backgrounds.transpose(0, 1)).mean()), abs=1e-6)
    assert (found.rows, found.users) == (PRODUCTS, PRODUCTS)


def test_a_product_for_one_user_has_no_diversity(tmp_path):
    folder = write(tmp_path, [row(u, u, background=features(1)[0]) for u in range(3)])
    assert user_diversity(folder, 200, 0) is None
    assert seed_diversity(folder, 200, 0) is None


def test_alike_pictures_have_no_diversity_and_opposite_ones_two(tmp_path):
    [one] = features(1)
    same = write(tmp_path / "same", [row(u, 0, background=one) for u in range(3)])
    assert user_diversity(same, 200, 0).mean == pytest.approx(0, abs=1e-6)
    opposite = write(tmp_path / "opposite", [row(0, 0, background=one), row(1, 0, background=-one)])
    assert user_diversity(opposite, 200, 0).mean == pytest.approx(2, abs=1e-6)


def test_distances_are_those_of_all_pictures_and_a_reference_counts_once(tmp_path):
    made, real = features(20, 2, seed=1), features(20, seed=2) + 1
    rows = [row(u, 0, s, picture=made[u, s], reference=real[u]) for u in range(20) for s in (0, 1)]
    found, counts = set_distance(write(tmp_path, [*rows, row(20, 0)]), "dinov2", 0)
    straight = SetDistance("dinov2", SIZE)
    straight.add(made.flatten(0, 1), real=False)
    straight.add(real, real=True)
    assert counts == {"creatives": 40, "references": 20}
    assert found == pytest.approx(straight.compute(), rel=2e-3)
    assert found["frechet_dinov2"] > 1


def test_too_few_pictures_make_no_distance(tmp_path):
    folder = write(tmp_path, [row(0, 0, picture=features(1)[0])])
    assert set_distance(folder, "inception", 0) == ({}, {"creatives": 1, "references": 0})
    with pytest.raises(SettingsError, match="no evaluation lies there"):
        set_distance(tmp_path / "nowhere", "inception", 0)
