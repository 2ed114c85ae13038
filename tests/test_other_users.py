"""Whose clicks stand for another user's: a function of the pair and the run's panel, in an evaluation as in the gate."""

from collections import Counter
from pathlib import Path

import pytest
from support import evaluations as small_evaluations
from support.evaluations import do_shards, draw_shop, plan_run, save_small_encoder, score_here
from support.progress import Silent
from support.runs import CAMPAIGN, pair_ids

from adgen.creatives.journal import Journal
from adgen.creatives.layout import private_run
from adgen.creatives.runs import Run
from adgen.evaluation.scoring.other_users import OtherUser, seats_of_others
from adgen.on_ray.refresh import gate
from adgen.on_ray.refresh.gate import why_held
from adgen.on_ray.refresh.settings import GateSettings, RefreshSettings
from adgen.on_ray.scoring import sampling as row_places
from adgen.on_ray.scoring import workers
from adgen.on_ray.scoring.sampling import read_panel, spread_places
from adgen.shop.inputs.tables import open_inputs

SEATS = [OtherUser(f"user {number % 7}", ("click",)) for number in range(20)]


def test_other_users_are_all_others_of_the_panel_from_a_place_that_the_pair_draws():
    order = list(seats_of_others("a pair", "user 3", SEATS))
    assert order == list(seats_of_others("a pair", "user 3", SEATS))
    assert sorted(order) == [seat for seat in range(20) if SEATS[seat].user_key != "user 3"]
    firsts = Counter(next(seats_of_others(pair, "nobody's", SEATS)) for pair in pair_ids(4000))
    assert len(firsts) == 20
    assert all(abs(count - 200) < 56 for count in firsts.values())  # four standard deviations: no seat decides a mean
    assert list(seats_of_others("a pair", "user 0", SEATS[:1])) == []
    assert list(seats_of_others("a pair", "user 0", [])) == []


def test_a_seat_that_is_emptied_moves_only_the_pairs_that_drew_it_on_it():
    emptied = [seat._replace(clicked=()) if number == 11 else seat for number, seat in enumerate(SEATS)]
    for pair in pair_ids(200):
        before, after = (next(seats_of_others(pair, "nobody's", panel)) for panel in (SEATS, emptied))
        assert after == (12 if before == 11 else before)


# -- of a run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    return draw_shop(tmp_path_factory.mktemp("inputs") / "shop")


def made_run(store: Path, shop: Path) -> Run:
    run = plan_run(store, shop)
    do_shards(run, shop)
    return run


def journal(run: Run) -> Journal:
    return Journal(run.storage, CAMPAIGN, run.run_id)


def test_the_panel_is_the_run_s_however_its_rows_are_cut_into_shards(shop, tmp_path, monkeypatch):
    of_five = made_run(tmp_path / "five", shop)
    monkeypatch.setattr(small_evaluations, "ROWS_PER_SHARD", 2)
    of_two = made_run(tmp_path / "two", shop)
    assert len(journal(of_five).read_plan().parts) == 3
    assert len(journal(of_two).read_plan().parts) == 6
    whole = read_panel(journal(of_five))
    assert len(whole) == 12
    assert all(len(seat.clicked) == small_evaluations.CLICKS for seat in whole)
    monkeypatch.setattr(row_places, "PANEL", 5)
    some = read_panel(journal(of_five))
    assert len(some) == 5
    assert some == read_panel(journal(of_two))
    assert set(some) <= set(whole)


def test_whose_lineage_is_gone_keeps_a_seat_without_clicks(shop, tmp_path):
    run = made_run(tmp_path / "store", shop)
    whole, places = read_panel(journal(run)), spread_places(journal(run).read_plan().parts, 12, "strangers")
    gone = next((tmp_path / "store" / private_run(CAMPAIGN, run.run_id) / "lineage").glob("00000001-*"))
    gone.unlink()
    seats = {seat for seat, (part, _) in enumerate(sorted(places)) if part == 1}
    for seat, (before, after) in enumerate(zip(whole, read_panel(journal(run)), strict=True)):
        assert after == (before._replace(clicked=()) if seat in seats else before)


@pytest.mark.slow
def test_the_gate_s_scores_of_a_creative_are_the_same_in_every_sample(shop, tmp_path, monkeypatch):
    """With other neighbours, and in items of another size."""
    run = made_run(tmp_path / "store", shop)
    encoder, tables = save_small_encoder(tmp_path / "pbs"), []
    inputs = open_inputs(str(shop), ["products"], optional=["references"])

    def scored(*arguments):
        for done in score_here(*arguments):
            tables.append(done.rows)
            yield done

    def margins(sample: int, rows_an_item: int) -> dict[str, float]:
        tables.clear()
        monkeypatch.setattr(gate, "ROWS_AN_ITEM", rows_an_item)
        asked = GateSettings(sample=sample, history_margin_min=-2.0, encoder=encoder)
        settings = RefreshSettings(store=str(tmp_path / "store"), campaign=CAMPAIGN, gate=asked)
        assert why_held(settings, run, inputs, Silent()) == ""
        rows = [row for table in tables for row in table.to_pylist()]
        assert len(rows) == sample
        assert all("no_other_user" not in row["left_out"] for row in rows)
        return {row["pair_id"]: row["pbs_history_margin"] for row in rows if row["pbs_history_margin"] is not None}

    monkeypatch.setattr(workers, "score", scored)
    monkeypatch.setattr(gate, "cluster_device", lambda device: "cpu")
    whole, few, one_by_one = margins(12, 64), margins(4, 64), margins(12, 1)
    assert len(whole) == 11  # one failed
    assert len(set(whole.values())) == 11
    assert few
    assert few == {pair: pytest.approx(whole[pair], abs=1e-4) for pair in few}
    assert one_by_one == {pair: pytest.approx(value, abs=1e-4) for pair, value in whole.items()}
