"""adgen replay: a published creative made again, on a folder and on S3; and each thing that may be gone, by name."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.refreshes import CAMPAIGN, published_rows, run, settings

from adgen.cli import main
from adgen.creatives import layout
from adgen.creatives.journal import Journal
from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.errors import ConsumerError
from adgen.on_ray.refresh import replay as module
from adgen.on_ray.refresh.provenance import version_in, versions_text
from adgen.on_ray.refresh.replay import replay

pytestmark = pytest.mark.usefixtures("aws_environment")
FINISH = {"width": 64, "height": 64, "gates": {"title_empty": "warn"}, "product_inside_min": 0.0}
FINISH |= {"renditions": [{"width": 96, "height": 64}]}


@pytest.fixture(scope="module")
def published(ray_cluster, shop, model, tmp_path_factory):
    """A refreshed folder store and its settings; tests copy what they change."""
    folder = tmp_path_factory.mktemp("published")
    inputs = Path(shutil.copytree(shop, folder / "shop"))
    made = settings(inputs, str(folder / "store"), Path(shutil.copytree(model, folder / "model")), finish=FINISH)
    run(made)
    return made


def first_row(made, status: str = "ok") -> dict:
    return next(row for _, row in sorted(published_rows(made).items()) if row["status"] == status)


def replayed(made, pair: str, **options):
    return replay(open_storage(made.store, made.s3), CAMPAIGN, pair, **{"access": made.s3} | options)


def assert_made_again(made, run_id: str) -> dict:
    """Its first row, and that replay makes it byte by byte."""
    row = first_row(made)
    assert row["renditions"], "its rendition is compared, too"
    again = replayed(made, row["pair_id"])
    assert (again.outcome, again.detail, again.run_id) == ("equal_bytes", "", run_id)
    assert (again.sha256, again.title) == (row["sha256"], row["title"])
    assert again.tokens == again.made["tokens"] == again.here["tokens"]
    assert again.made["num_slots"] == 4
    return row


def test_a_creative_is_made_again_byte_by_byte(published):
    assert_made_again(published, open_published(open_storage(published.store), CAMPAIGN).run.run_id)


@pytest.mark.slow
def test_a_carried_creative_is_made_again_from_the_run_that_made_it_also_on_s3(no_ray, shop, model, s3_uri, s3_access, capsys):
    made = settings(shop, s3_uri, model, s3_access, finish=FINISH)
    first = run(made)
    row = assert_made_again(made, first.run_id)
    run(made)
    carried = published_rows(made)[row["pair_id"]]
    assert carried["carried_from"] == first.run_id
    capsys.readouterr()  # what libraries said while the refresh loaded them
    assert main(["replay", s3_uri, CAMPAIGN, row["pair_id"], "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["outcome"], printed["run_id"], printed["sha256"]) == ("equal_bytes", first.run_id, row["sha256"])


def test_every_row_says_where_and_with_what_it_was_made(published):
    storage = open_storage(published.store)
    journal = Journal(storage, CAMPAIGN, open_published(storage, CAMPAIGN).run.run_id)
    rows = [row for part in journal.read_plan().parts for row in journal.read_lineage(part.index).to_pylist()]
    assert len({row["tokens"] for row in rows}) == len(rows) == 12
    assert {(row["num_slots"], row["num_threads"]) for row in rows} == {(4, 1)}
    assert {row["versions"] for row in rows} == {versions_text()}
    assert version_in(versions_text(), "torch").startswith("2.")
    assert all(row["device"].startswith("cpu ") for row in rows)


def lineage_says(monkeypatch, **changes):
    """Let the lineage tell other things than are true."""
    source = module._source

    def told(*arguments):
        found = source(*arguments)
        return module.Source(found.row | changes.pop("row", {}), found.run, found.pair, found.lineage | changes)

    monkeypatch.setattr(module, "_source", told)


def test_other_files_from_the_same_tokens_are_equal_tokens(published, monkeypatch):
    lineage_says(monkeypatch, row={"sha256": "0" * 64})
    again = replayed(published, first_row(published)["pair_id"])
    assert (again.outcome, again.detail) == ("equal_tokens", "the files differ: finishing or its rules changed")


def test_other_tokens_are_another_devices_or_a_fault(published, monkeypatch, capsys):
    pair = first_row(published)["pair_id"]
    lineage_says(monkeypatch, tokens="0" * 64, row={"sha256": "0" * 64})
    assert replayed(published, pair).outcome == "unequal"
    monkeypatch.undo()
    lineage_says(monkeypatch, tokens="0" * 64, device="cuda NVIDIA H200", row={"sha256": "0" * 64})
    assert main(["replay", published.store, CAMPAIGN, pair]) == 4
    assert capsys.readouterr().out.startswith("different device: device was cuda NVIDIA H200, is cpu ")


def test_a_changed_or_missing_product_picture_is_an_input_gone(published, capsys):
    row = first_row(published)
    products = pq.read_table(Path(published.inputs) / "products.parquet").to_pylist()
    cutout = next(Path(published.inputs) / p["cutout"] for p in products if p["product_id"] == row["product_id"])
    kept = cutout.read_bytes()
    picture = Image.open(cutout).convert("RGBA")
    picture.putpixel((0, 0), (1, 2, 3, 255))  # one pixel
    picture.save(cutout)
    assert main(["replay", published.store, CAMPAIGN, row["pair_id"]]) == 6
    printed = capsys.readouterr().out
    assert printed.startswith("input gone: its product's picture: input_changed: the picture of ")
    cutout.unlink()
    assert "missing_file" in replayed(published, row["pair_id"]).detail
    cutout.write_bytes(kept)
    assert replayed(published, row["pair_id"]).outcome == "equal_bytes"


def test_a_model_of_another_digest_is_an_input_gone(published, tmp_path):
    pair = first_row(published)["pair_id"]
    moved = Path(shutil.copytree(published.model, tmp_path / "moved"))
    assert replayed(published, pair, model=moved).outcome == "equal_bytes"
    (moved / "prompt.toml").write_text((moved / "prompt.toml").read_text() + "\n# another model\n")
    gone = replayed(published, pair, model=moved)
    assert (gone.outcome, "is not the one that made it" in gone.detail) == ("input_gone", True)
    assert "is not here" in replayed(published, pair, model=tmp_path / "nowhere").detail


@pytest.mark.parametrize(
    ("folder", "detail"),
    [
        (layout.catalog("").rstrip("/"), "the catalog of its run was removed"),
        (f"{layout.private_campaign(CAMPAIGN)}runs", "was removed"),
        (f"{layout.private_campaign(CAMPAIGN)}runs/*/shards", "the plan of run"),
        (f"{layout.private_campaign(CAMPAIGN)}runs/*/lineage", "the lineage of run"),
    ],
)
def test_what_was_removed_is_named(published, tmp_path, folder, detail):
    """As erasure and clean-up remove it."""
    store = Path(shutil.copytree(published.store, tmp_path / "store"))
    for found in store.glob(folder):
        shutil.rmtree(found)
    gone = replayed(published.model_copy(update={"store": str(store)}), first_row(published)["pair_id"])
    assert gone.outcome == "input_gone"
    assert detail in gone.detail


def test_what_was_never_made_cannot_be_made_again(published):
    with pytest.raises(ConsumerError, match="pair nobody is not in run"):
        replayed(published, "nobody")
