"""Reading, comparing, mirroring and serving a manifest takes memory that does not grow with it."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import CAMPAIGN

from adgen.creatives import layout
from adgen.creatives.compaction import ManifestWriter
from adgen.creatives.documents import Pointer, RunDocument, utc_now
from adgen.creatives.folder import FolderStorage
from adgen.records import MANIFEST

MIB = 2**20
ROWS_AT_ONCE = 20_000
RUN = """
import resource, sys
from adgen.creatives import open_campaign
from adgen.creatives.pull import pull
what, store, campaign, before, mirror = sys.argv[1:]
run = open_campaign(store, campaign).published()
rows = run.run.counts.rows
if what == "rows":
    assert sum(1 for _ in run.rows(["user_key", "uri", "sha256", "bytes"])) == rows
elif what == "tables":
    assert sum(table.num_rows for table in run.tables()) == rows
elif what == "served":
    import itertools
    from adgen.on_ray.serving.published import Published
    published = Published(run.storage, bytes(32), follow_seconds=60)
    wanted = itertools.islice(run.rows(["user_key", "product_id"]), 0, rows, rows // 300)
    for row in list(wanted):
        found, _ = published.find(campaign, row["product_id"], row["user_key"], None, None)
        assert found["product_id"] == row["product_id"]
elif what == "changes":
    assert sum(1 for _ in run.changes_since(before)) == rows // 10
else:
    done = pull(run.storage, campaign, mirror)
    assert done.unavailable == rows, "the pictures are nowhere: all but their transfer is done"
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def rows(first: int, count: int, look: str) -> pa.Table:
    """Rows as hard to compress as real ones; each tenth depends on `look`."""
    numbers = range(first, first + count)
    pairs = [hashlib.sha256(b"%d" % number).hexdigest() for number in numbers]
    looks = [look if number % 10 == 0 else "" for number in numbers]
    pictures = [hashlib.sha256(f"{pair} {each}".encode()).hexdigest() for pair, each in zip(pairs, looks, strict=True)]
    columns = {
        "pair_id": [pair[:32] for pair in pairs],
        "user_key": [f"{number // 4:08x}{pairs[0][:24]}" for number in numbers],
        "product_id": [f"p{number % 50_000}" for number in numbers],
        "title": [f"Plain {each} mug number {number}, keeps warm" for each, number in zip(looks, numbers, strict=True)],
        "uri": [layout.object_key(sha256, "webp") for sha256 in pictures],
        "sha256": pictures,
        "fingerprint": [pair[32:] for pair in pairs],
    }
    same = {"schema_version": 1, "variant": 0, "rank": 0, "status": "ok", "stale": False, "bytes": 30_000, "format": "webp"}
    arrays = {name: pa.array(values) for name, values in columns.items()}
    arrays |= {name: pa.repeat(pa.scalar(value, MANIFEST.field(name).type), count) for name, value in same.items()}
    return pa.table({f.name: arrays.get(f.name, pa.nulls(count, f.type)) for f in MANIFEST}, MANIFEST)


def publish(store: FolderStorage, count: int, look: str) -> str:
    """A published run of so many rows; its id."""
    run_id, now = layout.new_run_id(), utc_now()
    with tempfile.TemporaryDirectory() as folder:
        writer = ManifestWriter(store, CAMPAIGN, run_id, Path(folder))
        for first in range(0, count, ROWS_AT_ONCE):
            writer.write(rows(first, ROWS_AT_ONCE, look))
        files, counts = writer.close()
    about = {"campaign": CAMPAIGN, "run_id": run_id, "resume_key": "x", "created_at": now, "updated_at": now}
    run = RunDocument(**about, state="COMPLETE", counts=counts, manifest=files)
    store.put(layout.run_document(CAMPAIGN, run_id), run.to_bytes())
    before = store.get(layout.pointer(CAMPAIGN))
    pointer = Pointer(generation=2 if before else 1, run_id=run_id, published_at=now, manifest_digest=run.manifest_digest())
    store.swap(layout.pointer(CAMPAIGN), pointer.to_bytes(), before.etag if before else None)
    return run_id


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Two stores, the second with five times the rows: where, and the run before the published one."""
    found = []
    for count in (200_000, 1_000_000):
        store = FolderStorage(tmp_path_factory.mktemp("store"))
        before = publish(store, count, "old")
        publish(store, count, "new")
        found.append((store.uri, before))
    return found


@pytest.mark.parametrize("what", ["rows", "tables", "changes", "pull", "served"])
def test_five_times_the_rows_take_the_same_memory(stores, tmp_path, what):
    peaks = []
    for place, (uri, before) in enumerate(stores):
        command = [sys.executable, "-c", RUN, what, uri, CAMPAIGN, before, str(tmp_path / str(place))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    assert peaks[1] < peaks[0] + 100 * MIB
    assert peaks[1] < 500 * MIB
