"""A plan over a published run that is replaced while it is read."""

from types import SimpleNamespace

import pytest
from support.runs import CAMPAIGN, make_rows, pair_ids, publish_rows

from adgen.creatives.publish import read_pointer
from adgen.errors import OwnedElsewhere, StoreError
from adgen.on_ray.refresh.planning import over_published


def published(store, look: str) -> str:
    return publish_rows(store, make_rows(store, pair_ids(2), look)).run.run_id


@pytest.fixture
def prepared(store) -> SimpleNamespace:
    return SimpleNamespace(storage=store, settings=SimpleNamespace(campaign=CAMPAIGN))


def test_a_plan_starts_again_over_the_run_that_took_the_place_of_the_one_it_read(prepared, store):
    seen, first = [], published(store, "plain")

    def plan(base_run):
        seen.append(base_run)
        if len(seen) == 1:
            published(store, "without somebody")
            raise StoreError(f"the journal of {base_run}: not there")
        return "a plan"

    pointer, etag, made = over_published(prepared, plan)
    assert made == "a plan"
    assert seen == [first, pointer.run_id]
    assert (pointer, etag) == read_pointer(store, CAMPAIGN)
    assert pointer.run_id != first


def test_what_is_wrong_with_the_run_that_is_published_still_stops_a_plan(prepared, store):
    published(store, "plain")
    tries = []

    def plan(base_run):
        tries.append(base_run)
        raise StoreError("its journal: not there")

    with pytest.raises(StoreError, match="its journal"):
        over_published(prepared, plan)
    assert len(tries) == 1


@pytest.mark.parametrize(("error", "most"), [(StoreError("not there"), 3), (OwnedElsewhere("another driver"), 1)])
def test_a_store_that_changes_all_the_time_ends_a_plan(prepared, store, error, most):
    tries = []

    def plan(base_run):
        tries.append(base_run)
        published(store, f"night {len(tries)}")
        raise error

    with pytest.raises(type(error)):
        over_published(prepared, plan)
    assert len(tries) == most
