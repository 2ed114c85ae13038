"""Stores that are damaged, newer or closed: what is wrong and what to do, an exit code, nothing half done."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.requests_of_s3 import counted
from support.runs import CAMPAIGN, make_rows, pair_ids, publish_rows, refresh, with_values

from adgen.cli import main
from adgen.creatives import layout, open_campaign, reading
from adgen.creatives.publish import read_pointer
from adgen.creatives.pull import pull
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.verify import verify
from adgen.errors import ConsumerError, StoreError
from adgen.records import MANIFEST

# -- bad stores ------------------------------------------------------------------------------------------------


def change_file(store: Storage, run, change: Callable[[bytes], bytes]) -> None:
    key = run.run.manifest[0].key
    store.put(key, change(store.read(key)))


def flip(data: bytes) -> bytes:
    """Another bit in the middle of the rows: Parquet's footer stays as it was."""
    return data[:200] + bytes([data[200] ^ 1]) + data[201:]


@pytest.mark.parametrize(
    "change", [flip, lambda data: data[:-9], lambda data: data + b"x", lambda data: b"", lambda data: b"x" * len(data)]
)
def test_a_damaged_manifest_file_is_named_whole_and_in_pieces(store: Storage, change):
    run = publish_rows(store, make_rows(store, pair_ids(8)))
    change_file(store, run, change)
    campaign = open_campaign(store.uri, CAMPAIGN, getattr(store, "access", None))
    for columns, where in ((None, None), (MANIFEST.names[:-1], None), (None, [("user_key", ">", "")])):
        with pytest.raises(ConsumerError, match=rf"{run.run.manifest[0].key}: differs from what run\.json says"):
            list(campaign.published().rows(columns, where))


def test_a_pointer_to_a_run_that_is_not_there_says_what_to_do(store: Storage):
    run = publish_rows(store, make_rows(store, pair_ids(2)))
    store.drop(layout.run_document(CAMPAIGN, run.run.run_id))
    with pytest.raises(
        ConsumerError, match=r"there is no such run, and .*latest\.json names it; `adgen rollback` publishes another run"
    ):
        open_campaign(store.uri, CAMPAIGN, getattr(store, "access", None)).published()


def test_a_newer_schema_is_named_with_the_way_out(folder_store: Storage):
    rows = with_values(make_rows(folder_store, pair_ids(2)), schema_version=[1, 2])
    run = publish_rows(folder_store, rows)
    for columns in (None, ["title"]):
        with pytest.raises(ConsumerError, match="has manifest schema 2, this adgen reads 1; update adgen"):
            list(run.rows(columns))
    key = layout.run_document(CAMPAIGN, run.run.run_id)
    folder_store.swap(key, run.run.model_copy(update={"schema_version": 3}).to_bytes(), folder_store.get(key).etag)
    with pytest.raises(ConsumerError, match=r"run\.json: has manifest schema 3"):
        open_campaign(folder_store.uri, CAMPAIGN).published()


def test_a_campaign_that_is_none_is_named(tmp_path: Path):
    with pytest.raises(ConsumerError, match="campaign nobody has nothing published; check the store and the name"):
        open_campaign(tmp_path, "nobody").published()
    with pytest.raises(StoreError, match="use 1-64 letters"):
        open_campaign(tmp_path, "../../etc")
    with pytest.raises(StoreError, match="not a store"):
        open_campaign("s3:/bucket", "nobody")


# -- no right --------------------------------------------------------------------------------------------------


def deny(store: Storage, prefix: str) -> None:
    """A bucket policy, which the server obeys."""
    resource = f"arn:aws:s3:::{store.bucket}/{store._prefix}{prefix}*"
    rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": resource}
    store._client.put_bucket_policy(Bucket=store.bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [rule]}))


def everything(uri: str, access: S3Access) -> list:
    run = open_campaign(uri, CAMPAIGN, access).published()
    return list(run.pictures(run.rows()))


@pytest.mark.parametrize("prefix", ["campaigns/", "objects/", f"campaigns/{CAMPAIGN}/runs/"])
def test_no_right_on_a_prefix_names_it_and_leaves_the_mirror_as_it_was(
    s3_uri: str, s3_access: S3Access, aws_environment, tmp_path: Path, capsys: pytest.CaptureFixture, prefix: str
):
    store = open_storage(s3_uri, s3_access)
    before = refresh(store, pair_ids(4), "old")
    pull(store, CAMPAIGN, tmp_path / "pulled")
    refresh(store, pair_ids(4), "new")
    deny(store, prefix)
    with pytest.raises(StoreError, match=rf"{store.uri}/{prefix}.*403.*consumers need s3:GetObject on objects/\* and campaigns"):
        everything(s3_uri, s3_access)
    assert main(["pull", s3_uri, CAMPAIGN, str(tmp_path / "pulled")]) == 1
    said = capsys.readouterr().err
    assert "these credentials may not do that there" in said
    assert len(said.splitlines()) == 1
    assert open_campaign(tmp_path / "pulled", CAMPAIGN).published().run.run_id == before.run_id
    assert verify(open_storage(tmp_path / "pulled"), CAMPAIGN).problems == []


def test_operators_without_a_right_are_told_it_is_private(s3_uri: str, s3_access: S3Access, aws_environment, capsys):
    store = open_storage(s3_uri, s3_access)
    before, after = refresh(store, pair_ids(4), "old"), refresh(store, pair_ids(4), "new")
    deny(store, "private/")
    assert main(["status", s3_uri]) == 0
    capsys.readouterr()
    assert main(["diff", s3_uri, CAMPAIGN, before.run_id, after.run_id, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["why"] == {"changed: unknown": 3}
    assert f"{store.uri}/private/" in said["note"]


BAD_STORES = {
    "no run.json": (lambda store, run: store.drop(layout.run_document(CAMPAIGN, run.run_id)), "there is no such run"),
    "no part": (lambda store, run: store.delete(run.manifest[0].key), "is gone; read latest.json again"),
    "another part": (
        lambda store, run: store.put(run.manifest[0].key, b"x" * run.manifest[0].bytes),
        "differs from what run.json says",
    ),
    "a newer run.json": (
        lambda store, run: write(store, run.model_copy(update={"schema_version": 2})),
        "update adgen to read it",
    ),
    "another list of parts": (
        lambda store, run: write(store, run.model_copy(update={"manifest": ()})),
        "is not the one that was published",
    ),
    "a run that is not sealed": (lambda store, run: write(store, run.model_copy(update={"counts": None})), "has no manifest yet"),
    "run.json that is none": (lambda store, run: write(store, b"{"), "not a RunDocument"),
}


def write(store: Storage, run) -> None:
    key = layout.run_document(CAMPAIGN, store_run(store))
    store.swap(key, run if isinstance(run, bytes) else run.to_bytes(), store.get(key).etag)


def store_run(store: Storage) -> str:
    return read_pointer(store, CAMPAIGN)[0].run_id


@pytest.mark.parametrize("name", BAD_STORES)
def test_a_bad_store_is_one_sentence_an_exit_code_and_nothing_half_done(
    folder_store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture, name: str
):
    refresh(folder_store, pair_ids(4), "old")
    pull(folder_store, CAMPAIGN, tmp_path / "pulled")
    before = open_campaign(tmp_path / "pulled", CAMPAIGN).published().run.run_id
    run = refresh(folder_store, pair_ids(4), "new").document
    spoil, said = BAD_STORES[name]
    spoil(folder_store, run)
    with pytest.raises((ConsumerError, StoreError), match=re.escape(said)):
        list(open_campaign(folder_store.uri, CAMPAIGN).published().rows())
    commands = (
        ["pull", folder_store.uri, CAMPAIGN, str(tmp_path / "pulled")],
        ["diff", folder_store.uri, CAMPAIGN, before, run.run_id],
    )
    for command in commands[: 1 if name == "another list of parts" else 2]:
        assert main(command) == 1, command
        told = capsys.readouterr().err
        assert said in told
        assert (told.startswith("adgen: "), len(told.splitlines())) == (True, 1)
    assert main(["status", folder_store.uri]) == (0 if "part" in name and "list" not in name else 4)
    assert open_campaign(tmp_path / "pulled", CAMPAIGN).published().run.run_id == before
    assert verify(open_storage(tmp_path / "pulled"), CAMPAIGN).problems == []


def test_a_document_that_is_far_too_large_is_not_read(s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch):
    store = open_storage(s3_uri, s3_access)
    refresh(store, pair_ids(2))
    monkeypatch.setattr(reading, "_MOST_DOCUMENT_BYTES", 50)
    with counted(s3_access) as requests, pytest.raises(ConsumerError, match="bytes, which no such document has"):
        open_campaign(s3_uri, CAMPAIGN, s3_access).published()
    assert sum(requests.bytes) <= 50
