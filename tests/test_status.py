"""`adgen status`: every campaign's state in text, JSON and OpenMetrics, and exit codes that a monitor can act on."""

import json
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from support.runs import CAMPAIGN, begin, make_rows, pair_ids, publish_rows, refresh, with_values

from adgen.cli import main
from adgen.creatives import layout
from adgen.creatives.documents import utc_now
from adgen.creatives.reading import open_published
from adgen.creatives.status import Limits, openmetrics, store_status
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.errors import ConsumerError, SettingsError
from adgen.records import REJECTED

pytestmark = pytest.mark.usefixtures("aws_environment")


def four_rows(store: Storage) -> pa.Table:
    """Three ok, one of them by template and one with a plain background, and one rejected; one of the four was carried."""
    rows = pa.concat_tables([make_rows(store, pair_ids(3)), make_rows(store, pair_ids(1, 3), status=REJECTED)])
    sources = {"title_source": ["model", "template", "model", "model"], "picture_source": ["plain", "model", "model", None]}
    return with_values(rows, **sources, seconds=[900.0, 900.0, 900.0, 1800.0], carried_from=[None, "earlier", None, None])


def test_status_counts_shares_age_and_cost(store: Storage):
    publish_rows(store, four_rows(store), settings={"forecast": {"price_an_hour": 4.0}})
    published = open_published(store, CAMPAIGN)
    (found,) = store_status(store, now=published.pointer.published_at + timedelta(hours=3)).campaigns
    assert (found.campaign, found.run_id, found.age_seconds, found.rows) == (CAMPAIGN, published.run.run_id, 3 * 3600, 4)
    assert (found.ok_share, found.rejected_share, found.failed_share, found.stale_share) == (0.75, 0.25, 0, 0)
    assert (found.template_share, found.plain_background_share) == (0.333333, 0.333333)
    assert (found.generated, found.engine_seconds, found.cost) == (3, 3600.0, 4.0)
    assert (found.alerts, found.exit_code) == ({}, 0)


def test_a_cost_that_is_not_known_is_none(folder_store: Storage):
    refresh(folder_store, pair_ids(4))
    (found,) = store_status(folder_store).campaigns
    assert (found.engine_seconds, found.cost) == (None, None)
    assert "adgen_cost{" not in openmetrics(store_status(folder_store))


@pytest.mark.parametrize(
    ("limits", "alerts"),
    [
        (Limits(max_age_hours=4, min_ok=0.75, max_rejected=0.25, max_fallback=0.34), set()),
        (Limits(max_age_hours=2), {"age"}),
        (Limits(min_ok=0.8), {"ok"}),
        (Limits(max_rejected=0.2), {"rejected"}),
        (Limits(max_fallback=0.3), {"templates", "plain_backgrounds"}),
    ],
)
def test_a_broken_limit_is_an_alert(folder_store: Storage, limits, alerts):
    publish_rows(folder_store, four_rows(folder_store))
    now = open_published(folder_store, CAMPAIGN).pointer.published_at + timedelta(hours=3)
    found = store_status(folder_store, limits, now)
    assert set(found.campaigns[0].alerts) == alerts
    assert found.exit_code == (3 if alerts else 0)


def test_a_share_that_is_none_is_refused():
    with pytest.raises(SettingsError, match="--min-ok 80: is a share from 0 to 1"):
        Limits(min_ok=80)


def test_each_campaign_stands_by_itself(store: Storage, monkeypatch: pytest.MonkeyPatch):
    """One is well, one has published nothing, one's newest run failed, one's pointer names a run that is gone."""
    for name in ("well", "new", "failing", "broken"):
        monkeypatch.setattr("support.runs.CAMPAIGN", name)
        run = begin(store) if name == "new" else refresh(store, pair_ids(4))
        if name == "failing":
            begin(store, "next").end("FAILED", "engines died")
        if name == "broken":
            store.drop(layout.run_document(name, run.run_id))
    found = {each.campaign: each for each in store_status(store).campaigns}
    assert {name: (set(each.alerts), each.exit_code) for name, each in found.items()} == {
        "well": (set(), 0),
        "new": ({"unpublished"}, 3),
        "failing": ({"last_run"}, 3),
        "broken": ({"unreadable"}, 4),
    }
    assert "there is no such run" in found["broken"].alerts["unreadable"]
    assert store_status(store).exit_code == 4


def test_a_store_without_campaigns_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture):
    with pytest.raises(ConsumerError, match="holds no campaign; check the address"):
        store_status(open_storage(tmp_path))
    assert main(["status", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err == f"adgen: {tmp_path / 'nowhere'}: holds no campaign; check the address\n"


def test_the_command_prints_text_json_and_openmetrics(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture):
    publish_rows(store, four_rows(store), settings={"forecast": {"price_an_hour": 4.0}})
    run = open_published(store, CAMPAIGN).run.run_id
    file = tmp_path / "adgen.prom"
    assert main(["status", store.uri, "--json", "--openmetrics", str(file)]) == 0
    said = json.loads(capsys.readouterr().out)["campaigns"][0]
    assert (said["run_id"], said["ok_share"], said["cost"], said["alerts"]) == (run, 0.75, 4.0, {})
    families = {family.name: family for family in text_string_to_metric_families(file.read_text())}
    values = {sample.name: (sample.labels, sample.value) for family in families.values() for sample in family.samples}
    assert values["adgen_ok_ratio"] == ({"campaign": CAMPAIGN}, 0.75)
    assert values["adgen_template_ratio"][1] == pytest.approx(1 / 3, abs=1e-6)
    assert values["adgen_published_run"] == ({"campaign": CAMPAIGN, "run_id": run}, 1)
    assert values["adgen_published_timestamp_seconds"][1] == pytest.approx(utc_now().timestamp(), abs=3600)
    assert (values["adgen_cost"][1], values["adgen_status"][1]) == (4.0, 0)
    assert families["adgen_alert"].samples == []
    assert families["adgen_engine_seconds"].unit == "seconds"
    assert main(["status", store.uri, "--max-age-hours=-1", "--openmetrics", str(file)]) == 3
    assert f"alert: {CAMPAIGN}: was published 0.0 hours ago, more than -1" in capsys.readouterr().out
    assert 'adgen_alert{campaign="autumn",check="age"} 1.0' in file.read_text().splitlines()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".adgen")] == []


def test_a_metrics_file_that_cannot_be_written_is_one_sentence(folder_store: Storage, tmp_path: Path, capsys):
    refresh(folder_store, pair_ids(2))
    assert main(["status", folder_store.uri, "--openmetrics", str(tmp_path / "none" / "file")]) == 1
    said = capsys.readouterr().err
    assert said.startswith("adgen: ")
    assert len(said.splitlines()) == 1
