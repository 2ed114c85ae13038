"""The input tables: what is accepted, what stops a run before any work, and what a row's URI may name."""

import os
import pickle
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer
from support.shops import small_shop

from adgen import records
from adgen.creatives.s3 import s3_client, s3_filesystem
from adgen.creatives.storage import S3Access
from adgen.creatives.stores import open_storage
from adgen.errors import InputError, PairError
from adgen.shop.inputs.locations import read_bytes, resolve_uri, stat
from adgen.shop.inputs.tables import open_inputs

PRODUCT = {
    "product_id": "p1",
    "title": "Red mug",
    "selling_points": ["easy grip"],
    "image": "images/p1.jpg",
    "cutout": None,
    "scale": 0.5,
    "category": "mug",
    "brand": None,
    "locale": "en",
}
CLICKED = datetime(2026, 1, 1, tzinfo=UTC)


def write_inputs(folder: Path, **changed: pa.Table) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    click = {"product_id": "p1", "clicked_at": CLICKED}
    tables = {
        "products": pa.Table.from_pylist([PRODUCT], records.PRODUCTS),
        "histories": pa.Table.from_pylist([{"user_id": "u1", "clicks": [click]}], records.HISTORIES),
        "pairs": pa.Table.from_pylist([{"user_id": "u1", "product_id": "p1"}], records.PAIRS),
    } | changed
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet")
    return folder


@pytest.fixture(scope="module")
def s3():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket="shop")
        yield client
    server.stop()


def test_streams_rows_in_the_documented_types(tmp_path):
    inputs = open_inputs(write_inputs(tmp_path))
    assert inputs["products"].num_rows == 1
    (batch,) = inputs["products"].batches()
    assert batch.to_pylist()[0] == PRODUCT
    assert inputs["histories"].reader(["clicks"]).read_all().schema.field("clicks").type == pa.list_(records.CLICK)


def test_reads_a_folder_of_parts_and_skips_what_is_not_one(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "pairs.parquet").unlink()
    (tmp_path / "pairs").mkdir()
    for part in range(3):
        rows = [{"user_id": f"u{part}", "product_id": "p1"}]
        pq.write_table(pa.Table.from_pylist(rows, records.PAIRS), tmp_path / f"pairs/{part}.parquet")
    (tmp_path / "pairs/_SUCCESS").touch()
    (tmp_path / "pairs/.hidden.parquet").write_bytes(b"not parquet")
    pairs = open_inputs(tmp_path)["pairs"]
    assert [batch["user_id"].to_pylist() for batch in pairs.batches()] == [["u0"], ["u1"], ["u2"]]
    remote = pickle.loads(pickle.dumps(pairs))
    assert [batch.num_rows for batch in remote.batches(files=remote.files[1:2])] == [1]


def split_pairs(folder: Path, *places: str) -> Path:
    """A shop whose table pairs has one row, of a user of its own, in a file at each place."""
    write_inputs(folder)
    (folder / "pairs.parquet").unlink()
    for number, place in enumerate(places):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        rows = pa.Table.from_pylist([{"user_id": f"u{number}", "product_id": "p1"}], records.PAIRS)
        pq.write_table(rows, folder / place)
    return folder


READ = {
    "endings in capitals": ("pairs/a.parquet", "pairs/b.PARQUET", "pairs/c.Parquet"),
    "a file with its ending in capitals": ("pairs.PARQUET",),
    "a folder that is called like a file": ("pairs.parquet/part-0.parquet", "pairs.parquet/part-1.snappy.parquet"),
    "partitions": ("pairs/date=2026-11-27/part-0.parquet", "pairs/date=2026-11-28/hour=3/part-0.parquet"),
    "parts beside partitions": ("pairs/part-0.parquet", "pairs/date=2026-11-28/part-0.parquet"),
}
LEFT = ("pairs/_temporary/0/x.parquet", "pairs/.hidden.parquet", "pairs/_metadata.parquet", "pairs/.spark/y.parquet")
REFUSED = {
    "a sub-folder that is no partition": ("pairs/part-0.parquet", "pairs/old/part-0.parquet"),
    "a partition of a column": ("pairs/part-0.parquet", "pairs/locale=en/part-0.parquet"),
    "two places": ("pairs.parquet/part-0.parquet", "pairs/part-0.parquet"),
    "two files": ("pairs.parquet", "pairs.PARQUET"),
}


def pairs_of(folder: Path, s3, uri: str) -> list[str]:
    """Users of the table pairs in a folder, read there or from a copy on S3."""
    if uri:
        for path in (path for path in folder.rglob("*") if path.is_file()):
            s3.upload_file(str(path), "shop", f"{folder.name}/{path.relative_to(folder)}")
        s3.put_object(Bucket="shop", Key=f"{folder.name}/pairs/", Body=b"")  # what a console leaves
    return sorted(open_inputs(f"{uri}/{folder.name}" if uri else folder)["pairs"].reader().read_all()["user_id"].to_pylist())


@pytest.mark.parametrize("uri", ["", "s3://shop"], ids=["folder", "s3"])
@pytest.mark.parametrize("name", READ)
def test_every_part_of_a_table_is_read(s3, tmp_path, name, uri):
    folder = split_pairs(tmp_path / f"read {name}", *READ[name])
    for place in LEFT if (folder / "pairs").is_dir() else ():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(b"no parquet")
    assert pairs_of(folder, s3, uri) == [f"u{number}" for number in range(len(READ[name]))]


@pytest.mark.parametrize("uri", ["", "s3://shop"], ids=["folder", "s3"])
@pytest.mark.parametrize("name", REFUSED)
def test_parts_whose_rows_would_be_lost_or_doubled_are_refused_by_name(s3, tmp_path, name, uri):
    folder = split_pairs(tmp_path / f"refused {name}", *REFUSED[name])
    with pytest.raises(InputError, match=r"'pairs'.*(is there twice|pairs/old/part-0\.parquet|pairs/locale=en/part-0\.parquet)"):
        pairs_of(folder, s3, uri)


def test_optional_columns_may_be_absent_and_extra_ones_are_ignored(tmp_path):
    rows = [{key: PRODUCT[key] for key in ("product_id", "title", "selling_points", "image", "scale")} | {"stock": 3}]
    pairs = pa.table({"product_id": ["p1"], "user_id": ["u1"], "note": ["x"]})
    inputs = open_inputs(write_inputs(tmp_path, products=pa.Table.from_pylist(rows), pairs=pairs))
    (product,) = inputs["products"].reader().read_all().to_pylist()
    assert "stock" not in product
    assert product["cutout"] is None
    (pair,) = inputs["pairs"].reader().read_all().to_pylist()
    assert pair == {"user_id": "u1", "product_id": "p1", "locale": None, "channel": None}


def test_accepts_the_types_that_other_writers_use(tmp_path):
    products = pa.table(
        {
            "product_id": pa.array(["p1", "p2"]).dictionary_encode(),
            "title": pa.array(["a", None], pa.large_string()),
            "selling_points": pa.array([["x"], None], pa.large_list(pa.large_string())),
            "image": pa.array(["i", "i"]),
            "scale": pa.array([0.25, 1.0], pa.float64()),
            "brand": pa.nulls(2),
        }
    )
    naive = pa.struct([("clicked_at", pa.timestamp("ns")), ("source", pa.string()), ("product_id", pa.large_string())])
    clicks = [[{"product_id": "p1", "clicked_at": CLICKED.replace(tzinfo=None), "source": "app"}], None]
    histories = pa.table({"user_id": ["u1", None], "clicks": pa.array(clicks, pa.list_(naive))})
    inputs = open_inputs(write_inputs(tmp_path, products=products, histories=histories))
    assert [row["scale"] for row in inputs["products"].reader().read_all().to_pylist()] == [0.25, 1.0]
    rows = inputs["histories"].reader().read_all().to_pylist()
    assert rows[0]["clicks"] == [{"product_id": "p1", "clicked_at": CLICKED}]
    assert rows[1] == {"user_id": None, "clicks": None}  # a null is its row's trouble, not the table's


def test_clicks_without_times_are_accepted_and_clicks_without_products_are_not(tmp_path):
    untimed = pa.table({"user_id": ["u1"], "clicks": [[{"product_id": "p1"}]]})
    inputs = open_inputs(write_inputs(tmp_path / "a", histories=untimed))
    (row,) = inputs["histories"].reader().read_all().to_pylist()
    assert row["clicks"] == [{"product_id": "p1", "clicked_at": None}]
    nameless = pa.table({"user_id": ["u1"], "clicks": pa.array([[{"sku": "p1"}]])})
    with pytest.raises(InputError, match=r"'histories': column 'clicks': expected list<.*found list<.*sku"):
        open_inputs(write_inputs(tmp_path / "b", histories=nameless))


@pytest.mark.parametrize(
    ("column", "values", "expected", "found"),
    [
        ("product_id", pa.array([7]), "string", "int64"),
        ("title", pa.array([b"x"]), "string", "binary"),
        ("selling_points", pa.array(["easy grip"]), "list<", "string"),
        ("scale", pa.array(["0.5"]), "float", "string"),
    ],
)
def test_a_wrong_type_names_table_column_expected_and_found(tmp_path, column, values, expected, found):
    table = pa.Table.from_pylist([PRODUCT], records.PRODUCTS)
    table = table.set_column(table.schema.get_field_index(column), column, values)
    pattern = rf"'products': column '{column}': expected {expected}.*, found {found} in .*products.parquet"
    with pytest.raises(InputError, match=pattern):
        open_inputs(write_inputs(tmp_path, products=table))


def test_a_missing_column_table_or_row_stops_the_run(tmp_path):
    folder = write_inputs(tmp_path / "a", pairs=pa.table({"user_id": ["u1"]}))
    with pytest.raises(InputError, match=r"'pairs': column 'product_id' \(string\) is missing"):
        open_inputs(folder)
    (folder / "pairs.parquet").unlink()
    with pytest.raises(InputError, match=r"'pairs' is missing; expected pairs.parquet or pairs/"):
        open_inputs(folder)
    with pytest.raises(InputError, match="'pairs' has no rows"):
        open_inputs(write_inputs(tmp_path / "b", pairs=records.PAIRS.empty_table()))
    with pytest.raises(InputError, match="'products' is missing"):
        open_inputs(tmp_path / "nowhere")


def test_one_bad_part_among_many_is_named(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "pairs.parquet").rename(tmp_path / "first")
    (tmp_path / "pairs").mkdir()
    (tmp_path / "first").rename(tmp_path / "pairs/0.parquet")
    (tmp_path / "pairs/1.parquet").write_bytes(b"PAR1 cut off")
    with pytest.raises(InputError, match=r"pairs/1.parquet cannot be read as Parquet"):
        open_inputs(tmp_path)
    pq.write_table(pa.table({"user_id": [1], "product_id": ["p"]}), tmp_path / "pairs/1.parquet")
    with pytest.raises(InputError, match=r"'user_id': expected string, found int64 in .*pairs/1.parquet"):
        open_inputs(tmp_path)


def test_pages_broken_behind_a_good_footer_are_an_input_error(tmp_path):
    write_inputs(tmp_path)
    data = bytearray((tmp_path / "pairs.parquet").read_bytes())
    data[4:40] = b"\xff" * 36
    (tmp_path / "pairs.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"pairs.parquet: cannot be read to its end"):
        open_inputs(tmp_path)["pairs"].reader().read_all()


def test_both_forms_of_one_table_are_refused(tmp_path):
    write_inputs(tmp_path)
    (tmp_path / "pairs").mkdir()
    pq.write_table(pq.read_table(tmp_path / "pairs.parquet"), tmp_path / "pairs/0.parquet")
    with pytest.raises(InputError, match="'pairs' is there twice"):
        open_inputs(tmp_path)


def test_stamps_change_with_the_file(tmp_path):
    write_inputs(tmp_path)
    before = open_inputs(tmp_path).stamps
    assert open_inputs(tmp_path).stamps == before
    os.utime(tmp_path / "pairs.parquet", ns=(1, 1))
    after = open_inputs(tmp_path).stamps
    assert [Path(uri).name for uri in before if before[uri] != after[uri]] == ["pairs.parquet"]


def test_a_rows_uri_means_a_file_beside_the_tables(tmp_path):
    base = str(tmp_path / "shop")
    assert resolve_uri("images/a b%20.jpg", base) == f"{base}/images/a b%20.jpg"
    assert resolve_uri("images/../x.jpg", base) == f"{base}/x.jpg"
    assert resolve_uri(f"file://{base}/a%20b.jpg", base) == f"{base}/a b.jpg"
    assert resolve_uri("images/1.jpg", "s3://shop/in/") == "s3://shop/in/images/1.jpg"
    assert resolve_uri("s3://other/k.jpg", "s3://shop/in", ["s3://other"]) == "s3://other/k.jpg"
    assert resolve_uri("/data/k.jpg", "s3://shop/in", ["/data"]) == "/data/k.jpg"


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("../secret.jpg", "outside_roots"),
        ("/etc/passwd", "outside_roots"),
        ("file:///etc/passwd", "outside_roots"),
        ("images/../../shop2/a.jpg", "outside_roots"),
        (".", "outside_roots"),
        ("s3://elsewhere/a.jpg", "outside_roots"),
        ("http://host/a.jpg", "scheme_not_allowed"),
        ("data:image/png;base64,AAAA", "scheme_not_allowed"),
        ("HTTPS://host/a.jpg", "scheme_not_allowed"),
        ("file://host/a.jpg", "unreadable"),
        ("s3:shop", "unreadable"),
        ("a\0b.jpg", "unreadable"),
        ("a\ud83d.jpg", "unreadable"),
        ("", "missing_file"),
    ],
)
def test_a_uri_that_may_not_be_read_has_its_reason(tmp_path, uri, reason):
    (tmp_path / "shop").mkdir()
    with pytest.raises(PairError) as caught:
        read_bytes(resolve_uri(uri, str(tmp_path / "shop")))
    assert caught.value.reason == reason


@pytest.mark.parametrize("uri", ["../x.jpg", "../../x.jpg", "s3://shop/in2/x.jpg", "s3://evil/x?endpoint_override=host"])
def test_s3_rows_stay_under_their_prefix(uri):
    with pytest.raises(PairError, match="outside_roots"):
        resolve_uri(uri, "s3://shop/in")


def test_schemes_can_be_narrowed(tmp_path):
    with pytest.raises(PairError, match="scheme_not_allowed"):
        resolve_uri("s3://shop/a.jpg", str(tmp_path), ["s3://shop"], ["file"])


def test_a_symlink_out_of_the_roots_is_refused_and_one_inside_followed(tmp_path):
    shop, outside = tmp_path / "shop", tmp_path / "outside"
    shop.mkdir()
    outside.mkdir()
    (outside / "a.jpg").write_bytes(b"secret")
    (shop / "b.jpg").write_bytes(b"fine")
    (shop / "folder").symlink_to(outside)
    (shop / "link.jpg").symlink_to("b.jpg")
    with pytest.raises(PairError, match="outside_roots"):
        resolve_uri("folder/a.jpg", str(shop))
    assert read_bytes(resolve_uri("link.jpg", str(shop))) == b"fine"
    assert read_bytes(resolve_uri("folder/a.jpg", str(shop), [str(outside)])) == b"secret"


def test_picture_roots_come_from_the_folder_and_from_the_caller(tmp_path):
    shop = write_inputs(tmp_path / "shop")
    (shop / "picture_roots.json").write_text(f'["{tmp_path}/photos"]')
    inputs = open_inputs(shop, allowed_roots=[f"{tmp_path}/more"])
    assert inputs.resolve(f"{tmp_path}/photos/1.jpg")
    assert inputs.resolve(f"{tmp_path}/more/1.jpg")
    with pytest.raises(PairError, match="outside_roots"):
        inputs.resolve(f"{tmp_path}/other/1.jpg")
    (shop / "picture_roots.json").write_text('"/"')
    with pytest.raises(InputError, match=r"picture_roots\.json: expected a JSON list"):
        open_inputs(shop)


def test_reading_a_picture_has_limits_and_reasons(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe")
    assert read_bytes(str(tmp_path / "a.jpg"), 5) == b"12345"
    reasons = {"a.jpg": "too_large_file", "none.jpg": "missing_file", "a.jpg/b": "missing_file", "pipe": "unreadable"}
    for name, reason in reasons.items():
        with pytest.raises(PairError) as caught:
            read_bytes(str(tmp_path / name), 4)
        assert caught.value.reason == reason
    with pytest.raises(PairError, match="missing_file"):
        stat(str(tmp_path / "none.jpg"))


def test_everything_works_the_same_on_s3(s3, tmp_path):
    for path in write_inputs(tmp_path).iterdir():
        s3.upload_file(str(path), "shop", f"in/{path.name}")
    s3.put_object(Bucket="shop", Key="in/images/p1.jpg", Body=b"picture")
    inputs = open_inputs("s3://shop/in/")
    assert inputs["products"].reader().read_all().to_pylist() == [PRODUCT]
    assert all(stamp.startswith("etag:") for stamp in inputs.stamps.values())
    picture = inputs.resolve("images/p1.jpg")
    assert read_bytes(picture) == b"picture"
    before = stat(picture)
    s3.put_object(Bucket="shop", Key="in/images/p1.jpg", Body=b"PICTURE")
    assert stat(picture) != before
    for uri, reason in (("images/no.jpg", "missing_file"), ("images", "missing_file")):
        with pytest.raises(PairError, match=reason):
            read_bytes(inputs.resolve(uri))
    with pytest.raises(PairError, match="too_large_file"):
        read_bytes(picture, 3)
    with pytest.raises(InputError, match="'products' is missing"):
        open_inputs("s3://shop/elsewhere")
    with pytest.raises(InputError, match=r"cannot look for table 'products': Empty path component"):
        open_inputs("s3://shop//in")
    with pytest.raises(InputError, match="no_such_bucket"):
        open_inputs("s3://no_such_bucket/in")
    with pytest.raises(InputError, match="not a local path"):
        open_inputs("gs://bucket/in")


@pytest.mark.parametrize("key", ["in/images//p1.jpg", "in/./images/p1.jpg", "in//p1.jpg", "in/a b/%20+é.jpg", "in/.jpg"])
def test_s3_keys_are_taken_as_they_are(s3, tmp_path, key):
    for path in write_inputs(tmp_path).iterdir():
        s3.upload_file(str(path), "shop", f"in/{path.name}")
    s3.put_object(Bucket="shop", Key=key, Body=key.encode())
    inputs = open_inputs("s3://shop/in")
    relative = key.removeprefix("in/")
    # What begins with a slash is a path of the machine, and ./ is the folder itself.
    for uri in (f"s3://shop/{key}", *([] if relative.startswith(("/", "./")) else [relative])):
        assert read_bytes(inputs.resolve(uri)) == key.encode()
        assert stat(inputs.resolve(uri)).startswith("etag:")
    with pytest.raises(PairError, match="too_large_file"):
        read_bytes(inputs.resolve(f"s3://shop/{key}"), 3)


CONFIGURED = """
[profile night]
region = eu-west-3
services = local
aws_access_key_id = from-the-profile
aws_secret_access_key = secret
[services local]
s3 =
  endpoint_url = {endpoint}
"""


@pytest.mark.parametrize("configured", ["variables", "profile", "settings"])
def test_inputs_and_store_are_reached_alike(s3, tmp_path, monkeypatch, configured):
    """Endpoint, region and credentials of pyarrow, boto3's inputs and the store, however they are given."""
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    for path in write_inputs(tmp_path).iterdir():
        s3.upload_file(str(path), "shop", f"in/{path.name}")
    s3.put_object(Bucket="shop", Key="in/images/p1.jpg", Body=b"picture")
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(CONFIGURED.format(endpoint=endpoint))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / ("config" if configured == "profile" else "none")))
    access = S3Access()
    if configured == "variables":
        given = {"ENDPOINT_URL_S3": endpoint, "REGION": "eu-west-3", "ACCESS_KEY_ID": "from-variables", "SECRET_ACCESS_KEY": "s"}
    elif configured == "profile":
        given = {"PROFILE": "night"}
    else:
        given = {"ACCESS_KEY_ID": "from-variables", "SECRET_ACCESS_KEY": "s"}
        access = S3Access(endpoint_url=endpoint, region="eu-west-3")
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with access.exported():
        assert s3_client(access).meta.endpoint_url == s3_client(S3Access()).meta.endpoint_url == endpoint
        assert s3_client(access).meta.region_name == s3_filesystem("shop", S3Access()).region == "eu-west-3"
        inputs = open_inputs("s3://shop/in")
        assert inputs["products"].reader().read_all().to_pylist() == [PRODUCT]
        assert read_bytes(inputs.resolve("images/p1.jpg")) == b"picture"
        open_storage("s3://shop/store", access).put("objects/x", b"1")
    assert "AWS_ENDPOINT_URL_S3" not in os.environ or configured == "variables"


def test_without_an_endpoint_both_halves_go_to_aws(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setattr("adgen.creatives.s3._s3_filesystem", lambda *arguments: arguments)
    assert s3_client(S3Access()).meta.endpoint_url == "https://s3.eu-central-1.amazonaws.com"
    assert s3_filesystem("shop", S3Access())[:3] == ("", None, "eu-central-1")
    monkeypatch.delenv("AWS_REGION")
    assert s3_filesystem("shop", S3Access())[:3] == ("shop", None, None)  # S3 is asked for the bucket's region


def test_a_column_of_no_rows_loses_none_silently(tmp_path):
    """Arrow 26 writes lists in pages of a byte so that it reads no row of them, and says nothing."""
    small_shop(tmp_path).save()
    path = tmp_path / "products.parquet"
    pq.write_table(pq.read_table(path), path, data_page_size=1, row_group_size=1, use_dictionary=True)
    table = open_inputs(str(tmp_path), ("products",))["products"]
    with pytest.raises(InputError, match=r"products.parquet: cannot be read to its end: 0 of its \d+ rows are there"):
        list(table.batches(["product_id", "selling_points"]))
    assert sum(batch.num_rows for batch in table.batches(["product_id"])) == table.num_rows
