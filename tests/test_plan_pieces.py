"""The plan in pieces: any number of buckets, parts and processes make the same plan, and a dead planner leaves none."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from support.runs import WrappedStorage
from support.shops import CAMPAIGN, MODEL, SmallShop, encoders, rules, small_shop

from adgen.creatives import layout
from adgen.creatives.journal import Journal
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.errors import InputError
from adgen.shop.catalog.catalog import CatalogPlace, build_catalog
from adgen.shop.plan import buckets as plan_buckets
from adgen.shop.plan import plan
from adgen.shop.plan.buckets import clear_buckets, read_bucket, split_inputs, split_published
from adgen.shop.plan.plan import make_plan
from adgen.shop.plan.rows import plan_bucket, rows_to_make


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    return small_shop(tmp_path / "inputs")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


def test_the_number_of_buckets_changes_nothing(shop, folder, tmp_path):
    night = shop.night(folder)
    inputs, catalog = shop.save(), shop.catalog(folder)
    found = []
    for count in (1, 8):
        clear_buckets(tmp_path / "b")
        for table in ("pairs", "histories"):
            split_inputs(inputs, table, tmp_path / "b", count)
        plans = [plan_bucket(rules(), read_bucket(tmp_path / "b", number), catalog) for number in range(count)]
        found.append([row for each in plans for row in rows_to_make(each.generate).to_pylist()])
    assert found[0] == found[1] == night.generate


def test_a_split_in_parts_equals_a_split_at_once(shop, folder, tmp_path):
    night = shop.night(folder)
    inputs, catalog = shop.save(), shop.catalog(folder)
    for table in ("pairs", "histories"):
        split_inputs(inputs, table, tmp_path / "b", 4, files=inputs[table].files, part=3)
    for number, index in enumerate(sorted(night.journal.done())):
        split_published(night.journal, tmp_path / "b", 4, [index], part=number)
    plans = [plan_bucket(rules(base_run="r"), read_bucket(tmp_path / "b", n), catalog) for n in range(4)]
    assert sum(each.carry.num_rows for each in plans) == len(shop.pairs)


@pytest.mark.slow
def test_catalog_and_plan_are_the_same_from_processes_of_their_own(shop, folder, tmp_path):
    whole = shop.night(folder)
    another, scratch = open_storage(tmp_path / "another"), tmp_path / "apart"
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        place = CatalogPlace(another, MODEL, CAMPAIGN, scratch / "cache")
        catalog = build_catalog(shop.save(), place, encoders(), scratch, run=pool.map)
        journal = Journal(another, CAMPAIGN, layout.new_run_id())
        parts, summary = make_plan(rules(), shop.save(), catalog, journal, scratch / "plan", run=pool.map)
    assert (parts, summary) == (whole.parts, whole.summary)


@pytest.mark.slow
def test_buckets_split_in_two_steps_make_the_same_plan(shop, folder, monkeypatch):
    first = shop.night(folder)
    shop.products["p4"]["title"] = "brand new name"
    whole = shop.night(folder, first)
    monkeypatch.setattr(plan, "plan_bucket_count", lambda _: 16)
    monkeypatch.setattr(plan_buckets, "MOST_OPEN", 4)
    fine = shop.night(folder, first)
    assert (fine.parts, fine.summary) == (whole.parts, whole.summary)
    assert whole.generate
    assert whole.carry
    assert plan_buckets.plan_bucket_count(10**9) == 65_536  # of sixteen thousand pairs each


@pytest.mark.parametrize("limit", [None, 7])
def test_a_plan_of_ray_tasks_is_the_serial_plan(ray_cluster, shop, folder, tmp_path, monkeypatch, limit):
    from adgen.on_ray.refresh.plan_tasks import map_buckets

    monkeypatch.setattr(plan, "plan_bucket_count", lambda _: 8)
    first = shop.night(folder)
    shop.products["p4"]["title"] = "brand new name"
    serial = shop.night(folder, first, limit=limit)
    spread = shop.night(folder, first, limit=limit, run=map_buckets)
    assert (spread.parts, spread.summary) == (serial.parts, serial.summary)
    assert serial.generate
    assert serial.carry


def test_bucket_tasks_keep_the_order_and_read_no_further_than_the_cpus_reach(ray_cluster):
    from adgen.on_ray.refresh.plan_tasks import map_buckets

    read = []
    plans = map_buckets(lambda number: number * number, (read.append(number) or number for number in range(9)))
    for done, square in enumerate(plans, start=1):
        assert square == (done - 1) ** 2
        assert len(read) <= done + 2  # two CPUs
    assert done == 9


def test_an_error_in_a_bucket_task_is_the_planners_own_error(ray_cluster, shop, folder):
    from adgen.on_ray.refresh.plan_tasks import map_buckets

    def lose(_):
        raise InputError("product 'p1' has no row")

    with pytest.raises(InputError, match=r"^product 'p1' has no row$"):
        list(map_buckets(lose, [1, 2, 3]))


def test_a_planner_that_dies_leaves_no_plan_and_the_next_one_is_whole(shop, folder, tmp_path):
    whole = shop.night(folder)

    class Full(WrappedStorage):
        def act(self, name: str, *arguments):
            if name == "put":
                raise OSError("no space left")
            return super().act(name, *arguments)

    journal = Journal(Full(folder), "autumn", whole.journal.run_id)
    with pytest.raises(OSError, match="no space"):
        make_plan(rules(), shop.save(), shop.catalog(folder), journal, tmp_path / "plan")
    assert shop.night(folder).parts == whole.parts
