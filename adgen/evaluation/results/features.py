"""Features of an evaluation's pictures, for what only many pictures say together: how far apart those of one pair or one
product are (diversity.py), and how far the set of all is from the references.

They lie in a folder of their own, a part a shard, as half-precision bytes: a thousandth of a feature is nothing to a mean of
them, and a million creatives are read again as a stream and sorted out of memory.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from adgen.evaluation.pictures.distances import SetDistance
from adgen.evaluation.results.rows import read_rows

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


def to_bytes(feature: Tensor) -> bytes:
    """(D,) as it is stored."""
    return feature.detach().cpu().numpy().astype("<f2").tobytes()


def from_bytes(stored: bytes) -> np.ndarray:
    """(D,) in fp32."""
    return np.frombuffer(stored, "<f2").astype(np.float32)


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
