"""adgen/evaluation/results/features.py: what stored features say together, against the same computed at once."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from adgen.errors import SettingsError
from adgen.evaluation.pictures.distances import SetDistance
from adgen.evaluation.results.diversity import compare_diversity, mean_diversity, write_diversity
from adgen.evaluation.results.features import FEATURE_ROWS, FEATURES, from_bytes, set_distance, to_bytes
from adgen.evaluation.results.set_scores import set_scores

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


def diversities(folder, has_seeds: bool = True) -> dict:
    write_diversity(folder, has_seeds)
    return mean_diversity(folder)


def diversity(features: torch.Tensor) -> torch.Tensor:
    """(P, K, D) -> (P,): the mean of 1 - cosine over each pair of K, by its definition."""
    unit = torch.nn.functional.normalize(features, dim=-1)
    apart = ~torch.eye(features.shape[1], dtype=torch.bool)
    return (1 - unit @ unit.transpose(1, 2))[:, apart].mean(1)


def test_features_come_back_as_they_were_stored():
    [feature] = features(1)
    assert np.array_equal(from_bytes(to_bytes(feature)), feature.numpy())


def test_diversity_between_seeds_is_that_of_each_pair_s_creatives(tmp_path):
    backgrounds = features(USERS, PRODUCTS, SEEDS)
    made = [row(u, p, s, background=backgrounds[u, p, s]) for u in range(USERS) for p in range(PRODUCTS) for s in range(SEEDS)]
    folder = write(tmp_path, [*made, row(0, 9, 0, background=backgrounds[0, 0, 0]), row(1, 9, 0)])
    found = diversities(folder)["seed_diversity"]
    singly = diversity(backgrounds.flatten(0, 1))
    assert found.mean == pytest.approx(float(singly.mean()), abs=1e-6)
    assert (found.rows, found.users) == (USERS * PRODUCTS, USERS), "a pair with one picture, and one with none, says nothing"
    assert found.low < found.mean < found.high


def test_an_interval_of_a_diversity_stays_where_one_can_be(tmp_path):
    """Of four users Student's t reaches far below 0 and above 2."""
    one, other = features(2)
    backgrounds = {0: (one, one), 1: (other, -other), 2: (one, one), 3: (other, -other)}
    made = [row(user, 0, seed, background=both[seed]) for user, both in backgrounds.items() for seed in (0, 1)]
    found = set_scores(write(tmp_path, made), True, "", 0)["seed_diversity"]
    assert (found.value, found.low, found.high) == (pytest.approx(1, abs=1e-3), 0, 2)


def test_diversity_between_users_compares_users_and_not_seeds(tmp_path):
    backgrounds = features(USERS, PRODUCTS)
    rows = [row(u, p, s, background=backgrounds[u, p] * (-1) ** s) for u in range(USERS) for p in range(PRODUCTS) for s in (0, 1)]
    again = row(0, 0, background=-backgrounds[0, 0]) | {"pair_id": "pair-0-0-in another channel"}
    found = diversities(write(tmp_path, [*rows, again]))["user_diversity"]
    assert found.mean == pytest.approx(float(diversity(backgrounds.transpose(0, 1)).mean()), abs=1e-6)
    assert (found.rows, found.users) == (PRODUCTS, PRODUCTS)


def test_a_product_for_one_user_has_no_diversity(tmp_path):
    folder = write(tmp_path, [row(u, u, background=features(1)[0]) for u in range(3)])
    assert diversities(folder) == {}


def test_alike_pictures_have_no_diversity_and_opposite_ones_two(tmp_path):
    [one] = features(1)
    same = write(tmp_path / "same", [row(u, 0, background=one) for u in range(3)])
    assert diversities(same)["user_diversity"].mean == pytest.approx(0, abs=1e-6)
    opposite = write(tmp_path / "opposite", [row(0, 0, background=one), row(1, 0, background=-one)])
    assert diversities(opposite)["user_diversity"].mean == pytest.approx(2, abs=1e-6)


def test_diversities_are_compared_pair_by_pair_and_product_by_product(tmp_path):
    [one], backgrounds = features(1), features(USERS, PRODUCTS, 2, seed=3)
    varied = [row(u, p, s, background=backgrounds[u, p, s]) for u in range(USERS) for p in range(PRODUCTS) for s in (0, 1)]
    alike = [row(u, p, s, background=one) for u in range(USERS) for p in range(1, PRODUCTS) for s in (0, 1)]
    here, there = write(tmp_path / "here", varied), write(tmp_path / "there", alike)
    everything = diversities(here)
    diversities(there)
    found = compare_diversity(here, there)
    seeds, users = found["seed_diversity"], found["user_diversity"]
    assert (seeds.difference.rows, seeds.difference.users) == (USERS * (PRODUCTS - 1), USERS), "of the pairs that both have"
    assert seeds.here == pytest.approx(float(diversity(backgrounds[:, 1:].flatten(0, 1)).mean()), abs=1e-6)
    assert seeds.here != pytest.approx(everything["seed_diversity"].mean, abs=1e-3)
    assert seeds.there == users.there == pytest.approx(0, abs=1e-6)
    assert seeds.difference.mean == pytest.approx(seeds.here - seeds.there)
    assert seeds.difference.is_significant
    assert users.difference.rows == PRODUCTS - 1
    assert compare_diversity(here, tmp_path / "nowhere") == {}


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
