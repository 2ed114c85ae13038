"""A small shop whose tables are mutated and planned, in this process: which rows have to be as they were."""

import io
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as draw

from adgen.creatives.journal import Journal
from adgen.creatives.layout import new_run_id
from adgen.creatives.stores import open_storage
from adgen.records import INPUT_TABLES
from adgen.shop.catalog.catalog import CatalogPlace, build_catalog
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.plan.plan import make_plan
from support.shops import CountingEncoder, SmallShop, encoders, rules, small_shop

TABLES = ("products", "histories", "pairs")
Key = tuple[str, str]
Rows = dict[str, list[dict[str, Any]]]
BAD = b"caf\xe9 \xff"  # Latin-1, as exporters write it
TEXTS = (None, "", " ", "x" * 100_000, "\x00", "\x1b[31m", "\u202e", "\uffff", "p1", "u1", "茶", BAD, b"\xf0\x28\x8c\x28")
NUMBERS = (None, 0.0, -1.0, 2.0, float("nan"), float("inf"), 1e30, 1e-30, 0.7)
PATHS = (
    *TEXTS,
    "../../etc/passwd",
    "/etc/passwd",
    "s3://other/x.png",
    "http://x/y.png",
    "images/none.png",
    "images",
    "file:///dev/zero",
)
LISTS = (None, [], [None], ["" for _ in range(1000)], ["x" * 100_000], [BAD], ["a", None, BAD])
CLICKS = (
    None, [], [None], [{"product_id": None, "clicked_at": None}], [{"product_id": BAD, "clicked_at": None}],
    [{"product_id": "nobody's", "clicked_at": None}] * 3, [{"product_id": f"p{n % 12}", "clicked_at": None} for n in range(3000)],
)  # fmt: skip
ODD = {"scale": NUMBERS, "image": PATHS, "cutout": PATHS, "selling_points": LISTS, "clicks": CLICKS}


class Planned(NamedTuple):
    """A pair in the plan."""

    reason: str | None
    fingerprint: str | None


class FuzzedShop:
    """Twelve products, ten users, twenty pairs; what the sound tables come to."""

    def __init__(self, root: Path):
        self.shop: SmallShop = small_shop(root / "shop")
        self.shop.save()
        self.root, self.encoder = root, CountingEncoder()
        self.tables: Rows = {name: pq.read_table(root / "shop" / f"{name}.parquet").to_pylist() for name in TABLES}
        self.schemas = {name: pa.schema([field.with_nullable(True) for field in INPUT_TABLES[name]]) for name in TABLES}
        self.sound = self.plan(self.tables)

    def file(self, name: str) -> bytes:
        """The sound table's file."""
        return parquet(self.tables[name.removesuffix(".parquet")], self.schemas[name.removesuffix(".parquet")])

    def plan(
        self, tables: dict[str, Any], options: dict[str, dict] | None = None, damaged: dict[str, bytes] | None = None
    ) -> dict[Key, Planned]:
        """Catalog and plan of these tables: (user, product) -> what is planned. A table is rows, or an Arrow table."""
        folder = self.root / "mutated"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root / "shop", folder)
        for name in TABLES:
            data = parquet(tables[name], self.schemas[name], **(options or {}).get(name, {}))
            (folder / f"{name}.parquet").write_bytes((damaged or {}).get(f"{name}.parquet", data))
        inputs = open_inputs(str(folder))
        storage, scratch = open_storage(self.root / "store"), self.root / "scratch"
        place = CatalogPlace(storage, "a" * 64, "autumn", self.root / "cache")
        catalog = build_catalog(inputs, place, encoders(self.encoder), scratch)
        journal = Journal(storage, "autumn", new_run_id())
        parts, _ = make_plan(rules(), inputs, catalog, journal, self.root / "plan")
        rows = [row for part in parts for row in journal.read_plan_part(part).to_pylist()]
        shutil.rmtree(self.root / "store")
        return {(row["user_id"], row["product_id"]): Planned(row["reason"], row["fingerprint"]) for row in rows}

    def check_sound_rows(self, planned: dict[Key, Planned], touched: Collection[str]) -> None:
        """Every pair of users and products that were left alone is planned as it was."""
        clicked = {row["user_id"]: {click["product_id"] for click in row["clicks"]} for row in self.tables["histories"]}
        for (user, product), before in self.sound.items():
            if not ({user, product} | clicked[user]) & set(touched):
                assert planned.get((user, product)) == before, f"the pair of {user} and {product} was {before}"

    def check_names(self, said: str, table: str) -> None:
        """Who reads the sentence knows where to look."""
        assert table in said, said

    def touched_by(self, tables: dict[str, pa.Table]) -> frozenset[str]:
        """Whom a change of whole columns concerns: nobody where all say the same as before."""
        same = all(
            plain(table.to_pylist() if isinstance(table, pa.Table) else table) == plain(self.tables[name])
            for name, table in tables.items()
        )
        return frozenset() if same else frozenset(name for rows in self.tables.values() for row in rows for name in names_of(row))


def names_of(row: dict[str, Any]) -> set[str]:
    """The users and products that a row is of."""
    return {row[name] for name in ("user_id", "product_id") if isinstance(row.get(name), str)}


def plain(rows: list[dict]) -> list[dict]:
    """Rows as far as they say something: what is null is not there."""
    return [{name: value for name, value in row.items() if value is not None and name in ALL_COLUMNS} for row in rows]


ALL_COLUMNS = {field.name for name in TABLES for field in INPUT_TABLES[name]}


def parquet(rows: list[dict] | pa.Table, schema: pa.Schema, **options) -> bytes:
    """A file of rows in a schema, bytes among the text as they are; or of a table."""
    table = rows if isinstance(rows, pa.Table) else with_raw_text(rows, schema)
    out = io.BytesIO()
    pq.write_table(table, out, **options)
    return out.getvalue()


def with_raw_text(rows: list[dict], schema: pa.Schema) -> pa.Table:
    """A table whose strings hold the given bytes, UTF-8 or not."""
    columns = []
    for field in schema:
        binary = _as_binary(field.type)
        columns.append(pa.array([_encoded(row.get(field.name)) for row in rows], binary).view(field.type) if binary == pa.binary()
                       else _view(pa.array([_encoded(row.get(field.name)) for row in rows], binary), field.type))  # fmt: skip
    return pa.Table.from_arrays(columns, schema=schema)


def _view(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Binary as strings, at any depth, unchecked."""
    if array.type == kind:
        return array
    if pa.types.is_binary(array.type):
        return array.view(kind)
    if pa.types.is_list(kind):
        return pa.ListArray.from_arrays(array.offsets, _view(array.values, kind.value_type), type=kind, mask=array.is_null())
    fields = [_view(array.field(place), field.type) for place, field in enumerate(kind)]
    return pa.StructArray.from_arrays(fields, fields=list(kind), mask=array.is_null())


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind):
        return pa.binary()
    if pa.types.is_list(kind):
        return pa.list_(_as_binary(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, _as_binary(field.type)) for field in kind])
    return kind


def _encoded(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, list):
        return [_encoded(each) for each in value]
    if isinstance(value, dict):
        return {name: _encoded(each) for name, each in value.items()}
    return value


@draw.composite
def spoilt_cells(choose, tables: Rows) -> tuple[Rows, frozenset[str]]:
    """One to four cells other, or rows away or twice; and the users and products that this concerns."""
    changed, touched = {name: list(rows) for name, rows in tables.items()}, set()
    for _ in range(choose(draw.integers(1, 4))):
        name = choose(draw.sampled_from(TABLES))
        rows = changed[name]
        place = choose(draw.integers(0, len(rows) - 1))
        touched |= names_of(rows[place])
        act = choose(draw.sampled_from(("cell", "cell", "cell", "cell", "away", "twice")))
        if act == "cell":
            column = choose(draw.sampled_from(sorted(rows[place])))
            rows[place] = rows[place] | {column: choose(draw.sampled_from(ODD.get(column, TEXTS)))}
            touched |= names_of(rows[place])
        elif act == "away" and len(rows) > 1:
            del rows[place]
        else:
            rows.insert(choose(draw.integers(0, len(rows))), rows[place])
    return changed, frozenset(touched)


@draw.composite
def spoilt_columns(choose, tables: Rows) -> tuple[dict[str, Any], str]:
    """A table with a column away, twice, of nulls, under another name or of another type, or with one more; and its name."""
    name = choose(draw.sampled_from(TABLES))
    schema = pa.schema([field.with_nullable(True) for field in INPUT_TABLES[name]])
    table = pa.Table.from_pylist(tables[name], schema)
    place = choose(draw.integers(0, len(schema) - 1))
    field, column = schema[place], table.column(place)
    act = choose(draw.sampled_from(("away", "twice", "null", "renamed", "type", "type", "type", "more", "order", "none")))
    if act == "away":
        table = table.remove_column(place)
    elif act == "twice":
        table = table.append_column(field, column)
    elif act == "null":
        table = table.set_column(place, field.name, pa.nulls(table.num_rows))
    elif act == "renamed":
        table = table.rename_columns([each.upper() if each == field.name else each for each in table.column_names])
    elif act == "type":
        table = table.set_column(place, field.name, _of_other_type(choose, column))
    elif act == "more":
        table = table.append_column("extra", pa.array([[{"a": b"\xff"}]] * table.num_rows))
    elif act == "order":
        table = table.select(choose(draw.permutations(table.column_names)))
    else:
        table = table.slice(0, 0)
    return tables | {name: table}, name


def _of_other_type(choose, column: pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    kinds = (
        pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()), pa.binary(), pa.large_binary(), pa.int64(),
        pa.float64(), pa.float16(), pa.bool_(), pa.date32(), pa.decimal128(20, 3), pa.large_list(pa.large_string()),
        pa.list_(pa.int32()), pa.large_list(pa.struct([("product_id", pa.large_string()), ("clicked_at", pa.timestamp("ns"))])),
        pa.list_(pa.struct([("product_id", pa.string())])), pa.struct([("product_id", pa.string())]),
        pa.map_(pa.string(), pa.string()),
    )  # fmt: skip
    kind = choose(draw.sampled_from(kinds))
    try:
        return column.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return pa.nulls(len(column), kind)


def rewritten(rows: list[dict]) -> draw.SearchStrategy[dict[str, Any]]:
    """How the same table may be written."""
    return draw.fixed_dictionaries(
        {
            "compression": draw.sampled_from(("none", "snappy", "gzip", "brotli", "lz4", "zstd")),
            "use_dictionary": draw.booleans(),
            "data_page_version": draw.sampled_from(("1.0", "2.0")),
            "row_group_size": draw.sampled_from((1, 3, 1000)),
            "version": draw.sampled_from(("1.0", "2.4", "2.6")),
            "write_statistics": draw.booleans(),
            "store_schema": draw.booleans(),
            "data_page_size": draw.sampled_from((1, 100, 2**20)),
            "write_page_checksum": draw.booleans(),
            "coerce_timestamps": draw.sampled_from((None, "ms", "us")),
            "allow_truncated_timestamps": draw.just(True),
        }
    )
