"""Tables that an earlier version wrote, without a column that came since, are read with the column's default."""

from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import CAMPAIGN, begin, commit_plan, make_lineage, make_rows, pair_ids
from support.shops import SmallShop, small_shop

from adgen import records
from adgen.creatives import compaction, journal, parts
from adgen.creatives.publish import finish
from adgen.creatives.reading import open_published
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError, StoreError
from adgen.shop.plan import buckets, plan
from adgen.shop.plan import published as published_rows
from adgen.shop.plan import rows as plan_rows

ADDED = pa.field("mood", pa.string(), nullable=False)


@pytest.fixture
def store(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    return small_shop(tmp_path / "inputs")


@pytest.fixture
def next_version(monkeypatch):
    """Call it: from now on manifest and lineage have one column more, at their end."""

    def begins():
        manifest, lineage = records.MANIFEST.append(ADDED), records.LINEAGE.append(pa.field("clicks_asked", pa.int32()))
        lineage_only = [field for field in lineage if field.name not in manifest.names]
        published = pa.schema([*manifest, *(field.with_nullable(True) for field in lineage_only)])
        for module in (records, compaction, journal, parts, plan_rows, buckets):
            for name, schema in (("MANIFEST", manifest), ("LINEAGE", lineage)):
                if hasattr(module, name):
                    monkeypatch.setattr(module, name, schema)
        monkeypatch.setattr(records, "LATER_COLUMNS", records.LATER_COLUMNS | {"mood": "calm", "clicks_asked": 10})
        monkeypatch.setattr(buckets, "LINEAGE_ONLY", lineage_only)
        for module in (buckets, published_rows):
            monkeypatch.setattr(module, "PUBLISHED", published)
        monkeypatch.setitem(buckets._SCHEMAS, "published", published)
        for module in (plan_rows, plan):
            monkeypatch.setattr(module, "PLAN_CARRY", published)

    return begins


def publish(store: Storage, rows: pa.Table) -> journal.Journal:
    run = begin(store)
    shards = commit_plan(run, rows["pair_id"].to_pylist(), 100)
    shards.commit_part(shards.unfinished()[0], rows, make_lineage(rows["pair_id"].to_pylist()))
    finish(run)
    return shards


def test_a_manifest_without_a_later_column_is_read_with_its_default(store, next_version):
    before = publish(store, make_rows(store, pair_ids(5)))
    next_version()
    assert [row["mood"] for row in open_published(store, CAMPAIGN).rows()] == ["calm"] * 5
    assert before.read_part(0).column_names[-1] == "mood"
    assert before.read_lineage(0)["clicks_asked"].to_pylist() == [10] * 5
    assert verify(store, CAMPAIGN).problems == []


def test_a_run_whose_shards_were_done_before_the_column_came_is_published_after(store, next_version):
    run = begin(store)
    shards = commit_plan(run, pair_ids(6), 3)
    done, left = shards.unfinished()
    shards.commit_part(done, make_rows(store, pair_ids(3)), make_lineage(pair_ids(3)))
    next_version()
    rows = make_rows(store, pair_ids(3, 3)).append_column(ADDED, pa.array(["wild"] * 3))
    lineage = make_lineage(pair_ids(3, 3)).append_column("clicks_asked", pa.array([7] * 3, pa.int32()))
    shards.commit_part(left, rows, lineage)
    finish(run)
    assert sorted(row["mood"] for row in open_published(store, CAMPAIGN).rows()) == ["calm"] * 3 + ["wild"] * 3


def test_creatives_of_a_run_before_the_column_came_are_carried(shop, store, next_version):
    first = shop.night(store)
    next_version()
    second = shop.night(store, first)
    assert (second.summary.carried, second.summary.to_generate) == (first.summary.pairs, 0)
    assert {(row["mood"], row["clicks_asked"]) for row in second.carry} == {("calm", 10)}


def test_the_columns_of_the_provenance_may_be_missing_in_lineage(store, monkeypatch):
    """They came within 0.1.0."""
    old = pa.schema([field for field in records.LINEAGE if field.name not in records.LATER_COLUMNS])
    monkeypatch.setattr(journal, "LINEAGE", old)
    run = begin(store)
    shards = commit_plan(run, pair_ids(2), 2)
    shards.commit_part(shards.unfinished()[0], make_rows(store, pair_ids(2)), make_lineage(pair_ids(2)).select(old.names))
    monkeypatch.undo()
    assert shards.read_lineage(0).schema.names == records.LINEAGE.names


def test_a_table_without_a_column_that_was_always_there_is_refused(store, monkeypatch):
    shards = publish(store, make_rows(store, pair_ids(2)))
    wanted = records.MANIFEST.append(ADDED)
    monkeypatch.setattr(parts, "MANIFEST", wanted)
    monkeypatch.setattr(journal, "MANIFEST", wanted)
    with pytest.raises(ConsumerError, match="column mood is missing"):
        list(open_published(store, CAMPAIGN).rows())
    with pytest.raises(StoreError, match="column mood is missing"):
        shards.read_part(0)


def test_defaults_fit_their_columns():
    schemas = (records.MANIFEST, records.LINEAGE, plan_rows.PLAN_PAIRS)
    for name, value in records.LATER_COLUMNS.items():
        fields = [schema.field(name) for schema in schemas if name in schema.names]
        assert fields, f"no table has the later column {name}"
        assert all(pa.scalar(value, field.type).is_valid or field.nullable for field in fields)
