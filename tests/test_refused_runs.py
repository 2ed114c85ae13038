"""What no row can carry stops a refresh before any model work, and the message says what to do."""

import importlib.util
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.models import save_small_model
from support.shops import SmallShop, small_shop

CAMPAIGN = "odd"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    save_small_model(directory)
    return directory


def refresh_job(*arguments: str) -> int:
    """`jobs/refresh.py` in this process, on its Ray."""
    spec = importlib.util.spec_from_file_location("refresh_job", ROOT / "jobs" / "refresh.py")
    job = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # tyro reads docstrings through sys.modules
    spec.loader.exec_module(job)
    return job.main(list(arguments))


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    shop = small_shop(tmp_path / "inputs", num_products=4, num_users=2)
    shop.save()
    return shop


def rewrite(shop: SmallShop, table: str, change) -> None:
    path = shop.folder / f"{table}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def without_cutouts(shop: SmallShop, *_) -> None:
    rewrite(shop, "products", lambda table: table.drop_columns(["image"]))


def scale_as_text(shop: SmallShop, *_) -> None:
    rewrite(shop, "products", lambda table: table.set_column(5, "scale", pa.array(["big"] * table.num_rows)))


def no_pairs(shop: SmallShop, *_) -> None:
    rewrite(shop, "pairs", lambda table: table.slice(0, 0))


def no_table(shop: SmallShop, *_) -> None:
    (shop.folder / "histories.parquet").unlink()


def misspelled_key(_, options: dict, folder: Path) -> None:
    options["file"].write_text("[plan]\npairs_per_shart = 5\n")


def wrong_value(_, options: dict, folder: Path) -> None:
    options["file"].write_text("[finish]\nwidth = 5\n")


def store_below_a_file(_, options: dict, folder: Path) -> None:
    (folder / "file").write_text("")
    options["--store"] = str(folder / "file" / "store")


def foreign_store(_, options: dict, folder: Path) -> None:
    options["--store"] = "gs://bucket/store"


def no_model(_, options: dict, folder: Path) -> None:
    options["--model"] = str(folder / "nowhere")


def empty_model(_, options: dict, folder: Path) -> None:
    (folder / "empty").mkdir()
    options["--model"] = str(folder / "empty")


def cut_weights(_, options: dict, folder: Path) -> None:
    options["--model"] = str(shutil.copytree(options["--model"], folder / "cut"))
    weights = folder / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def no_tokenizer(_, options: dict, folder: Path) -> None:
    options["--model"] = str(shutil.copytree(options["--model"], folder / "mute"))
    (folder / "mute" / "tokenizer.json").unlink()


STOPS = [
    (without_cutouts, ["products", "image", "missing"]),
    (scale_as_text, ["products", "scale", "string"]),
    (no_pairs, ["pairs", "no rows"]),
    (no_table, ["histories", "missing"]),
    (misspelled_key, ["settings.toml", "plan.pairs_per_shart", "unknown key"]),
    (wrong_value, ["settings.toml", "finish.width", "64"]),
    (store_below_a_file, ["file/store", "check the folder's rights"]),
    (foreign_store, ["gs://bucket/store", "use a folder, file:// or s3://"]),
    (no_model, ["nowhere", "no such model directory", "--model"]),
    (empty_model, ["empty", "neither adgen.json nor config.json"]),
    (cut_weights, ["cut/model.safetensors"]),
    (no_tokenizer, ["mute/tokenizer.json", "no such file"]),
]


@pytest.mark.parametrize(("spoil", "words"), STOPS, ids=[spoil.__name__ for spoil, _ in STOPS])
def test_what_no_row_can_carry_stops_the_run_first_and_says_what_to_do(ray_cluster, shop, model, tmp_path, capsys, spoil, words):
    options = {"file": tmp_path / "settings.toml", "--inputs": str(shop.folder), "--campaign": CAMPAIGN}
    options |= {"--store": str(tmp_path / "store"), "--model": str(model)}
    options["file"].write_text("")
    spoil(shop, options, tmp_path)
    file = str(options.pop("file"))
    assert refresh_job(file, *(part for option in options.items() for part in option)) == 1
    printed = capsys.readouterr()
    said = " ".join(printed.err.split()).replace(" ", "")  # rich breaks lines where it likes
    assert all(word.replace(" ", "") in said for word in words), printed.err
    assert printed.out == ""
    assert not list((tmp_path / "store").glob("c*/**/*.*")), "neither a catalog nor a run was begun"
