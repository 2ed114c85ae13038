"""Features of an evaluation's pictures, for what only many pictures say together: how far apart those of one pair or one
product are, and how far the set of all is from the references.

They lie beside the rows, a part a shard, as half-precision bytes: a thousandth of a feature is nothing to a mean of them, and
a million creatives are read again as a stream and sorted out of memory.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from adgen.evaluation.distribution import SetDistance
from adgen.evaluation.statistics import Bootstrap, Estimate
from adgen.evaluation.stored_rows import opened, read_rows

FEATURES = "features"  # the folder of the parts within an evaluation
FEATURE_ROWS = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("variant", pa.int32(), nullable=False),
        pa.field("user_key", pa.string(), nullable=False),
        pa.field("product_id", pa.string(), nullable=False),
        pa.field("background", pa.binary()),
        pa.field("picture", pa.binary()),
        pa.field("reference", pa.binary()),
    ]
)
"""What a background encoder makes of a creative, and what the network of distances makes of it and of its reference."""
SEED_DIVERSITY, USER_DIVERSITY = "seed_diversity", "user_diversity"


def to_bytes(feature: Tensor) -> bytes:
    """(D,) as it is stored."""
    return feature.detach().cpu().numpy().astype("<f2").tobytes()


def from_bytes(stored: bytes) -> np.ndarray:
    """(D,) in fp32."""
    return np.frombuffer(stored, "<f2").astype(np.float32)


# -- diversity -----------------------------------------------------------------------------------------------------------------


def seed_diversity(folder: Path, resamples: int, seed: int) -> Estimate | None:
    """1 - cosine of backgrounds of one pair's creatives, mean over pairs that have several; None where no pair has. Users are
    drawn for the interval."""
    rows = _sorted(folder, "user_key, pair_id, variant")
    return _diversity(SEED_DIVERSITY, rows, lambda row: (row["user_key"], row["pair_id"]), resamples, seed)


def user_diversity(folder: Path, resamples: int, seed: int) -> Estimate | None:
    """1 - cosine of backgrounds of one product's creatives for different users, mean over products that have several; None
    where no product has. A user counts once a product, with the first seed. Products are drawn for the interval."""
    rows = _sorted(folder, "product_id, user_key, pair_id", "variant = 0")
    firsts = (next(group) for _, group in itertools.groupby(rows, lambda row: (row["product_id"], row["user_key"])))
    return _diversity(USER_DIVERSITY, firsts, lambda row: (row["product_id"], row["product_id"]), resamples, seed)


def _sorted(folder: Path, order: str, where: str = "true") -> Iterator[dict[str, Any]]:
    query = f"SELECT pair_id, variant, user_key, product_id, background FROM here WHERE {where} AND background IS NOT NULL"
    with opened(FEATURES, here=folder) as base:
        for batch in base.sql(f"{query} ORDER BY {order}").to_arrow_reader(4096):
            yield from batch.to_pylist()


def _diversity(
    name: str, rows: Iterator[dict[str, Any]], key: Callable[[dict], tuple[str, str]], resamples: int, seed: int
) -> Estimate | None:
    """rows in the order of `key`: (what is drawn for the interval, whose pictures are compared)."""
    bootstrap = Bootstrap((name,), resamples, seed)
    for (drawn, _), group in itertools.groupby(rows, key):
        if (value := _mean_distance(from_bytes(row["background"]) for row in group)) is not None:
            bootstrap.add([drawn], np.array([[value]]))
    return bootstrap.estimates().get(name)


def _mean_distance(features: Iterator[np.ndarray]) -> float | None:
    """`similarity.diversity` of features that stream by: of unit vectors the sum alone says how alike they are."""
    total, count = 0.0, 0
    for feature in features:
        total, count = total + feature / max(float(np.linalg.norm(feature)), 1e-6), count + 1
    return float(1 - (np.dot(total, total) - count) / (count * (count - 1))) if count > 1 else None


# -- distances -----------------------------------------------------------------------------------------------------------------


def set_distance(folder: Path, network: str, seed: int) -> tuple[dict[str, float], dict[str, int]]:
    """Distances of all creatives from all references, as `SetDistance` names them, and how many pictures there were of either;
    without distances where there are too few. A reference counts once, whatever the seeds."""
    distance: SetDistance | None = None
    for batch in read_rows(folder, ("variant", "picture", "reference"), FEATURES):
        firsts = batch.filter(pc.equal(batch["variant"], 0))
        for side, column in ((False, batch["picture"]), (True, firsts["reference"])):
            features = _stacked(column.drop_null().to_pylist())
            if features is not None:
                distance = distance or SetDistance(network, features.shape[1])
                distance.add(features, real=side)
    counts = distance.counts if distance else {False: 0, True: 0}
    return (distance.compute(seed) if distance else {}), {"creatives": counts[False], "references": counts[True]}


def _stacked(stored: Sequence[bytes]) -> Tensor | None:
    return torch.from_numpy(np.stack([from_bytes(each) for each in stored])) if stored else None
