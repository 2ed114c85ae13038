"""The plan: what is generated, what is carried, what fails before it starts, and in which shards."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.shops import SmallShop, rules, small_shop

from adgen.creatives.lost_objects import lost_objects
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.tombstones import user_hash
from adgen.on_ray.refresh.context import Context
from adgen.on_ray.refresh.look_up import LookUp
from adgen.on_ray.refresh.settings import RefreshSettings
from adgen.records import FAILED, OK, REJECTED, pair_seed, public_fingerprint, public_resume_key, user_key
from adgen.shop.history import filled
from adgen.shop.plan.fingerprint import is_carried
from adgen.shop.plan.plan import resume_key
from adgen.shop.plan.rows import ForgottenUsers


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    return small_shop(tmp_path / "inputs")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


def pairs_with(night, product: str) -> set[str]:
    """Pairs whose product it is, or whose drawn history holds it."""
    return {pair for pair, row in night.lineage().items() if product == row["product_id"] or product in row["history_ids"]}


def test_a_plan_has_all_that_a_worker_needs(shop, folder):
    night = shop.night(folder)
    assert night.summary.pairs == night.summary.to_generate == len(shop.pairs) == len(night.made)
    for row in night.generate:
        product = shop.products[row["product_id"]]
        assert (row["product_title"], row["selling_points"]) == (product["title"], product["selling_points"])
        assert row["image"] == str(shop.folder / product["image"])
        assert row["cutout"] == (str(shop.folder / product["cutout"]) if product["cutout"] else None)
        assert row["scale"] == pytest.approx(0.7)
        assert row["seed"] == pair_seed(row["pair_id"], 7)
        assert row["user_key"] == user_key(b"the user secret", row["user_id"])
        assert len(row["history_ids"]) == len(row["history_hashes"]) == 3
        assert set(row["history_ids"]) <= set(shop.histories[row["user_id"]]) - {row["product_id"]}
        assert (row["attempt"], row["reason"], row["variant"], len(row["cutout_hash"])) == (0, None, 0, 64)


def test_the_same_inputs_give_the_same_bytes_of_every_plan_part(shop, folder, tmp_path):
    first = shop.night(folder)
    again = shop.night(open_storage(tmp_path / "another"))
    assert first.parts == again.parts
    assert [part.rows for part in first.parts] == [4, 4, 4, 4, 4]


def test_a_users_pairs_are_neighbours_and_only_the_last_shard_is_short(shop, folder):
    night = shop.night(folder, pairs_per_shard=7)
    assert [part.rows for part in night.parts] == [7, 7, 6]
    users = [row["user_id"] for row in night.generate]
    assert len([user for user, before in zip(users, [None, *users], strict=False) if user != before]) == len(set(users))


@pytest.mark.slow
def test_nothing_changed_all_carried(shop, store: Storage):
    first = shop.night(store)
    second = shop.night(store, first, user_secret=b"rotated")
    assert (second.summary.to_generate, second.summary.carried, second.summary.stale) == (0, len(shop.pairs), 0)
    assert [part.kind for part in second.parts] == ["carry"]
    before = first.lineage()
    for row in second.carry:
        assert row["user_key"] == user_key(b"rotated", row["user_id"])
        assert row["carried_from"] == first.journal.run_id
        assert row["gates"] == [("g", "ok")]
    assert second.lineage() == before
    third = shop.night(store, second)
    assert {row["carried_from"] for row in third.carry} == {first.journal.run_id}
    assert third.lineage() == before


@pytest.mark.slow
@pytest.mark.parametrize("asked_by", ["heads", "a listing"])
def test_a_creative_whose_object_is_lost_is_made_again(shop, store: Storage, monkeypatch, caplog, asked_by: str):
    """A picture that is gone, one that is cut short, a rendition that is gone; the others are carried."""
    monkeypatch.setattr("adgen.creatives.lost_objects.HEADS_BELOW", 50_000 if asked_by == "heads" else 0)
    shop.pictures = True
    first = shop.night(store)
    rows = [row for index in sorted(first.journal.done()) for row in first.journal.read_part(index).to_pylist()]
    gone, short, small = (row["pair_id"] for row in rows[:3])
    store.delete(rows[0]["uri"])
    store.put(rows[1]["uri"], b"cut")
    store.delete(rows[2]["renditions"][0]["uri"])
    second = shop.night(store, first)
    assert second.made == {gone, short, small}
    assert len(second.carry) == len(shop.pairs) - 3
    before = {row["pair_id"]: row["fingerprint"] for row in rows}
    assert all((row["fingerprint"], row["attempt"]) == (before[row["pair_id"]], 0) for row in second.generate)
    assert "3 objects of run" in caplog.text
    assert len(lost_objects(second.journal)) == 0
    assert shop.night(store, second).summary.to_generate == 0


def test_a_click_that_is_not_drawn_changes_no_fingerprint(shop, folder):
    first = shop.night(folder)
    for user in shop.histories:
        shop.histories[user].append("p11" if "p11" not in shop.histories[user] else "p10")
    second = shop.night(folder, first)
    drawn_before, drawn_after = first.lineage(), second.lineage()
    unchanged = {pair for pair in drawn_before if drawn_before[pair]["history_ids"] == drawn_after[pair]["history_ids"]}
    assert 0 < len(unchanged) < len(shop.pairs)
    assert {row["pair_id"] for row in second.carry} == unchanged


@pytest.mark.parametrize("what", ["title", "image"])
def test_a_changed_product_changes_exactly_its_pairs_and_the_histories_that_hold_it(shop, folder, what):
    first = shop.night(folder)
    product = shop.products["p4"]
    shop.products["p4"] |= {"title": "brand new name"} if what == "title" else {"image": shop.paint(product["image"], 999)}
    second = shop.night(folder, first)
    expected = pairs_with(first, "p4") | pairs_with(second, "p4")
    assert second.made == expected
    assert 0 < len(expected) < len(shop.pairs)


@pytest.mark.parametrize("what", ["cutout", "selling_points", "scale"])
def test_what_only_a_target_shows_changes_exactly_its_pairs(shop, folder, what):
    first = shop.night(folder)
    product = shop.products["p4"]
    new = {"selling_points": ["other"], "scale": 0.5}.get(what) or shop.paint(product["cutout"], 999)
    shop.products["p4"] |= {what: new}
    second = shop.night(folder, first)
    assert second.made == {row["pair_id"] for row in first.generate if row["product_id"] == "p4"} != set()


def test_a_picture_written_again_with_the_same_bytes_changes_nothing(shop, folder):
    first = shop.night(folder)
    path = shop.folder / shop.products["p4"]["image"]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    assert shop.night(folder, first).summary.to_generate == 0


MADE_OTHERWISE = [
    {"maker": replace(rules().maker, model_digest="b" * 64)},
    {"maker": replace(rules().maker, engine_version="2")},
    {"maker": replace(rules().maker, digests=("x",))},
    {"campaign_seed": 8},
]


@pytest.mark.parametrize("change", MADE_OTHERWISE)
def test_another_model_engine_setting_or_seed_generates_all(shop, folder, change):
    first = shop.night(folder)
    assert shop.night(folder, first, **change).summary.to_generate == len(shop.pairs)


@pytest.mark.slow
def test_failed_rows_are_tried_again_with_the_next_attempt(shop, folder):
    victim = sorted(shop.night(folder).made)[0]
    first = shop.night(folder, failed={victim})
    second = shop.night(folder, first, failed={victim})
    assert second.made == {victim}
    third = shop.night(folder, second)
    assert [(row["pair_id"], row["attempt"]) for row in third.generate] == [(victim, 2)]
    assert third.summary.tried_again == 1
    tried = [row["tried_before"] for night in (first, second, third) for row in night.generate if row["pair_id"] == victim]
    assert tried == [False, True, True]
    shop.products[third.generate[0]["product_id"]]["title"] = "Another title"
    changed = [(row["attempt"], row["tried_before"]) for row in shop.night(folder, second).generate if row["pair_id"] == victim]
    assert changed == [(0, True)]


def test_an_input_unreadable_tonight_keeps_the_previous_creative_as_stale(shop, folder):
    first = shop.night(folder)
    (shop.folder / shop.products["p4"]["cutout"]).unlink()
    second = shop.night(folder, first)
    stale = {row["pair_id"] for row in second.carry if row["stale"]}
    assert stale == {row["pair_id"] for row in first.generate if row["product_id"] == "p4"}
    assert second.summary.stale == len(stale) > 0
    assert second.summary.to_generate == second.summary.planned_failures == 0
    shop.products["p4"]["cutout"] = shop.paint("cutouts/4.png", 104)
    third = shop.night(folder, second)
    assert (third.summary.to_generate, third.summary.stale) == (0, 0)


def test_an_input_unreadable_tonight_is_dropped_when_told(shop, folder):
    first = shop.night(folder)
    (shop.folder / shop.products["p4"]["cutout"]).write_bytes(b"no picture")
    second = shop.night(folder, first, when_unreadable="drop")
    assert second.summary.reasons == {"unreadable": second.summary.planned_failures}
    assert {row["product_id"] for row in second.generate} == {"p4"}
    assert second.summary.stale == 0


def test_an_unreadable_picture_in_a_history_changes_no_draw(shop, folder):
    first = shop.night(folder)
    (shop.folder / shop.products["p4"]["image"]).unlink()
    second = shop.night(folder, first)
    assert (second.summary.to_generate, second.summary.carried) == (0, len(shop.pairs))


def test_bad_pairs_become_rows_with_reasons_and_the_rest_goes_on(shop, folder):
    shop.products["untitled"] = shop.products["p1"] | {"title": None}
    shop.products["unscaled"] = shop.products["p1"] | {"scale": None}
    shop.products["huge"] = shop.products["p1"] | {"scale": 1.5}
    shop.products["lost"] = shop.products["p1"] | {"cutout": "nowhere.png"}
    shop.products["outside"] = shop.products["p1"] | {"cutout": "../../outside.png"}
    shop.products["foreign"] = shop.products["p1"] | {"cutout": "http://example.org/a.png"}
    shop.products["cut"] = shop.products["p1"] | {"cutout": None, "image": "cut.png"}
    shop.products["dot"] = shop.products["p1"] | {"cutout": "dot.png"}
    (shop.folder / "cut.png").write_bytes((shop.folder / "images/1.png").read_bytes()[:300])
    Image.new("RGBA", (1, 1)).save(shop.folder / "dot.png")
    good = len(shop.pairs)
    bad = ["untitled", "unscaled", "huge", "lost", "outside", "foreign", "cut", "dot", "nobody made this"]
    shop.pairs += [("u1", name, None, None) for name in bad] + [(None, "p1", None, None), ("u1", None, None, None)]
    night = shop.night(folder)
    reasons = {row["product_id"]: row["reason"] for row in night.generate if row["reason"] and row["user_id"]}
    assert reasons == {
        "untitled": "null_field",
        "unscaled": "null_field",
        "huge": "invalid_scale",
        "lost": "missing_file",
        "outside": "outside_roots",
        "foreign": "scheme_not_allowed",
        "cut": "truncated",
        "dot": "too_small",
        "nobody made this": "unknown_product",
        "": "null_field",
    }
    assert [row["reason"] for row in night.generate if not row["user_id"]] == ["null_field"]
    assert (night.summary.to_generate, night.summary.planned_failures) == (good, len(bad) + 2)
    assert all(row["fingerprint"] is None for row in night.generate if row["reason"])
    again = shop.night(folder, night)
    assert again.summary.tried_again == len(bad) + 2
    assert again.summary.carried == good


def test_other_rules_make_again_only_the_titles_that_they_refuse(shop, folder):
    """And what the rules of before rejected, once."""
    base = shop.night(folder)
    published = [row for part in base.parts for row in base.journal.read_part(part.index).to_pylist()]
    titles = {row["pair_id"]: row["title"] for row in published}
    refused = min(titles.values())

    class Rules:
        def reject(self, title: str, product_texts: tuple[str, ...], locale: str | None) -> bool:
            assert "warm" in product_texts
            assert locale == "en"
            return title == refused

    second = shop.night(folder, base, title_rules=Rules())
    assert second.made == {pair for pair, title in titles.items() if title == refused}
    assert 0 < len(second.made) < len(titles)
    assert len(second.carry) == len(titles) - len(second.made)


def test_a_fingerprint_holds_no_rules(monkeypatch):
    """It is the one of 0.1.0, whatever the rules are: stores of before are carried."""
    from adgen.finishing import gates

    monkeypatch.setattr(gates, "VERSION", gates.VERSION + 1)
    assert gates.LOOK == "f98af90a78d8a72ef48bd33649aa088b80f8f579368857382430614582a923b8"
    assert gates.rules_digest() != gates.LOOK


def test_duplicate_pairs_are_made_once_and_counted(shop, folder):
    pairs = len(shop.pairs)
    shop.pairs += shop.pairs[:3] * 2
    night = shop.night(folder)
    assert (night.summary.pairs, night.summary.duplicates, len(night.made)) == (pairs, 6, pairs)


@pytest.mark.parametrize("clicks", [[], ["p0"], ["p0", "p0"], ["nobody made this"], [None]])
def test_a_history_without_anything_to_draw_still_makes_a_creative(shop, folder, clicks):
    shop.histories["u0"], shop.pairs = clicks, [("u0", "p0", None, None), ("stranger", "p0", None, None)]
    night = shop.night(folder)
    assert [row["history_ids"] for row in night.generate] == [[], []]
    assert night.summary.to_generate == 2


def test_limit_takes_the_first_pairs_of_the_whole_plan(shop, folder):
    whole = shop.night(folder)
    assert shop.night(folder, limit=7).generate == whole.generate[:7]
    shop.products["p4"]["title"] = "brand new name"
    rest = shop.night(folder, whole, limit=7)
    assert (rest.summary.pairs, rest.summary.to_generate + rest.summary.carried) == (7, 7)
    assert {row["pair_id"] for row in rest.generate + rest.carry} == {row["pair_id"] for row in whole.generate[:7]}


def test_forgotten_users_are_left_out(shop, folder):
    night = shop.night(folder, is_forgotten=ForgottenUsers(frozenset([user_hash(b"key", "u3")]), b"key"))
    assert "u3" not in {row["user_id"] for row in night.generate}
    assert (night.summary.forgotten, night.summary.pairs) == (2, len(shop.pairs) - 2)


def test_pairs_that_nobody_asks_for_any_more_are_not_carried(shop, folder):
    first = shop.night(folder)
    shop.pairs = shop.pairs[:5]
    second = shop.night(folder, first)
    assert (second.summary.pairs, second.summary.carried) == (5, 5)


def test_no_user_id_and_no_secret_outside_private(shop, folder, tmp_path):
    shop.histories["a person by name"] = ["p1", "p2"]
    shop.pairs.append(("a person by name", "p7", None, None))
    night = shop.night(folder)
    shutil.rmtree(tmp_path / "store" / "private")
    written = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
    assert b"p4" in written
    needles = (b"a person", b"the user secret", b"the campaign key", night.generate[0]["user_key"].encode())
    assert not any(needle in written for needle in needles)
    assert "the user secret" not in repr(rules())


def test_resume_key_is_a_function_of_campaign_settings_and_inputs():
    key = resume_key("c", "s", {"a": "1", "b": "2"})
    assert key == resume_key("c", "s", {"b": "2", "a": "1"})
    others = [("d", "s", {"a": "1", "b": "2"}), ("c", "t", {"a": "1", "b": "2"}), ("c", "s", {"a": "1", "b": "3"})]
    assert key not in {resume_key(*each) for each in others}
    public = public_resume_key(b"key", key)
    assert len(public) == 32
    assert public == public_resume_key(b"key", key) != public_resume_key(b"another key", key)
    assert public_resume_key(b"key", public) == public


# -- fingerprints tell nothing of a history ----------------------------------------------------------------------------


def test_a_fingerprint_is_keyed_and_cannot_be_guessed_from_the_inputs(shop, folder, tmp_path):
    """Who has the products and guesses the clicks can compute the private digest, and no published value from it."""
    night = shop.night(folder)
    private = {}
    for row in night.generate:
        private[row["pair_id"]] = rules().maker.fingerprint(row["product_hash"], row["history_hashes"], row["seed"])
        assert row["fingerprint"] == public_fingerprint(b"the campaign key", private[row["pair_id"]])
        assert len(row["fingerprint"]) == 32
    other = shop.night(open_storage(tmp_path / "other"), campaign_key=b"another campaign's key")
    assert not {row["fingerprint"] for row in night.generate} & {row["fingerprint"] for row in other.generate}


def test_rows_of_version_0_1_are_carried_once_without_work_and_get_a_keyed_fingerprint(shop, store: Storage, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("adgen.shop.plan.rows.public_fingerprint", lambda key, private: private)
        first = shop.night(store)
    before = {row["pair_id"]: row["fingerprint"] for row in first.generate}
    assert {len(value) for value in before.values()} == {64}
    (shop.folder / shop.products["p4"]["cutout"]).unlink()  # a row that stays stale has no fingerprint of tonight
    second = shop.night(store, first)
    assert (second.summary.to_generate, second.summary.carried) == (0, len(shop.pairs))
    assert second.summary.stale > 0
    for row in second.carry:
        assert row["fingerprint"] == public_fingerprint(b"the campaign key", before[row["pair_id"]])
    shop.products["p4"]["cutout"] = shop.paint("cutouts/4.png", 104)
    assert shop.night(store, second).summary.to_generate == 0


def test_the_prompt_repeats_a_short_history_and_the_plan_does_not(shop, folder, tmp_path):
    """Filling is a function of the draw: plan and fingerprint hold what was drawn."""
    shop.histories["u0"], shop.pairs = ["p1", "p2"], [("u0", "p0", None, None), ("stranger", "p0", None, None)]
    night = shop.night(folder)
    [two, none] = sorted(night.generate, key=lambda row: row["user_id"] == "stranger")
    catalog = shop.catalog(folder)
    for items, count in ((5, 5), (0, 2)):  # 0: as a version showed it that repeated nothing
        context = Context(
            RefreshSettings(store=str(tmp_path / "store"), campaign="autumn"), night.journal.run_id, "", "", history_items=items
        )
        pairs = [dict(two), dict(none)]
        LookUp(context, catalog).look_up(pairs)
        drawn = [shop.products[click]["title"] for click in two["history_ids"]]
        assert pairs[0]["history_titles"] == filled(drawn, items)
        assert (len(pairs[0]["history_codes"]), pairs[0]["history_items"]) == (count * 16 * 2, count)
        assert (pairs[1]["history_titles"], pairs[1]["history_items"]) == ([], 0)


def test_a_converted_models_clicks_are_drawn_as_published(shop, folder):
    shop.histories["u0"], shop.pairs = ["p1", "p0", "p2"], [("u0", "p0", None, None)]
    [row] = shop.night(folder, history_items=6, history_order="published").generate
    assert row["history_ids"] == filled(["p1", "p2"], 6)
    [row] = shop.night(folder, history_items=3, history_order="published").generate
    assert row["history_ids"][:2] == ["p1", "p2"]
    assert len(row["history_ids"]) == len(row["history_hashes"]) == 3


@pytest.mark.parametrize(("source", "again"), [(None, 1), ("model", 0), ("template", 0)])
def test_a_row_that_was_rejected_before_there_were_attempts_is_made_again_once(shop, folder, source, again):
    """Its column title_source is null; a row that attempts did not save says what was rejected, and is carried."""
    first = shop.night(folder)
    fingerprint = first.generate[0]["fingerprint"]
    before = {"status": REJECTED, "fingerprint": fingerprint, "title_source": source}
    assert is_carried(before, fingerprint) == (not again)
    assert is_carried(before | {"status": OK}, fingerprint)
    assert not is_carried(before | {"status": FAILED}, fingerprint)
    assert not is_carried(before, "another")
