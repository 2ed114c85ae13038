"""A dataset row is a whole shard, whatever it weighs: Ray Data cuts its blocks at 128 MiB, and never a row of ours."""

import hashlib
from types import SimpleNamespace

from ray.data import DataContext

from adgen.on_ray.cluster_settings import ClusterSettings
from adgen.on_ray.refresh.shards import shards_dataset
from adgen.on_ray.refresh.stages import Stages

MEGABYTE = 2**20
PAIRS = [1, 40, 150, 1]  # of 1 MB each; the third shard alone is more than a block may hold


def weighing_stages() -> Stages:
    """Stages that fill, pass on and count a shard. Pickled by value, so that no worker needs this module."""
    import numpy as np
    import pyarrow as pa

    from adgen.on_ray.refresh.payload import pack, unpack

    class Fill:
        def __init__(self, context, catalog) -> None:
            pass

        def __call__(self, row):
            noise = np.random.default_rng(row["index"])
            pairs = [{"pair_id": f"{row['index']}-{n}", "picture": noise.bytes(2**20)} for n in range(row["rows"])]
            return row | {"shard": pack(pa.Table.from_pylist(pairs))}

    class PassOn:
        def __init__(self, context) -> None:
            pass

        def __call__(self, row):
            pairs = unpack(row["shard"])
            return row | {"shard": pack(pairs), "seen": pairs["pair_id"].to_pylist()}

    class Weigh(PassOn):
        def __call__(self, row):
            pairs = unpack(row["shard"]).to_pylist()
            digest = hashlib.sha256(b"".join(pair["picture"] for pair in pairs)).hexdigest()
            return {"index": row["index"], "seen": row["seen"], "arrived": [pair["pair_id"] for pair in pairs], "digest": digest}

    return Stages(Fill, PassOn, Weigh)


def test_rows_of_a_megabyte_stay_whole_shards(ray_cluster):
    import numpy as np

    assert max(PAIRS) * MEGABYTE > DataContext.get_current().target_max_block_size
    engine = SimpleNamespace(tensor_parallel=1)
    settings = SimpleNamespace(device="cpu", cluster=ClusterSettings(), engine=engine)
    rows = [{"index": index, "rows": count} for index, count in enumerate(PAIRS)]
    arrived = list(shards_dataset(SimpleNamespace(settings=settings), rows, None, weighing_stages()).iter_rows())
    assert sorted(row["index"] for row in arrived) == [0, 1, 2, 3]
    for row in arrived:
        wanted = [f"{row['index']}-{n}" for n in range(PAIRS[row["index"]])]
        assert row["seen"] == row["arrived"] == wanted
        noise = np.random.default_rng(row["index"])
        assert row["digest"] == hashlib.sha256(b"".join(noise.bytes(MEGABYTE) for _ in wanted)).hexdigest()
