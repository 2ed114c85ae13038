"""From tables to cached examples, without Ray: what an example holds, and what becomes of rows that cannot be one."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.training import training_inputs

from adgen.errors import InputError
from adgen.finishing.finish import product_cutout
from adgen.generation.pictures import condition_pixels, history_pixels, square_pixels
from adgen.images import square_frame
from adgen.model.checkpoint import load
from adgen.model.image_tokens import to_uint8
from adgen.on_ray.training.example_encoders import BackgroundMaker, ClickMaker, CutoutMaker, ExampleMaker, PictureMaker, fitted
from adgen.on_ray.training.examples import CLICKED_SQL, EXAMPLES_SQL, PICTURES_SQL, query_parts, read_index
from adgen.on_ray.training.settings import TABLES
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.synthetic.styles import TEN, StyleSet
from adgen.training.example_files import ExampleFolder, ExampleReader, Index, part_name


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    return training_inputs(tmp_path_factory.mktemp("examples"))


@pytest.fixture(scope="module")
def examples(inputs) -> ExampleFolder:
    """The language examples of a small shop; one reference's picture is missing, one is no picture."""
    shop = inputs / "shop"
    references = pq.read_table(shop / "references.parquet")
    rows = references.to_pylist()
    (shop / rows[0]["image"]).unlink()
    (shop / rows[1]["image"]).write_bytes(b"not a picture")
    clicks = make(shop, ExampleFolder(str(inputs / "clicks")), CLICKED_SQL, ClickMaker, str(inputs / "model"))
    return make(shop, ExampleFolder(str(inputs / "made")), EXAMPLES_SQL, ExampleMaker, str(inputs / "model"), clicks=clicks)


def make(
    shop: Path, folder: ExampleFolder, query: str, kind: type, *arguments, clicks: ExampleFolder | None = None
) -> ExampleFolder:
    tables = open_inputs(str(shop), TABLES)
    maker = kind(folder.uri, tables, *arguments)
    numbers = []
    for number, table in enumerate(query_parts(tables, query, clicks)):
        folder.write(f"todo/{part_name(number)}", table)
        maker.make(number)
        numbers.append(number)
    folder.commit(read_index(folder, numbers))
    return folder


def rows_of(shop: Path, table: str) -> list[dict]:
    return pq.read_table(shop / f"{table}.parquet").to_pylist()


def test_an_example_is_what_a_refresh_would_show_the_model(examples, inputs):
    """Codes, condition picture and clicks are those of inference, to the bit."""
    shop, model = inputs / "shop", load(inputs / "model")
    reader = ExampleReader(examples)
    [example] = reader.rows([3])
    by_title = {row["title"]: row for row in rows_of(shop, "products")}
    product = by_title[example["product_title"]]
    reference = next(
        row
        for row in rows_of(shop, "references")
        if row["product_id"] == product["product_id"]
        and row["titles"] == example["titles"]
        and same_codes(model, shop, row, example)
    )
    history = next(row for row in rows_of(shop, "histories") if row["user_id"] == reference["user_id"])
    newest = list(dict.fromkeys(click["product_id"] for click in reversed(history["clicks"])))[::-1]
    assert [click["product"] for click in example["clicks"]] == [each for each in newest if each != product["product_id"]]
    pixels = condition_pixels(square_frame(product_cutout_of(shop, product)), product["scale"], model.config.foreground)
    assert np.array_equal(np.array(Image.open(io.BytesIO(example["condition"]))), to_uint8(pixels[None])[0].numpy())
    clicked = next(row for row in rows_of(shop, "products") if row["product_id"] == example["clicks"][0]["product"])
    codes = model.image_tokenizer.encode(history_pixels(Image.open(shop / clicked["image"]), model.config.image)[None])
    assert np.frombuffer(example["clicks"][0]["codes"], "<u2").tolist() == codes[0].tolist()


def same_codes(model, shop: Path, reference: dict, example: dict) -> bool:
    path = shop / reference["image"]
    if not path.exists() or path.stat().st_size < 100:
        return False
    size = model.config.image.image_size
    codes = model.image_tokenizer.encode(square_pixels(fitted(Image.open(path), size), size)[None])
    return np.frombuffer(example["codes"], "<u2").tolist() == codes[0].tolist()


def product_cutout_of(shop: Path, product: dict) -> Image.Image:
    from adgen.finishing.finish import ProductFacts

    return product_cutout(ProductFacts(title="", cutout=(shop / product["cutout"]).read_bytes()))


def test_rows_that_cannot_be_read_are_counted_and_left_out(examples):
    index = examples.index()
    assert index.reasons == {"missing_file": 1, "unreadable": 1}
    assert index.num_rows == 46


def test_similarities_are_rounded_as_in_a_plan(examples):
    closes = [click["close"] for example in ExampleReader(examples).rows(range(46)) for click in example["clicks"]]
    assert len(set(closes)) > 10
    assert closes == pytest.approx([round(close, 3) for close in closes], abs=1e-6)


def test_pictures_cutouts_and_backgrounds(inputs, tmp_path):
    shop = inputs / "shop"
    pictures = ExampleReader(make(shop, ExampleFolder(str(tmp_path / "pictures")), PICTURES_SQL, PictureMaker, 16))
    assert pictures.index.num_rows == 30 + 48 - pictures.index.reasons.get("missing_file", 0) - pictures.index.reasons.get(
        "unreadable", 0
    )
    assert Image.open(io.BytesIO(pictures.rows([0])[0]["picture"])).size == (16, 16)
    cutouts = make(shop, ExampleFolder(str(tmp_path / "c")), "SELECT title, image, cutout, scale FROM products", CutoutMaker, 24)
    assert Image.open(io.BytesIO(ExampleReader(cutouts).rows([1])[0]["cutout"])).mode == "RGBA"
    drawn = make(shop, ExampleFolder(str(tmp_path / "b")), "SELECT range AS number, NULL::VARCHAR AS image FROM range(20)",
                 BackgroundMaker, 24, TEN, 0)  # fmt: skip
    assert [row["group"] for row in ExampleReader(drawn).rows(range(20))] == [n % 10 for n in range(20)]


def test_backgrounds_of_one_style_are_one_group_whatever_the_style(inputs, tmp_path):
    """Continuous families and classes of photographs as the ten: another picture of the style is what an anchor's is like."""
    for name, colour in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
        folder = tmp_path / "photographs" / "backgrounds" / name
        folder.mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (40, 40), colour).save(folder / f"{number}.jpg")
    styles = StyleSet(("many",), 3, tmp_path / "photographs", None)
    query = f"SELECT range AS number, NULL::VARCHAR AS image FROM range({2 * len(styles.slots)})"
    rows = ExampleReader(make(inputs / "shop", ExampleFolder(str(tmp_path / "b")), query, BackgroundMaker, 24, styles, 0))
    rows = rows.rows(range(2 * len(styles.slots)))
    groups = {name: {row["background"] for row in rows if row["group"] == styles.names.index(name)} for name in styles.names}
    assert len(groups) == 5
    assert all(len(pictures) > 1 for name, pictures in groups.items() if name.startswith("shop"))
    mean = {name: np.mean([np.asarray(Image.open(io.BytesIO(one)).convert("RGB")).mean((0, 1)) for one in pictures], axis=0)
            for name, pictures in groups.items()}  # fmt: skip
    assert mean["photo-red"][0] > 150 > mean["photo-red"][2]
    assert mean["photo-blue"][2] > 150 > mean["photo-blue"][0]


def test_what_a_join_spills_is_this_users_alone_and_goes_with_the_query(inputs, tmp_path, monkeypatch):
    """It holds histories."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    parts = query_parts(open_inputs(str(inputs / "shop"), TABLES), PICTURES_SQL, None, "64MB")
    next(parts)
    [spill] = tmp_path.iterdir()
    assert spill.stat().st_mode & 0o777 == 0o700
    parts.close()
    assert list(tmp_path.iterdir()) == []


def test_an_unfinished_folder_is_no_folder(tmp_path):
    folder = ExampleFolder(str(tmp_path))
    folder.write(part_name(0), pa.table({"a": [1, 2, 3]}))
    assert folder.index() is None
    with pytest.raises(InputError, match="unfinished"):
        ExampleReader(folder)
    folder.commit(Index([[3]]))
    assert [row["a"] for row in ExampleReader(folder).rows([2, 0])] == [3, 1]
    (tmp_path / "index.json").write_text(json.dumps({"parts": 3, "nonsense": 1}))
    with pytest.raises(InputError, match="damaged"):
        folder.index()


def test_row_groups_are_found_by_number(tmp_path):
    folder = ExampleFolder(str(tmp_path))
    folder.write(part_name(0), pa.table({"a": range(150)}))
    folder.write(part_name(1), pa.table({"a": range(150, 170)}))
    folder.commit(read_index(folder, [0, 1]))
    assert folder.index().group_sizes == (64, 64, 22, 20)
    rows = ExampleReader(folder).rows([169, 63, 64, 149, 150, 0])
    assert [row["a"] for row in rows] == [row["number"] for row in rows] == [169, 63, 64, 149, 150, 0]
