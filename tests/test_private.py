"""Private means private: modes, caches, key files, credentials that are never repeated."""

import logging
import os
import re
import stat
import tempfile
from pathlib import Path

import pytest
from support.runs import CAMPAIGN, pair_ids, refresh
from support.shops import small_shop

from adgen.cli import main
from adgen.config import validate_settings
from adgen.creatives.folder import FolderStorage
from adgen.creatives.storage import S3Access, Storage
from adgen.creatives.stores import open_storage
from adgen.errors import AdgenError, SettingsError, StoreError, printable
from adgen.local_cache import user_cache
from adgen.shop.catalog.catalog import open_catalog
from adgen.shop.inputs.tables import open_inputs
from adgen.shop.key_files import KeySettings, load_keys

SECRET = "hunter2-hunter2-hunter2"


def modes(folder: Path) -> set[tuple[bool, int]]:
    return {(path.is_dir(), stat.S_IMODE(path.lstat().st_mode)) for path in [folder, *folder.rglob("*")]}


def test_what_lies_below_private_is_its_owners_alone(folder_store: Storage):
    before = os.umask(0o022)
    try:
        refresh(folder_store, pair_ids(4))
    finally:
        os.umask(before)
    root = Path(folder_store.uri)
    assert modes(root / "private") == {(True, 0o700), (False, 0o600)}
    assert (False, 0o644) in modes(root / "campaigns")


def test_a_store_of_an_earlier_version_is_tightened(folder_store: Storage):
    refresh(folder_store, pair_ids(4))
    private = Path(folder_store.uri, "private")
    for path in [private, *private.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)
    (private / "theirs").symlink_to("/etc/hostname")
    folder_store.tighten()
    (private / "theirs").unlink()
    assert modes(private) == {(True, 0o700), (False, 0o600)}


def test_a_file_system_without_modes_is_told_of_once(folder_store: FolderStorage, monkeypatch, caplog):
    refresh(folder_store, pair_ids(4))
    Path(folder_store.uri, "private").chmod(0o755)
    monkeypatch.setattr(Path, "chmod", lambda self, mode: None)
    with caplog.at_level(logging.WARNING):
        folder_store.tighten()
        FolderStorage(folder_store.uri).tighten()
    assert len([record for record in caplog.records if "knows no modes" in record.message]) == 1


def test_caches_have_a_folder_for_each_user(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = user_cache("catalog")
    assert folder.parent.name == f"adgen-{os.getuid()}"
    assert modes(folder.parent) == {(True, 0o700)}
    folder.parent.chmod(0o777)
    assert stat.S_IMODE(user_cache("models").parent.stat().st_mode) == 0o700


def test_a_cache_that_another_user_put_there_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / f"adgen-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="TMPDIR"):
        user_cache("catalog")


def test_no_code_shares_a_cache_between_users():
    """All of /tmp that outlives a command goes through user_cache; TemporaryDirectory and mkdtemp are private."""
    for path in Path(__file__).parents[1].glob("adgen/**/*.py"):
        if path.name != "local_cache.py":
            assert not re.search(r"gettempdir\(\)\)? ?[/}]", path.read_text()), path


def test_a_cached_file_with_another_hash_is_fetched_again(folder_store: Storage, tmp_path: Path):
    shop = small_shop(tmp_path / "inputs")
    index = shop.catalog(folder_store).index
    cache = tmp_path / "cache"
    clicked = sorted(shop.products)[:3]
    before = open_catalog(folder_store, index.model_digest, index.name, cache).titles(clicked)
    [file] = [path for path in cache.iterdir() if path.name.startswith(index.buckets[0].ids.sha256)]
    good = file.read_bytes()
    file.write_bytes(b"x" * len(good))  # of the same size
    assert open_catalog(folder_store, index.model_digest, index.name, cache).titles(clicked) == before
    assert file.read_bytes() == good


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600])
def test_key_files_as_clusters_mount_them_are_read(tmp_path: Path, mode: int):
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "key").chmod(mode)
    assert load_keys(KeySettings(campaign_key=tmp_path / "key"), "store").campaign_key == SECRET.encode()


def test_key_files_that_everybody_can_use_are_refused(tmp_path: Path):
    (tmp_path / "key").write_text(SECRET)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(SettingsError, match="chmod o-rwx") as raised:
        load_keys(KeySettings(user_secret=tmp_path / "key"), "store")
    assert SECRET not in str(raised.value)


# -- nothing secret is repeated ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {"endpoint_url": f"https://user:{SECRET}@s3.example"},
        {"secret_acces_key": SECRET},
        {"secret_access_key": [SECRET]},
        {"api_token": {"deep": SECRET}},
        {"region": {"password": SECRET}},
        {"regio": f"https://user:{SECRET}@host"},
    ],
)
def test_an_error_about_a_setting_repeats_no_secret(values: dict):
    with pytest.raises(SettingsError) as raised:
        validate_settings(S3Access, values, "settings.toml")
    assert next(iter(values)) in str(raised.value)
    assert SECRET not in str(raised.value)
    with pytest.raises(ValueError, match=next(iter(values))) as raised:
        S3Access(**values)
    assert SECRET not in str(raised.value)


def test_other_values_are_still_named():
    with pytest.raises(SettingsError, match=r"max_attempts.*'many'"):
        validate_settings(S3Access, {"max_attempts": "many"}, "settings.toml")


@pytest.mark.parametrize("uri", [f"s3://AKIA:{SECRET}@bucket/store", f"https://u:{SECRET}@host/store"])
def test_uris_with_credentials_are_refused_and_not_repeated(uri: str, capsys):
    with pytest.raises(StoreError, match="credentials") as raised:
        open_storage(uri)
    assert SECRET not in str(raised.value)
    assert main(["runs", uri, CAMPAIGN]) == 1
    assert main(["runs", "s3://bucket", CAMPAIGN, "--endpoint-url", f"http://u:{SECRET}@127.0.0.1:1"]) == 1
    if uri.startswith("s3"):
        with pytest.raises(AdgenError) as raised:
            open_inputs(uri)
        assert SECRET not in str(raised.value)
    told = capsys.readouterr()
    assert "credentials" in told.err
    assert SECRET not in told.err + told.out


def test_what_a_terminal_would_obey_is_written_out():
    assert printable("a\x1b[31mb\x9b\u202ec\r") == "a\\x1b[31mb\\x9b\\u202ec\\x0d"
    assert printable("Zürich, 秋\tnew\nline 👍") == "Zürich, 秋\tnew\nline 👍"
    assert "\x1b" not in str(SettingsError("locale 'de\x1b[2J'"))
