"""Variants of a pair: their seeds, fingerprints and ranks, and what a plan carries when there are more of them, or fewer."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from support.engine import GREEDY, assert_same, requests, small_engine
from support.evaluations import draw_shop
from support.models import small_config, small_model, small_prompter
from support.runs import CAMPAIGN, begin, commit_parts, commit_plan, make_lineage, make_rows, pair_ids, planned_pairs
from support.shops import Night, SmallShop, rules, small_shop

from adgen.config import validate_settings
from adgen.creatives import layout
from adgen.creatives.commands import number_of
from adgen.creatives.compaction import ManifestWriter
from adgen.creatives.erasure import forget
from adgen.creatives.journal import Journal, from_parquet
from adgen.creatives.publish import finish
from adgen.creatives.pull import pull
from adgen.creatives.ranking import distance, ranked, ranks_of
from adgen.creatives.reading import open_published
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import Verification, _RowsSeen, verify
from adgen.errors import SettingsError
from adgen.evaluation.scoring.networks import NetworkPaths
from adgen.finishing.report import build_report
from adgen.generation.engine import Engine
from adgen.generation.engine_settings import EngineSettings
from adgen.generation.layers import StepLayers
from adgen.generation.sampling_settings import SamplingSettings
from adgen.on_ray.refresh.settings import PlanSettings, RefreshSettings
from adgen.on_ray.scoring.workers import ScoreShard, ScoringContext, packed, whole_parts
from adgen.records import FAILED, LINEAGE, MANIFEST, OK, REJECTED, pair_seed, variant_seed
from adgen.shop.inputs.tables import open_inputs


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    return small_shop(tmp_path / "inputs")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


def committed(night: Night) -> dict[tuple[str, int], dict]:
    """The night's manifest rows by pair and variant; each pair's ranks are 0, 1, ..."""
    rows = [row for part in night.parts for row in night.journal.read_part(part.index).to_pylist()]
    by_pair: dict[str, list[int]] = {}
    for row in rows:
        by_pair.setdefault(row["pair_id"], []).append(row["rank"])
    assert all(sorted(ranks) == list(range(len(ranks))) for ranks in by_pair.values())
    found = {(row["pair_id"], row["variant"]): row for row in rows}
    assert len(found) == len(rows)
    return found


# -- seeds and fingerprints ------------------------------------------------------------------------------------------


def test_the_first_attempt_at_variant_0_has_the_pairs_own_seed_and_no_other_attempt_shares_one():
    seeds = [variant_seed(pair, variant, attempt) for pair in (3, 4) for variant in range(12) for attempt in range(9)]
    assert (seeds[0], seeds[12 * 9]) == (3, 4)
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    # For ever: published creatives are made again from it.
    assert variant_seed(variant_seed(3, 1), 0, 2) == variant_seed(3, 1, 2) == 154365812818143369


def test_a_fingerprint_of_variant_0_is_what_it_was_before_there_were_variants():
    made_by = rules().maker
    assert made_by.fingerprint("product", ["click"], 5) == made_by.fingerprint("product", ["click"], 5, 0)
    # For ever: published creatives are carried by it.
    assert made_by.fingerprint("product", ["click"], 5) == "0eb46bf8830cf1e916a100d4638ea1642640d37311e69cb2ef60808f70af4035"
    assert len({made_by.fingerprint("product", ["click"], 5, variant) for variant in range(16)}) == 16


# -- the plan --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_variants_keep_those_that_are_there_and_fewer_drop_the_highest(shop, folder):
    one = shop.night(folder)
    three = shop.night(folder, one, variants=3)
    assert (three.summary.pairs, three.summary.to_generate, three.summary.carried) == (20, 40, 20)
    assert {row["variant"] for row in three.generate} == {1, 2}
    again = shop.night(folder, three, variants=3)
    assert (again.summary.to_generate, again.summary.carried) == (0, 60)
    assert committed(again).keys() == committed(three).keys()
    five = shop.night(folder, again, variants=5)
    assert (five.summary.to_generate, five.summary.carried, {row["variant"] for row in five.generate}) == (40, 60, {3, 4})
    two = shop.night(folder, five, variants=2)
    assert (two.summary.pairs, two.summary.to_generate, two.summary.carried) == (20, 0, 40)
    before, left = committed(five), committed(two)
    assert set(left) == {key for key in before if key[1] < 2}
    for key, row in left.items():
        made_by = one if key[1] == 0 else three
        assert (row["fingerprint"], row["carried_from"]) == (before[key]["fingerprint"], made_by.journal.run_id)


def test_each_variant_has_its_seed_its_lineage_and_a_fingerprint_of_its_own(shop, folder):
    night = shop.night(folder, variants=3)
    rows = committed(night)
    assert len(rows) == len({row["fingerprint"] for row in rows.values()}) == 60
    for (pair, variant), row in rows.items():
        assert row["seed"] == variant_seed(pair_seed(pair, 7), variant)
    lineage = [row for part in night.parts for row in night.journal.read_lineage(part.index).to_pylist()]
    assert {(row["pair_id"], row["variant"], row["seed"]) for row in lineage} == {(*key, row["seed"]) for key, row in rows.items()}


def test_a_pairs_variants_lie_in_one_shard_and_a_shard_counts_pairs(shop, folder):
    one = shop.night(folder, pairs_per_shard=7)
    night = shop.night(folder, one, variants=3, pairs_per_shard=7)
    assert [part.rows for part in night.parts] == [21, 21, 18]
    held = [set(night.journal.read_plan_part(part)["pair_id"].to_pylist()) for part in night.parts]
    assert [len(pairs) for pairs in held] == [7, 7, 6]
    assert len(set.union(*held)) == 20
    carried = shop.night(folder, night, variants=3, pairs_per_shard=7, carried_per_shard=12)
    assert [part.rows for part in carried.parts] == [12, 12, 12, 12, 12]


def test_a_limit_counts_pairs(shop, folder):
    whole = shop.night(folder, variants=3)
    few = shop.night(folder, variants=3, limit=7)
    assert (few.summary.pairs, few.summary.to_generate) == (7, 21)
    assert few.generate == whole.generate[:21]


def test_a_plan_of_one_variant_is_the_plan_that_it_was(shop, folder, tmp_path):
    night = shop.night(folder)
    assert "carried" not in night.journal.read_plan_part(night.parts[0]).column_names
    assert shop.night(open_storage(tmp_path / "another"), variants=1).parts == night.parts


def test_one_variant_that_failed_is_tried_again_beside_the_others(shop, folder):
    first = shop.night(folder, variants=3, failed=lambda row: row["variant"] == 1)
    assert {row["rank"] for row in committed(first).values() if row["status"] == FAILED} == {2}
    second = shop.night(folder, first, variants=3)
    assert (second.summary.to_generate, second.summary.tried_again, second.summary.carried) == (20, 20, 40)
    assert {(row["variant"], row["attempt"]) for row in second.generate} == {(1, 1)}
    assert len(second.beside) == 40


def test_an_input_unreadable_tonight_keeps_all_variants_that_are_there_and_makes_no_more(shop, folder):
    first = shop.night(folder, variants=2)
    (shop.folder / shop.products["p4"]["cutout"]).unlink()
    second = shop.night(folder, first, variants=3)
    stale = {key for key, row in committed(second).items() if row["stale"]}
    assert stale == {(row["pair_id"], row["variant"]) for row in first.generate if row["product_id"] == "p4"} != set()
    assert second.summary.planned_failures == 0


def test_a_bad_pair_is_one_row_whatever_the_number_of_variants(shop, folder):
    shop.pairs.append(("u1", "nobody made this", None, None))
    night = shop.night(folder, variants=3)
    assert [row["variant"] for row in night.generate if row["reason"]] == [0]
    assert (night.summary.pairs, night.summary.to_generate, night.summary.planned_failures) == (21, 60, 1)


def test_a_changed_product_makes_all_variants_anew(shop, folder):
    first = shop.night(folder, variants=3)
    shop.products["p4"]["title"] = "brand new name"
    second = shop.night(folder, first, variants=3)
    assert not second.beside
    assert second.summary.to_generate == 3 * len(second.made) > 0


# -- ranks -----------------------------------------------------------------------------------------------------------


def row(variant: int, status: str = OK, title: str = "red mug", gates: dict | None = None, **scores: float) -> dict:
    own = {"variant": variant, "status": status, "title": title, "gates": gates or {}, "scores": scores}
    return own | {"title_source": "model", "picture_source": "model"}


def test_a_rejected_variant_ranks_behind_every_good_one_and_a_failed_one_last():
    rows = [row(0, FAILED), row(1, REJECTED, allowed_words=1.0), row(2, allowed_words=0.1), row(3, allowed_words=0.9)]
    assert ranks_of(rows) == [3, 2, 1, 0]


def test_a_gate_that_warns_comes_before_every_score():
    warned = {"title_length": "warn: 80 columns wide"}
    assert ranks_of([row(0, gates=warned, allowed_words=1.0), row(1, gates={"title_length": "ok"}, allowed_words=0.1)]) == [1, 0]


@pytest.mark.parametrize(("column", "substitute"), [("title_source", "template"), ("picture_source", "plain")])
def test_what_the_model_made_itself_comes_before_a_template_and_a_plain_background(column: str, substitute: str):
    warned = row(1, gates={"title_length": "warn: 80 columns wide"}, allowed_words=0.1)
    assert ranks_of([row(0, allowed_words=1.0) | {column: substitute}, warned]) == [1, 0]
    assert ranks_of([row(0) | {column: None}, row(1)]) == [0, 1]  # made before there were templates


@pytest.mark.parametrize("name", ["allowed_words", "product_inside", "style_agreement"])
def test_each_score_decides_where_all_else_is_equal(name):
    assert ranks_of([row(0, **{name: 0.2}), row(1, **{name: 0.8})]) == [1, 0]


def test_equal_variants_rank_by_their_numbers_and_a_missing_score_is_no_handicap():
    assert ranks_of([row(2), row(0), row(1)]) == [2, 0, 1]
    assert ranks_of([row(0), row(1, style_agreement=0.9), row(2, style_agreement=0.1)]) == [1, 0, 2]


def test_the_second_rank_goes_to_what_differs_from_the_first():
    colours = [{"background_red": r, "background_green": 9.0, "background_blue": 9.0} for r in (200.0, 199.0, 10.0)]
    rows = [row(n, allowed_words=w, **colour) for n, (w, colour) in enumerate(zip((0.9, 0.89, 0.85), colours, strict=True))]
    assert ranks_of(rows) == [0, 2, 1]
    assert ranks_of([row(0, title="红色 茶杯"), row(1, title="红色 茶杯"), row(2, title="蓝色 水壶")]) == [0, 2, 1]
    assert distance(rows[0], rows[0]) == 0
    assert distance(row(0, title=""), row(1, title="mug")) == 1


def test_ranks_are_a_function_of_a_pairs_rows_wherever_they_stand():
    pairs = ["a" * 32, "b" * 32]
    table = pa.concat_tables([make_rows(None, pairs), make_rows(None, pairs, status=REJECTED), make_rows(None, ["c" * 32])])
    table = table.set_column(2, "variant", pa.array([0, 0, 1, 1, 0], pa.int32()))
    assert ranked(table)["rank"].to_pylist() == [0, 0, 1, 1, 0]
    assert ranked(table.take([3, 0, 4, 2, 1]))["rank"].to_pylist() == [1, 0, 0, 1, 0]
    assert ranked(table.slice(0, 0)).num_rows == 0


# -- what consumers see ----------------------------------------------------------------------------------------------


def publish(store: Storage, num_pairs: int = 5, variants: int = 3, look: str = "plain") -> list[dict]:
    """A published run of so many variants of each pair; its rows. A pair's highest variant ranks first."""
    pairs = pair_ids(num_pairs)
    tables = []
    for variant in range(variants):
        rows = make_rows(store, pairs, f"{look} {variant}")
        for name, value in (("variant", variant), ("rank", variants - 1 - variant)):
            index = rows.schema.get_field_index(name)
            rows = rows.set_column(index, MANIFEST.field(name), pa.array([value] * num_pairs, pa.int32()))
        tables.append(rows)
    table = pa.concat_tables(tables)
    run = begin(store, f"{look} {variants}")
    journal = Journal(store, CAMPAIGN, run.run_id)
    planned = planned_pairs(table["pair_id"].to_pylist()).append_column("variant", table["variant"])
    commit_parts(journal, [journal.write_plan_part(0, planned)])
    lineage = make_lineage(table["pair_id"].to_pylist())
    lineage = lineage.set_column(lineage.schema.get_field_index("variant"), LINEAGE.field("variant"), table["variant"])
    journal.commit_part(journal.unfinished()[0], table, lineage)
    finish(run)
    return table.to_pylist()


def pictures_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.glob("objects/*/*")}


def test_a_run_counts_pairs_and_creatives(store: Storage):
    publish(store)
    counts = open_published(store, CAMPAIGN).run.counts
    assert (counts.pairs, counts.rows, counts.ok) == (5, 15, 15)
    assert verify(store, CAMPAIGN).problems == []


def test_pairs_are_counted_across_the_files_of_a_manifest(store: Storage, tmp_path: Path):
    table = pa.Table.from_pylist(publish(store), MANIFEST).sort_by([("user_key", "ascending"), ("pair_id", "ascending")])
    writer = ManifestWriter(store, CAMPAIGN, "20260101000000-000000-00000000", tmp_path, rows_per_file=4)
    for start in range(0, 15, 2):
        writer.write(table.slice(start, 2))
    files, counts = writer.close()
    assert (len(files), counts.pairs, counts.rows) == (4, 5, 15)


def test_fewer_variants_are_no_fewer_good_creatives_to_hold_a_run_for(store: Storage):
    publish(store, variants=5)
    run = begin(store, "fewer")
    rows = make_rows(store, pair_ids(5))
    journal = commit_plan(run, pair_ids(5), 5)
    journal.commit_part(journal.unfinished()[0], rows, make_lineage(pair_ids(5)))
    finish(run, min_ok_share=0.5)
    assert (run.document.state, open_published(store, CAMPAIGN).run.run_id) == ("COMPLETE", run.run_id)


def test_verify_finds_ranks_that_are_none_and_a_wrong_number_of_pairs(store: Storage):
    publish(store)
    reader = open_published(store, CAMPAIGN)
    rows = reader.table(reader.run.manifest[0])
    rows = rows.set_column(3, "rank", pa.array([0, 1, 1, *rows["rank"].to_pylist()[3:]], pa.int32()))
    seen, found = _RowsSeen(), Verification("r")
    seen.see(rows.to_pylist(), False, found)
    seen.end(found)
    assert found.problems == [f"pair {rows['pair_id'][0].as_py()}: its 3 variants have the ranks 0, 1, 1"]
    assert seen.counts["pairs"] == 5
    key = layout.run_document(CAMPAIGN, reader.run.run_id)
    wrong = reader.run.model_copy(update={"counts": reader.run.counts.model_copy(update={"pairs": 4})})
    store.swap(key, wrong.to_bytes(), store.get(key).etag)
    assert verify(store, CAMPAIGN).problems == ["run.json counts 4 pairs, the manifest has 5"]
    old = reader.run.model_copy(update={"counts": reader.run.counts.model_copy(update={"pairs": None})})
    store.swap(key, old.to_bytes(), store.get(key).etag)
    assert verify(store, CAMPAIGN).problems == []


def test_a_pull_takes_the_first_rank_unless_told_and_a_mirror_holds_no_more_than_it_was_asked_for(store: Storage, tmp_path: Path):
    rows, dest = publish(store), tmp_path / "pulled"
    wanted = {count: {row["uri"] for row in rows if row["rank"] < count} for count in (1, 2, 3)}
    assert (pull(store, CAMPAIGN, dest).rows, pictures_in(dest)) == (5, wanted[1])
    assert verify(open_storage(dest), CAMPAIGN, variants=1).problems == []
    assert verify(open_storage(dest), CAMPAIGN).missing == 10
    assert (pull(store, CAMPAIGN, dest, variants=None).fetched, pictures_in(dest)) == (10, wanted[3])
    assert verify(open_storage(dest), CAMPAIGN).problems == []
    assert (pull(store, CAMPAIGN, dest, variants=2, keep_withdrawn=True).withdrawn, pictures_in(dest)) == (5, wanted[3])
    assert (pull(store, CAMPAIGN, dest, variants=2).withdrawn, pictures_in(dest)) == (5, wanted[2])
    assert (pull(store, CAMPAIGN, dest, variants=9).fetched, pictures_in(dest)) == (5, wanted[3])
    fewer = publish(store, variants=2)
    assert (pull(store, CAMPAIGN, dest).withdrawn, pictures_in(dest)) == (10, {row["uri"] for row in fewer if row["rank"] == 0})


def test_a_pull_since_a_run_knows_only_the_variants_that_it_pulled(store: Storage, tmp_path: Path):
    publish(store)
    before = open_published(store, CAMPAIGN).run.run_id
    publish(store, variants=2)  # variant 1 ranks first now
    assert pull(store, CAMPAIGN, tmp_path / "one", since=before).fetched == 5
    assert pull(store, CAMPAIGN, tmp_path / "all", since=before, variants=None).fetched == 0


@pytest.mark.parametrize("typed", ["0", "-1", "two", "", "1.5", "²"])
def test_a_number_of_variants_that_is_none_is_refused(typed: str):
    with pytest.raises(SettingsError, match="a number from 1 on, or all"):
        number_of(typed)
    assert (number_of("all"), number_of("12")) == (None, 12)


def test_forgetting_a_user_removes_all_variants(store: Storage):
    rows = publish(store)
    user = f"user-{rows[0]['pair_id'][:1]}"
    theirs = {row["uri"] for row in rows if f"user-{row['pair_id'][:1]}" == user}
    assert len(theirs) % 3 == 0
    assert forget(store, b"key", [user], patience_seconds=0).objects == len(theirs)
    left = list(open_published(store, CAMPAIGN).rows())
    assert {row["uri"] for row in left} == {row["uri"] for row in rows} - theirs
    assert all(store.head(uri) is None for uri in theirs)
    assert verify(store, CAMPAIGN).problems == []


def test_variants_are_a_number_from_1_to_16_and_leave_the_digest_of_one_alone():
    assert PlanSettings(variants=1).digest() == PlanSettings().digest() != PlanSettings(variants=2).digest()
    for number in (0, -1, 17):
        with pytest.raises(SettingsError, match=rf"plan.variants: .*\(value {number}\)"):
            validate_settings(RefreshSettings, {"plan": {"variants": number}}, "refresh.toml")


@pytest.mark.parametrize("variants", [1, None])
def test_an_evaluation_looks_at_the_first_rank_unless_told(tmp_path: Path, variants: int | None):
    rows = publish(open_storage(tmp_path / "store"))
    reader = open_published(open_storage(tmp_path / "store"), CAMPAIGN)
    inputs = open_inputs(str(draw_shop(tmp_path / "shop")), ["products"])
    where = ScoringContext(str(tmp_path / "store"), S3Access(), CAMPAIGN, reader.run.run_id, inputs, NetworkPaths(), "cpu")
    stage = ScoreShard(replace(where, only_best=variants == 1))
    [item] = whole_parts(stage.journal.read_plan().parts)
    scored = from_parquet(stage(packed(item))["scores"]).to_pylist()
    names = {(row["pair_id"], 0 if variants else row["variant"], row["uri"]) for row in rows if row["rank"] < (variants or 3)}
    assert {(row["pair_id"], row["variant"], row["uri"]) for row in scored} == names
    assert len(scored) == 5 * (variants or 3)


def test_a_report_shows_variant_and_rank_where_pairs_have_several(store: Storage):
    publish(store, num_pairs=2)
    page, count = build_report(store, CAMPAIGN)
    assert count == 6
    assert [f"variant {2 - rank}, rank {rank}" in page for rank in range(3)] == [True] * 3
    assert "<b>2</b><span>pairs</span>" in page
    publish(store, num_pairs=2, variants=1, look="alone")
    page, count = build_report(store, CAMPAIGN)
    assert count == 2
    assert "rank" not in page


# -- the engine ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", [False, True])
def test_variants_read_their_prompt_once_and_draw_what_they_would_draw_alone(monkeypatch, noise: bool):
    """To the bit, whatever stands between them; with a noised history every seed has a prompt of its own."""
    sampling = SamplingSettings(max_title_tokens=12, preference_noise=noise)
    first, second, *_ = requests()
    asked = [first, replace(first, seed=variant_seed(11, 1)), second, replace(first, seed=variant_seed(11, 2))]
    alone = Engine(small_model(), small_prompter(), EngineSettings(num_slots=4), sampling)
    expected = [alone.generate([request])[0] for request in asked]
    engine = Engine(small_model(), small_prompter(), EngineSettings(num_slots=4), sampling)
    engine._ready_runner()
    read = []
    prefill = StepLayers.prefill
    monkeypatch.setattr(StepLayers, "prefill", lambda layers, embeds, row: read.append(row.length) or prefill(layers, embeds, row))
    made = engine.generate(asked)
    assert read.count(0) == (4 if noise else 2)  # an empty row is one whose prompt is read
    assert_same(made, expected)
    assert len({result.codes.numpy().tobytes() for result in made}) == 4


def test_style_agreement_is_that_of_the_picture_with_its_own_clicks_and_none_without_clicks():
    styled = small_config().preference.model_copy(update={"residual": True, "style_layers": 2, "agreement_weighting": 8.0})
    engine = Engine(small_model(preference=styled), small_prompter(), EngineSettings(), GREEDY)
    asked = requests()[:3]
    made = engine.generate(asked)
    whole = engine.style_agreements(asked, made)
    assert whole[2] is None  # no clicked picture
    assert whole[:2] == [
        engine.style_agreements([request], [result])[0] for request, result in zip(asked[:2], made[:2], strict=True)
    ]
    assert all(-1 <= agreement <= 1 for agreement in whole[:2])
    assert engine.style_agreements([asked[1]], [made[0]]) != [whole[0]]
    plain = small_engine()
    assert plain.style_agreements(asked, plain.generate(asked)) == [None] * 3
