"""Text that is no UTF-8 in the input tables: rows with a reason, rows that are left out and counted, and nothing else lost."""

import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shops import SmallShop, small_shop

from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.shop.inputs.tables import open_inputs

LATIN_1 = "Caf\xe9 mug".encode("latin-1")


@pytest.fixture
def shop(tmp_path: Path) -> SmallShop:
    return small_shop(tmp_path / "inputs")


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "store")


def unchecked(kind: pa.DataType, values: list) -> pa.Array:
    """Values with bytes for text as an array of `kind`; nobody looks whether the bytes are UTF-8."""
    if pa.types.is_string(kind):
        raw = pa.array([value.encode() if isinstance(value, str) else value for value in values], pa.binary())
        return pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2], raw.buffers()[0], raw.null_count)
    if pa.types.is_list(kind):
        offsets = [0]
        for value in values:
            offsets.append(offsets[-1] + len(value or ()))
        inner = unchecked(kind.value_type, [each for value in values for each in value or ()])
        return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner)
    if pa.types.is_struct(kind):
        return pa.StructArray.from_arrays(
            [unchecked(each.type, [value[each.name] for value in values]) for each in kind], fields=list(kind)
        )
    return pa.array(values, kind)


def spoil(shop: SmallShop, table: str, column: str, row: int, value) -> None:
    """Write a cell of a saved table again."""
    path = shop.folder / f"{table}.parquet"
    data = pq.read_table(path)
    values = data[column].to_pylist()
    values[row] = value
    field = data.schema.field(column)
    pq.write_table(data.set_column(data.schema.get_field_index(column), field, unchecked(field.type, values)), path)


def night_with(shop: SmallShop, folder: Storage, cells: list[tuple], monkeypatch: pytest.MonkeyPatch, base=None):
    """A night of the shop with spoilt cells, and the inputs as they were read."""
    save, read = SmallShop.save, []

    def save_spoilt(self):
        if read:  # the same night's
            return read[0]
        save(self)
        for cell in cells:
            spoil(self, *cell)
        read.append(open_inputs(str(self.folder)))
        return read[0]

    monkeypatch.setattr(SmallShop, "save", save_spoilt)
    return shop.night(folder, base), read


@pytest.mark.parametrize(
    ("column", "value"), [("title", LATIN_1), ("selling_points", ["warm", LATIN_1]), ("cutout", LATIN_1 + b".png")]
)
def test_a_product_with_bad_text_is_a_row_with_a_reason_and_the_rest_is_made(shop, folder, monkeypatch, column, value):
    night, _ = night_with(shop, folder, [("products", column, 4, value)], monkeypatch)
    assert night.summary.pairs == len(shop.pairs)
    assert night.summary.reasons == {"bad_text": night.summary.planned_failures}
    bad = [row for row in night.generate if row["reason"]]
    assert {row["product_id"] for row in bad} == {"p4"}
    assert night.summary.planned_failures == len(bad)
    assert all("Caf\ufffd mug" in row["detail"] for row in bad)


def test_a_title_that_is_bad_tonight_keeps_the_previous_creative_and_changes_no_other(shop, folder, monkeypatch):
    first = shop.night(folder)
    second, _ = night_with(shop, folder, [("products", "title", 4, LATIN_1)], monkeypatch, first)
    assert {row["product_id"] for row in second.carry if row["stale"]} == {"p4"}
    assert second.summary.planned_failures == 0


def test_rows_with_a_bad_id_are_left_out_and_counted(shop, folder, monkeypatch):
    cells = [
        ("pairs", "user_id", 0, b"u\xff"),
        ("pairs", "product_id", 0, b"p\xff"),
        ("pairs", "locale", 3, b"\xe9"),
        ("products", "product_id", 11, b"p\xfe"),
        ("histories", "user_id", 2, b"\xc3("),
    ]
    click = {"product_id": b"\xff\xfe", "clicked_at": None}
    cells.append(("histories", "clicks", 3, [click, {"product_id": "p1", "clicked_at": None}, click]))
    night, read = night_with(shop, folder, cells, monkeypatch)
    assert night.summary.pairs == len(shop.pairs) - 2
    # A row with two bad ids is counted once.
    assert read[0].left_out == {
        "histories.clicks": 2,
        "histories.user_id": 1,
        "pairs.locale": 1,
        "pairs.user_id": 1,
        "products.product_id": 1,
    }
    assert {row["reason"] for row in night.generate} <= {None, "unknown_product"}
    assert pickle.loads(pickle.dumps(read[0])).left_out == read[0].left_out


def test_a_file_that_is_read_twice_counts_once_and_sound_text_is_not_touched(shop):
    shop.save()
    sound = open_inputs(str(shop.folder))["products"].reader().read_all()
    spoil(shop, "products", "brand", 2, LATIN_1)
    spoil(shop, "products", "title", 1, "\u676f\U0001f525 \ufffd")
    spoil(shop, "products", "product_id", 0, LATIN_1)
    table = open_inputs(str(shop.folder))["products"]
    for _ in range(2):
        found = table.reader().read_all()
    assert table.left_out == {"products.product_id": 1}
    assert found["title"].to_pylist()[0] == "\u676f\U0001f525 \ufffd"
    for name in ("selling_points", "image", "cutout", "scale", "product_id"):
        assert found[name].to_pylist() == sound[name].to_pylist()[1:]
