"""A refresh from tables to published creatives, with a small random model, on a folder and on S3. On Ray: test_replay."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.here import without_ray
from support.refreshes import CAMPAIGN, access_of, published_rows, run, settings

from adgen.creatives import erasure
from adgen.creatives.erasure import forget
from adgen.creatives.journal import Journal
from adgen.creatives.publish import read_pointer
from adgen.creatives.ranking import COLOUR
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs
from adgen.creatives.secrets import DEVELOPMENT_KEYS
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError, InputError, ModelError, OwnedElsewhere, RunError, SettingsError
from adgen.on_ray.refresh.dry_run import forecast
from adgen.on_ray.refresh.job import Summary
from adgen.on_ray.refresh.replay import replay
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.records import user_key
from adgen.shop.plan import buckets

pytestmark = [pytest.mark.usefixtures("no_ray"), pytest.mark.slow]


@pytest.fixture
def own_shop(shop: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(shop, tmp_path / "own-shop"))


@pytest.fixture(scope="module")
def refreshed(shop, model, tmp_path_factory) -> tuple[RefreshSettings, Summary]:
    """A refresh on a folder, and what came of it; tests copy what they change."""
    made = settings(shop, str(tmp_path_factory.mktemp("refreshed") / "store"), model)
    with without_ray():
        return made, run(made)


def test_a_campaign_is_refreshed_verified_and_carried(shop, model, store_uri, request):
    made = settings(shop, store_uri, model, access_of(store_uri, request))
    first = run(made)
    assert (first.published, first.state) == (True, "COMPLETE")
    assert (first.pairs, first.generated, first.carried, first.failed) == (12, 12, 0, 0)
    assert first.engine_calls == 12
    storage = open_storage(made.store, made.s3)
    checked = verify(storage, CAMPAIGN)
    assert (checked.ok, checked.missing, checked.mismatched) == (12, 0, 0)
    before = published_rows(made)

    second = run(made)
    assert second.published
    assert second.run_id != first.run_id
    assert (second.generated, second.carried, second.engine_calls) == (0, 12, 0)
    after = published_rows(made)
    changing = {"carried_from"}
    assert after.keys() == before.keys()
    for pair, row in after.items():
        assert {k: v for k, v in row.items() if k not in changing} == {k: v for k, v in before[pair].items() if k not in changing}
        assert row["carried_from"] == first.run_id


def test_a_user_forgotten_while_the_published_run_is_read_stops_no_refresh(refreshed, shop, model, tmp_path, monkeypatch):
    """`forget` publishes a copy of that run and removes it: the plan goes on over the copy."""
    shutil.copytree(refreshed[0].store, tmp_path / "store")
    made = settings(shop, str(tmp_path / "store"), model)
    storage, user = open_storage(made.store), pq.read_table(shop / "pairs.parquet")["user_id"][0].as_py()
    ask, base = buckets.lost_objects, read_pointer(storage, CAMPAIGN)[0].run_id

    def forgotten_first(journal: Journal):
        if journal.run_id == base:
            with pytest.raises(OwnedElsewhere):
                forget(storage, DEVELOPMENT_KEYS["campaign_key"], [user])
        return ask(journal)

    monkeypatch.setattr(buckets, "lost_objects", forgotten_first)
    monkeypatch.setattr(erasure, "living_runs", lambda storage, runs, patience: {run.run_id for run in runs if run.unfinished})
    theirs = pc.sum(pc.equal(pq.read_table(shop / "pairs.parquet")["user_id"], user)).as_py()
    done = run(made)
    assert (done.published, done.generated, done.carried) == (True, 0, 12 - theirs)
    assert base not in {found.run_id for found in list_runs(storage, CAMPAIGN)}
    key = user_key(DEVELOPMENT_KEYS["user_secret"], user)
    assert key not in {row["user_key"] for row in published_rows(made).values()}


def test_more_variants_are_made_beside_those_that_are_there_ranked_and_made_again_byte_by_byte(refreshed, shop, model, tmp_path):
    before, first = refreshed
    store = str(shutil.copytree(before.store, tmp_path / "store"))
    of = lambda number: settings(shop, store, model, plan={"pairs_per_shard": 5, "variants": number})  # noqa: E731
    three = run(of(3))
    assert (three.pairs, three.creatives, three.generated, three.carried, three.engine_calls) == (12, 36, 24, 12, 24)
    assert verify(open_storage(store), CAMPAIGN).problems == []
    rows = list(open_published(open_storage(store), CAMPAIGN).rows())
    there = published_rows(before)
    for row in rows:
        was = there[row["pair_id"]]
        assert (row["carried_from"] == first.run_id) == (row["sha256"] == was["sha256"]) == (row["variant"] == 0)
        assert {*COLOUR} <= dict(row["scores"]).keys() or row["variant"] == 0
    found = next(row for row in rows if row["variant"] == 2 and row["status"] == "ok")
    again = replay(open_storage(store), CAMPAIGN, found["pair_id"], 2)
    assert (again.outcome, again.variant, again.sha256) == ("equal_bytes", 2, found["sha256"])
    best = next(row for row in rows if (row["pair_id"], row["rank"]) == (found["pair_id"], 0))
    assert replay(open_storage(store), CAMPAIGN, found["pair_id"]).variant == best["variant"]
    with pytest.raises(ConsumerError, match=r"has no variant 3 in run .*; it has 0, 1, 2"):
        replay(open_storage(store), CAMPAIGN, found["pair_id"], 3)
    two = run(of(2))
    assert (two.pairs, two.creatives, two.generated, two.carried) == (12, 24, 0, 24)
    assert verify(open_storage(store), CAMPAIGN).problems == []


def test_no_user_id_outside_private(refreshed, shop):
    store = Path(refreshed[0].store)
    users = pq.read_table(shop / "pairs.parquet")["user_id"].unique().to_pylist()
    needles = [user.encode() for user in users] + [b"development user secret", b"development campaign key"]
    for path in store.rglob("*"):
        inside = path.relative_to(store).parts
        if not path.is_file() or inside[0] in ("private", "catalog"):
            continue
        texts = [path.read_bytes()]
        if path.suffix == ".parquet":
            texts.append(str(pq.read_table(path).to_pylist()).encode())
        assert not any(needle in text for needle in needles for text in texts), path


def test_one_product_changed_makes_exactly_its_pairs_anew(refreshed, own_shop, model, tmp_path):
    before, first = refreshed
    made = settings(own_shop, str(shutil.copytree(before.store, tmp_path / "store")), model)
    lineage = lineage_rows(made, first.run_id)
    target = lineage[0]["product_id"]
    touched = {row["pair_id"] for row in lineage if row["product_id"] == target or target in row["history_ids"]}
    assert 0 < len(touched) < 12

    path = own_shop / "products.parquet"
    products = pq.read_table(path)
    ids, titles = (products[name].to_pylist() for name in ("product_id", "title"))
    changed = [title + " new" if product == target else title for product, title in zip(ids, titles, strict=True)]
    pq.write_table(products.set_column(products.schema.get_field_index("title"), "title", pa.array(changed)), path)
    second = run(made)
    assert second.published
    after = lineage_rows(made, second.run_id)
    touched |= {row["pair_id"] for row in after if row["product_id"] == target or target in row["history_ids"]}
    anew = {pair for pair, row in published_rows(made).items() if row["carried_from"] is None}
    assert anew == touched
    assert second.engine_calls == len(touched)


def lineage_rows(made: RefreshSettings, run_id: str) -> list[dict]:
    journal = Journal(open_storage(made.store, made.s3), CAMPAIGN, run_id)
    return [row for part in journal.read_plan().parts for row in journal.read_lineage(part.index).to_pylist()]


def test_bad_pictures_become_rows_with_a_reason_and_the_rest_goes_on(own_shop, model, tmp_path):
    products = pq.read_table(own_shop / "products.parquet").to_pylist()
    wanted = pq.read_table(own_shop / "pairs.parquet")["product_id"].unique().to_pylist()
    cutouts = {row["product_id"]: own_shop / row["cutout"] for row in products if row["cutout"]}
    broken, tiny, gone = [cutouts[product] for product in wanted if product in cutouts][:3]
    broken.write_bytes(broken.read_bytes()[:300])
    Image.new("RGBA", (1, 1)).save(tiny)
    gone.unlink()
    made = settings(own_shop, str(tmp_path / "store"), model, failures={"max_failed_share": 1.0})
    summary = run(made)
    assert summary.published
    assert summary.failed + summary.generated == 12
    assert summary.failed >= 3
    assert {"missing_file", "too_small"} <= summary.reasons.keys()
    assert summary.reasons.keys() <= {"missing_file", "too_small", "truncated", "unreadable"}
    rows = published_rows(made).values()
    assert all(row["uri"] is None and row["reason"] for row in rows if row["status"] == "failed")


def test_a_product_that_changed_since_the_plan_is_input_changed(own_shop, model, tmp_path, monkeypatch):
    from adgen.on_ray.refresh import job as module

    products = pq.read_table(own_shop / "products.parquet").to_pylist()
    wanted = pq.read_table(own_shop / "pairs.parquet")["product_id"].to_pylist()[0]
    cutout = next(own_shop / row["cutout"] for row in products if row["product_id"] == wanted)
    plan = module.make_plan

    def plan_then_change(*arguments):
        plan(*arguments)
        picture = Image.open(cutout).convert("RGBA")
        picture.putpixel((0, 0), (1, 2, 3, 255))
        picture.save(cutout)

    monkeypatch.setattr(module, "make_plan", plan_then_change)
    summary = run(settings(own_shop, str(tmp_path / "store"), model, failures={"max_failed_share": 1.0}))
    assert summary.reasons.keys() == {"input_changed"}


def test_all_of_the_first_shard_failing_stops_the_run(own_shop, model, tmp_path):
    for row in pq.read_table(own_shop / "products.parquet").to_pylist():
        if row["cutout"]:
            (own_shop / row["cutout"]).unlink()
    made = settings(own_shop, str(tmp_path / "store"), model)
    with pytest.raises(RunError, match="of the first shard failed"):
        run(made)
    assert read_pointer(open_storage(made.store), CAMPAIGN)[0] is None


def test_a_run_with_a_limit_is_partial_and_published_only_when_told(shop, model, tmp_path):
    made = settings(shop, str(tmp_path / "store"), model, plan={"pairs_per_shard": 5, "limit": 3})
    summary = run(made)
    assert (summary.published, summary.state, summary.pairs) == (False, "PARTIAL", 3)
    told = run(made.model_copy(update={"publish_partial": True}))
    assert told.published
    assert told.pairs == 3


def test_a_dry_run_forecasts_and_publishes_nothing(shop, model, tmp_path):
    made = settings(shop, str(tmp_path / "store"), model, forecast={"seconds_a_creative": 36, "price_an_hour": 2})
    expected = forecast(made)
    assert (expected.pairs, expected.to_generate, expected.carried, expected.shards) == (12, 12, 0, 3)
    assert (expected.engine_hours, expected.cost) == (pytest.approx(0.12), pytest.approx(0.24))
    assert expected.hours == pytest.approx(0.12 / expected.engines)
    assert expected.speed_from == "forecast.seconds_a_creative"
    assert not (tmp_path / "store" / "campaigns").exists()


def test_inputs_models_and_keys_are_refused_before_any_work(own_shop, model, tmp_path):
    made = settings(own_shop, str(tmp_path / "store"), model)
    with pytest.raises(ModelError, match="no such"):
        run(made.model_copy(update={"model": tmp_path / "nowhere"}))
    with pytest.raises(SettingsError, match=r"keys\.user_secret: .*No such file"):
        run(made.model_copy(update={"keys": made.keys.model_copy(update={"user_secret": tmp_path / "none"})}))
    pairs = own_shop / "pairs.parquet"
    pq.write_table(pq.read_table(pairs).slice(0, 0), pairs)
    with pytest.raises(InputError, match="no rows"):
        run(made)
    assert not list((tmp_path / "store").glob("campaigns/*/runs/*"))


def test_the_public_development_keys_are_refused_on_s3(shop, model, s3_uri, s3_access):
    made = settings(shop, s3_uri, model, s3_access, keys={})
    with pytest.raises(SettingsError, match=r"keys\.campaign_key: none given"):
        run(made)
