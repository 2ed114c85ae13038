"""What is particular to S3: lost responses, conflicts, checksums, headers, versions."""

import base64
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError

from adgen.creatives.objects import put_object
from adgen.creatives.probe import probe
from adgen.creatives.s3 import S3Storage
from adgen.creatives.storage import S3Access, Taken
from adgen.errors import StoreError


def test_secrets_are_not_saved_with_settings(s3_access: S3Access):
    assert "test" not in s3_access.model_dump_json()
    assert "secret_access_key" not in s3_access.model_dump()
    assert "SecretStr('test')" not in repr(s3_access)


def test_objects_on_s3_carry_checksum_type_and_cache_rule(s3_uri: str, s3_access: S3Access):
    store = S3Storage(s3_uri, s3_access)
    sent = []
    store._client.meta.events.register("before-call.s3.PutObject", lambda params, **_: sent.append(params["headers"]))
    reference = put_object(store, b"picture", "webp")
    store.swap("campaigns/c/latest.json", b"{}", None)
    store.put("private/x.parquet", b"")

    def head(key: str) -> dict:
        return store._client.head_object(Bucket=store.bucket, Key=store._prefix + key, ChecksumMode="ENABLED")

    picture = head(reference.uri)
    assert picture["ContentType"] == "image/webp"
    assert "immutable" in picture["CacheControl"]
    assert sent[0]["x-amz-checksum-sha256"] == base64.b64encode(bytes.fromhex(reference.sha256)).decode()
    assert sent[0]["If-None-Match"] == "*"
    assert head("campaigns/c/latest.json")["CacheControl"] == "no-cache"
    assert head("private/x.parquet")["CacheControl"] == "private, no-store"


@pytest.mark.parametrize("as_given_back", [str.lower, str.title])
def test_a_lost_response_of_our_own_create_is_no_loss(
    s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch, as_given_back: Callable[[str], str]
):
    """botocore sends the PUT again and S3 says 412: the write-id shows that the first one was ours, also where a server gives
    the names of metadata back in capitals."""
    store = S3Storage(s3_uri, s3_access)
    head = store._client.head_object

    def head_in_capitals(**request):
        found = head(**request)
        return found | {"Metadata": {as_given_back(name): value for name, value in found["Metadata"].items()}}

    monkeypatch.setattr(store._client, "head_object", head_in_capitals)
    put = store._client.put_object

    def put_twice(**request):
        put(**request)
        return put(**request)

    monkeypatch.setattr(store._client, "put_object", put_twice)
    store.create("objects/x", b"ours")
    etag = store.swap("doc.json", b"1", None)
    assert store.swap("doc.json", b"2", etag) == store.get("doc.json").etag
    monkeypatch.undo()
    with pytest.raises(Taken):
        store.create("objects/x", b"theirs")


def test_a_conflict_is_tried_again(s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch):
    store = S3Storage(s3_uri, s3_access)
    put, calls = store._client.put_object, []

    def busy_at_first(**request):
        calls.append(1)
        if len(calls) < 3:
            answer = {"Error": {"Code": "ConditionalRequestConflict"}, "ResponseMetadata": {"HTTPStatusCode": 409}}
            raise ClientError(answer, "PutObject")
        return put(**request)

    monkeypatch.setattr(store._client, "put_object", busy_at_first)
    store.create("objects/x", b"1")
    assert len(calls) == 3
    assert store.read("objects/x") == b"1"


def answer_always(store: S3Storage, monkeypatch: pytest.MonkeyPatch, status: int, code: str) -> None:
    """Each conditional PUT gets this answer."""
    put = store._client.put_object

    def refuse(**request):
        if "IfMatch" in request or "IfNoneMatch" in request:
            raise ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "PutObject")
        return put(**request)

    monkeypatch.setattr(store._client, "put_object", refuse)


def test_lasting_conflicts_are_an_error_unless_somebody_else_wrote(
    s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch
):
    """Else a write that never happened would look like one that lost, and its writer would go on."""
    monkeypatch.setattr("adgen.creatives.s3.time.sleep", lambda seconds: None)
    store = S3Storage(s3_uri, s3_access)
    etag = store.swap("doc.json", b"1", None)
    answer_always(store, monkeypatch, 409, "ConditionalRequestConflict")
    with pytest.raises(StoreError, match="refused 6 times, and nobody else wrote it") as raised:
        store.swap("doc.json", b"2", etag)
    assert not isinstance(raised.value, Taken)
    with pytest.raises(StoreError, match="refused 6 times"):
        store.create("objects/x", b"1")
    store.put("objects/x", b"theirs")
    store.put("doc.json", b"theirs")
    with pytest.raises(Taken):
        store.create("objects/x", b"1")
    with pytest.raises(Taken):
        store.swap("doc.json", b"2", etag)


def test_a_server_that_does_not_know_conditions_is_told_so(s3_uri: str, s3_access: S3Access, monkeypatch: pytest.MonkeyPatch):
    store = S3Storage(s3_uri, s3_access)
    answer_always(store, monkeypatch, 501, "NotImplemented")
    with pytest.raises(StoreError, match=r"does not know If-None-Match: \*, so two runs .* conditional writes \(MinIO"):
        probe(store)
    assert list(store.entries("")) == []


def test_a_key_with_two_slashes_makes_no_name(s3_uri: str, s3_access: S3Access):
    store = S3Storage(s3_uri, s3_access)
    for key in ("campaigns//runs/x", "campaigns/", "campaigns/c/runs/x", "//x"):
        store._client.put_object(Bucket=store.bucket, Key=store._prefix + key)
    assert store.children("campaigns/") == ["c"]


def test_s3_failures_name_the_address(s3_access: S3Access):
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x: NoSuchBucket.*check the bucket"):
        S3Storage("s3://no-such-bucket", s3_access).put("x", b"")
    nobody = S3Access(endpoint_url="http://127.0.0.1:9", region="x", max_attempts=1, connect_timeout_seconds=1)
    with pytest.raises(StoreError, match="check the endpoint"):
        S3Storage("s3://bucket", s3_access.model_copy(update=nobody.model_dump())).get("x")


def test_versions_are_deleted_too(s3_access: S3Access):
    store = S3Storage("s3://versioned/store", s3_access)
    store._client.create_bucket(Bucket="versioned")
    store._client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    store.put("objects/x", b"1")
    store.put("objects/x", b"2")
    store.put("objects/xy", b"another key with the same beginning")
    store.delete("objects/x")
    left = store._client.list_object_versions(Bucket="versioned")
    assert [version["Key"] for version in left["Versions"]] == ["store/objects/xy"]
    assert "DeleteMarkers" not in left
