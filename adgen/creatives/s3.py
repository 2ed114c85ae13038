"""A store in an S3 bucket: conditional PUT decides every race.

Each write carries a random `write-id` in its metadata. A PUT whose response was lost is sent again by botocore and then
answered 412 although the first one won; the id distinguishes this from losing to somebody else.
"""

import base64
import functools
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import boto3
import pyarrow.fs as pafs
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from adgen.creatives.storage import (
    NO_CONDITIONS,
    Data,
    Entry,
    Piece,
    S3Access,
    Storage,
    Stored,
    Taken,
    checked_key,
    checked_prefix,
    content_type_of,
)
from adgen.errors import StoreError

_CONFLICT_TRIES = 6
_AWS = re.compile(r"https://s3([.-][a-z0-9-]+)?\.amazonaws\.com(\.cn)?")  # what boto3 says where no endpoint is configured
_MISSING = ("404", "NoSuchKey", "NotFound")
_NO_RIGHT = (
    "these credentials may not do that there: consumers need s3:GetObject on objects/* and campaigns/*, operators on private/* as "
    "well, and s3:ListBucket (without it S3 says the same of a key that is not there)"
)


def s3_client(access: S3Access) -> Any:
    """The one place where it is decided how S3 is reached; one client a process for the same access and AWS variables, with one
    pool of connections."""
    return _s3_client(access, tuple(sorted(each for each in os.environ.items() if each[0].startswith("AWS_"))))


@functools.lru_cache(maxsize=64)
def _s3_client(access: S3Access, environment: tuple[tuple[str, str], ...]) -> Any:
    secrets = {}
    if access.access_key_id and access.secret_access_key:
        secrets = {
            "aws_access_key_id": access.access_key_id.get_secret_value(),
            "aws_secret_access_key": access.secret_access_key.get_secret_value(),
        }
    session = boto3.session.Session(**secrets)
    client = session.client(
        "s3",
        endpoint_url=access.endpoint_url,
        region_name=access.region or dict(environment).get("AWS_REGION"),  # boto3 itself knows only AWS_DEFAULT_REGION
        config=Config(
            retries={"mode": "adaptive", "total_max_attempts": access.max_attempts},
            connect_timeout=access.connect_timeout_seconds,
            read_timeout=access.read_timeout_seconds,
            max_pool_connections=access.max_connections,
        ),
    )
    client.adgen_session = session  # whose credentials are renewed in time
    return client


def s3_filesystem(bucket: str, access: S3Access) -> pafs.S3FileSystem:
    """A pyarrow filesystem that reaches S3 as `s3_client` does: same endpoint, region and credentials."""
    client = s3_client(access)
    endpoint, region = client.meta.endpoint_url, client.meta.region_name
    found = client.adgen_session.get_credentials()
    keys = tuple(found.get_frozen_credentials())[:3] if found else (None, None, None)
    if _AWS.fullmatch(endpoint):
        endpoint = None
        region = region if client.adgen_session.region_name or access.region or os.environ.get("AWS_REGION") else None
    return _s3_filesystem(bucket if region is None else "", endpoint, region, *keys)


@functools.lru_cache(maxsize=64)
def _s3_filesystem(
    bucket: str, endpoint: str | None, region: str | None, key: str | None, secret: str | None, token: str | None
) -> pafs.S3FileSystem:
    return pafs.S3FileSystem(
        endpoint_override=endpoint,
        region=region or pafs.resolve_s3_region(bucket),
        access_key=key,
        secret_key=secret,
        session_token=token,
    )


class S3Storage(Storage):
    """A bucket, or a prefix in one."""

    def __init__(self, uri: str, access: S3Access):
        parts = urlsplit(uri)
        self.bucket, prefix = parts.netloc, parts.path.strip("/")
        if not self.bucket or parts.query or parts.fragment:
            raise StoreError(f"{uri}: not a store; write s3://bucket or s3://bucket/prefix")
        self._prefix = f"{checked_key(prefix)}/" if prefix else ""
        self.uri = f"s3://{self.bucket}/{prefix}".rstrip("/")
        self.access = access
        self._client = s3_client(access)

    def __reduce__(self) -> tuple:
        return type(self), (self.uri, self.access)

    def get(self, key: str) -> Stored | None:
        def fetch() -> Stored:
            answer = self._client.get_object(**self._where(key))
            return Stored(answer["Body"].read(), answer["ETag"])

        return self._unless_missing(key, fetch)

    def get_range(self, key: str, start: int, stop: int) -> Piece | None:
        def fetch() -> Piece:
            answer = self._client.get_object(**self._where(key), Range=f"bytes={start}-{max(start, stop - 1)}")
            if "ContentRange" not in answer:  # a server that does not know ranges
                return Piece(answer["Body"].read(stop)[start:], answer["ContentLength"])
            return Piece(answer["Body"].read(), int(answer["ContentRange"].rpartition("/")[2]))

        try:
            return self._unless_missing(key, fetch)
        except _BeyondEnd:
            return Piece(b"", start)

    def url(self, key: str, expires_seconds: int) -> str:
        return self._client.generate_presigned_url("get_object", Params=self._where(key), ExpiresIn=expires_seconds)

    def head(self, key: str) -> Entry | None:
        answer = self._head(key)
        return answer and Entry(key, answer["ContentLength"], answer["LastModified"].timestamp())

    def create(self, key: str, data: Data, content_type: str | None = None) -> None:
        self._conditional_put(key, data, content_type, {"IfNoneMatch": "*"})

    def put(self, key: str, data: Data, content_type: str | None = None) -> None:
        self._ask(key, lambda: self._client.put_object(**self._request(key, data, content_type)))

    def delete(self, key: str) -> None:
        where = self._where(key)
        self._ask(key, lambda: self._client.delete_object(**where))
        # In a versioned bucket that only hid the bytes.
        for version in self._ask(key, lambda: self._versions(where["Key"])):
            self._ask(key, lambda version=version: self._client.delete_object(**where, VersionId=version))

    def entries(self, prefix: str) -> Iterator[Entry]:
        for page in self._pages(checked_prefix(prefix)):
            for found in page.get("Contents", ()):
                key = found["Key"][len(self._prefix) :]
                yield Entry(key, found["Size"], found["LastModified"].timestamp())

    def children(self, prefix: str) -> list[str]:
        start = len(self._prefix + checked_prefix(prefix))
        pages = self._pages(prefix, Delimiter="/")
        names = (found["Prefix"][start:-1] for page in pages for found in page.get("CommonPrefixes", ()))
        return sorted(filter(None, names))  # an empty one: of a key with two slashes

    def swap(self, key: str, data: bytes, etag: str | None) -> str:
        return self._conditional_put(key, data, None, {"IfMatch": etag} if etag else {"IfNoneMatch": "*"})

    def drop(self, key: str) -> None:
        self.delete(key)

    def sweep(self, older_than_seconds: float, is_ours: Callable[[str], bool]) -> int:
        return 0  # S3 shows no half-written object; parts of multipart uploads are never made here

    def _conditional_put(self, key: str, data: Data, content_type: str | None, condition: dict[str, str]) -> str:
        request = self._request(key, data, content_type) | condition
        refused: StoreError = StoreError("")
        for attempt in range(_CONFLICT_TRIES):
            try:
                return self._ask(key, lambda: self._client.put_object(**request))["ETag"]
            except _Conflict as error:
                # 409: another conditional write was in flight; its outcome is known in a moment.
                time.sleep(0.05 * 2**attempt)
                refused = error
            except _NotImplemented as error:
                name = "If-Match" if "IfMatch" in condition else "If-None-Match: *"
                raise StoreError(f"{error}: this server does not know {name}, {NO_CONDITIONS}") from None
            except Taken as error:
                refused = error
                break
        there = self._head(key)
        if there and _write_id(there["Metadata"]) == request["Metadata"]["write-id"]:
            return there["ETag"]
        if isinstance(refused, _Conflict) and (there["ETag"] if there else None) == condition.get("IfMatch"):
            raise StoreError(f"{refused}: refused {_CONFLICT_TRIES} times, and nobody else wrote it; try again later")
        raise Taken(f"{self.address(key)}: was written by another writer")

    def _request(self, key: str, data: Data, content_type: str | None) -> dict[str, Any]:
        return self._where(key) | {
            "Body": data,
            "ChecksumSHA256": base64.b64encode(hashlib.sha256(data).digest()).decode(),
            "ContentType": content_type or content_type_of(key),
            "CacheControl": _cache_control(key),
            "Metadata": {"write-id": uuid.uuid4().hex},
        }

    def _where(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._prefix + checked_key(key)}

    def _head(self, key: str) -> dict[str, Any] | None:
        return self._unless_missing(key, lambda: self._client.head_object(**self._where(key)))

    def _pages(self, prefix: str, **options: str) -> Iterator[dict[str, Any]]:
        pages = iter(
            self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._prefix + prefix, **options)
        )
        while (page := self._ask(prefix, lambda: next(pages, None))) is not None:
            yield page

    def _versions(self, full_key: str) -> list[str]:
        pages = self._client.get_paginator("list_object_versions").paginate(Bucket=self.bucket, Prefix=full_key)
        try:
            return [
                version["VersionId"]
                for page in pages
                for version in [*page.get("Versions", ()), *page.get("DeleteMarkers", ())]
                if version["Key"] == full_key
            ]
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") == "NotImplemented":
                return []  # a server without versions
            raise

    def _unless_missing(self, key: str, act: Callable[[], Any]) -> Any:
        try:
            return self._ask(key, act)
        except _Missing:
            return None

    def _ask(self, key: str, act: Callable[[], Any]) -> Any:
        """What `act` returns; every failure of S3 as a StoreError naming the address and what S3 said."""
        try:
            return act()
        except ClientError as error:
            code = error.response.get("Error", {}).get("Code", "")
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            message = f"{self.address(key)}: {code}: {error.response.get('Error', {}).get('Message', '')}"
            if status == 412:
                raise Taken(message) from None
            if status == 409:
                raise _Conflict(message) from None
            if status == 501:
                raise _NotImplemented(message) from None
            if code in _MISSING:
                raise _Missing(message) from None
            if status == 416:
                raise _BeyondEnd(message) from None
            if status == 403:
                raise StoreError(f"{message}; {_NO_RIGHT}") from None
            raise StoreError(f"{message}; check the bucket, the credentials and the endpoint") from None
        except BotoCoreError as error:
            raise StoreError(f"{self.address(key)}: {error}; check the endpoint and the network") from None


def _write_id(metadata: dict[str, str]) -> str | None:
    """Some servers give metadata back as Write-Id: names of headers have no case."""
    return next((value for name, value in metadata.items() if name.lower() == "write-id"), None)


class _Missing(Taken):
    """404: as the answer to If-Match, the version that was read is gone."""


class _BeyondEnd(StoreError):
    """416: the object ends before the range begins, which holds for every range of an empty one."""


class _NotImplemented(StoreError):
    """501: the server does not know a header."""


class _Conflict(StoreError):
    """409 ConditionalRequestConflict."""


def _cache_control(key: str) -> str:
    if key.startswith("private/"):
        return "private, no-store"
    return "no-cache" if key.endswith((".json", ".html")) else "public, max-age=31536000, immutable"
