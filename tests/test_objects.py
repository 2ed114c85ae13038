"""Objects are named by content and kept young; a store that breaks its promises is refused."""

import time
from pathlib import Path

import pytest
from support.runs import CarelessStorage, WrappedStorage, make_older

from adgen.creatives import layout
from adgen.creatives.folder import FolderStorage
from adgen.creatives.objects import put_object
from adgen.creatives.probe import probe
from adgen.creatives.storage import Storage
from adgen.errors import StoreError


def test_put_object_names_by_content(store: Storage):
    first, again = put_object(store, b"picture", "webp"), put_object(store, b"picture", "webp")
    assert first == again
    assert first.uri == f"objects/{first.sha256[:2]}/{first.sha256}.webp"
    assert layout.object_hash(first.uri) == first.sha256
    assert (store.read(first.uri), first.bytes) == (b"picture", 7)


def test_an_old_object_is_written_again_so_that_clean_up_spares_it(tmp_path: Path):
    store = FolderStorage(tmp_path)
    uri = put_object(store, b"picture", "webp").uri
    make_older(store.uri, uri, 1000)
    put_object(store, b"picture", "webp", refresh_after_seconds=2000)
    assert time.time() - store.head(uri).modified > 900
    put_object(store, b"picture", "webp", refresh_after_seconds=500)
    assert time.time() - store.head(uri).modified < 100


# -- the probe -------------------------------------------------------------------------------------------------


def test_a_good_store_passes_the_probe_and_keeps_nothing_of_it(store: Storage):
    probe(store)
    assert list(store.entries("")) == []


@pytest.mark.parametrize(("ignored", "named"), [("create", "If-None-Match"), ("swap", "If-Match")])
def test_a_store_that_ignores_preconditions_is_refused(store: Storage, ignored: str, named: str):
    with pytest.raises(StoreError, match=f"ignores {named}.*use AWS S3"):
        probe(CarelessStorage(store, ignored))


def test_an_unwritable_store_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be written"):
        probe(FolderStorage(tmp_path / "file" / "store"))


@pytest.mark.parametrize("failure", [StoreError("versions are not shown"), OSError("no handle left")])
def test_probe_keys_are_removed_whatever_fails(store: Storage, failure: Exception):
    class Clumsy(WrappedStorage):
        def act(self, name: str, *arguments):
            done = super().act(name, *arguments)
            if name == "delete":
                raise failure
            return done

    probe(Clumsy(store))
    assert list(store.entries("")) == []
