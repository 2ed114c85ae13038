"""`adgen forget` and `adgen clean-up`, from the command line, on a folder and on S3."""

import io
import json
import os
import time
from pathlib import Path

import pytest
from support import shops
from support.runs import CAMPAIGN, begin, commit_plan, do_shards, pair_ids, refresh
from support.shops import small_shop

from adgen.cli import main
from adgen.creatives.erasure import find_users
from adgen.creatives.names import own_entries
from adgen.creatives.publish import finish
from adgen.creatives.reading import open_published
from adgen.creatives.runs import list_runs, start_or_resume
from adgen.creatives.secrets import DEVELOPMENT_KEYS
from adgen.creatives.storage import Storage
from adgen.creatives.stores import open_storage
from adgen.creatives.tombstones import Tombstones
from adgen.records import key_id, user_key
from adgen.shop.catalog.files import named_keys
from adgen.store_commands import clean_store

PAIRS = pair_ids(12)
USER = f"user-{PAIRS[0][0]}"
DAY = 86_400.0


def key_file(folder: Path, name: str, secret: bytes) -> str:
    path = folder / name
    path.write_bytes(secret)
    path.chmod(0o440)
    return str(path)


def published_users(store: Storage) -> set[str]:
    return {f"user-{row['pair_id'][0]}" for row in open_published(store, CAMPAIGN).rows()}


@pytest.mark.slow
@pytest.mark.usefixtures("aws_environment")
def test_forget_removes_a_user_and_says_what_it_cannot_reach(store: Storage, tmp_path: Path, capsys):
    refresh(store, PAIRS)
    secret = b"a secret of sixteen bytes"
    options = ["--campaign-key", key_file(tmp_path, "key", b"a campaign key, long enough")]
    code = main(["forget", store.uri, "--user", USER, *options, "--user-secret", key_file(tmp_path, "secret", secret), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (code, told["complete"], told["runs"]) == (0, True, 1)
    assert told["user_keys"] == [user_key(secret, USER)]
    for place in ("mirrors", "evaluation folders", "training caches"):
        assert any(place in line for line in told["beyond_reach"])
    assert USER not in published_users(store)
    assert find_users(store, [USER]).pairs == {}


def test_users_come_from_a_file_or_stdin(folder_store: Storage, tmp_path: Path, capsys, monkeypatch):
    refresh(folder_store, PAIRS)
    ids = sorted({f"user-{pair[0]}" for pair in PAIRS})
    (tmp_path / "ids").write_text(f"{ids[0]}\r\n\n{ids[1]}\n")
    assert main(["forget", folder_store.uri, "--users", str(tmp_path / "ids")]) == 0
    assert published_users(folder_store) == set(ids[2:])
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(ids[2].encode())))
    assert main(["forget", folder_store.uri, "--users", "-"]) == 0
    assert published_users(folder_store) == set(ids[3:])
    capsys.readouterr()
    (tmp_path / "ids").write_text("\n")
    for wrong in (["--users", str(tmp_path / "ids")], [], ["--user", "a", "--users", "-"], ["--users", str(tmp_path / "none")]):
        assert main(["forget", folder_store.uri, *wrong]) == 1
        assert "forget" in capsys.readouterr().err or wrong


def test_campaigns_whose_key_is_not_given_are_named_and_the_exit_code_is_1(folder_store: Storage, tmp_path: Path, capsys):
    key = b"the key of this campaign"
    run = begin(folder_store, key_ids={"campaign_key": key_id(key)})
    do_shards(commit_plan(run, PAIRS))
    finish(run)
    assert main(["forget", folder_store.uri, "--user", USER, "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["complete"], len(told["keys_not_given"])) == (False, 1)
    assert CAMPAIGN in told["keys_not_given"][0]
    assert key_id(key) in told["keys_not_given"][0]
    assert USER not in published_users(folder_store)
    assert main(["forget", folder_store.uri, "--user", USER, "--campaign-key", key_file(tmp_path, "key", key)]) == 0
    assert Tombstones(folder_store, key).among([USER]) == {USER}


@pytest.mark.slow
def test_without_a_key_a_store_on_s3_is_not_forgotten_in_unless_it_was_made_with_the_public_one(
    s3_uri, s3_access, aws_environment, capsys
):

    store = open_storage(s3_uri, s3_access)
    for key, code in ((b"a key of its own", 1), (DEVELOPMENT_KEYS["campaign_key"], 0)):
        run = begin(store, key_ids={"campaign_key": key_id(key)})
        do_shards(commit_plan(run, PAIRS))
        finish(run)
        assert main(["forget", s3_uri, "--user", USER]) == code
    assert "--campaign-key" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("aws_environment")
def test_a_dry_run_removes_nothing_and_counts_what_goes(store: Storage, capsys):
    for night in range(4):
        refresh(store, PAIRS, f"look {night}")
    before = {entry.key for entry in store.entries("")}
    assert main(["clean-up", store.uri, "--dry-run", "--keep-runs", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["dry_run"], told["runs"], told["campaigns"]) == (True, 2, 1)
    assert {entry.key for entry in store.entries("")} == before
    assert main(["clean-up", store.uri, "--keep-runs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 2
    assert len(list_runs(store, CAMPAIGN)) == 2


def test_catalogs_that_no_kept_run_names_go(folder_store: Storage, tmp_path: Path):
    shop = small_shop(tmp_path / "inputs")
    made = []
    for title in ("first", "second", "third"):
        shop.products["p4"]["title"] = title
        made.append(shop.catalog(folder_store).index)
    run = start_or_resume(folder_store, shops.CAMPAIGN, "key", digests={"model": made[0].model_digest, "catalog": made[0].name})
    do_shards(commit_plan(run, PAIRS))
    finish(run)
    keys = {entry.key for entry in own_entries(folder_store, "catalog/") if "/last/" not in entry.key}
    named = named_keys(made[0]) | named_keys(made[2])  # the run's, and the one that the next planner starts from
    assert clean_store(folder_store, dry_run=False).catalog_files == 0  # young: a planner may be about to name them
    later = time.time() + 3 * DAY
    assert clean_store(folder_store, dry_run=True, now=later).catalog_files == len(keys - named) > 0
    assert clean_store(folder_store, dry_run=False, now=later).catalog_files == len(keys - named)
    assert {entry.key for entry in own_entries(folder_store, "catalog/") if "/last/" not in entry.key} == named
    assert shop.catalog(folder_store).index.name == made[2].name


def test_the_catalogs_of_a_model_that_no_run_names_go_whole_and_the_next_begins_anew(folder_store: Storage, tmp_path: Path):
    shop = small_shop(tmp_path / "inputs")
    first = shop.catalog(folder_store).index.name
    clean_store(folder_store, dry_run=False, now=time.time() + 3 * DAY)
    assert list(own_entries(folder_store, "catalog/")) == []
    assert shop.catalog(folder_store).index.name == first


@pytest.mark.parametrize("mode", [0o444, 0o644, 0o602])
def test_a_key_file_that_everybody_can_use_is_refused(folder_store: Storage, tmp_path: Path, capsys, mode: int):
    path = key_file(tmp_path, "key", b"a campaign key, long enough")
    os.chmod(path, mode)
    assert main(["forget", folder_store.uri, "--user", USER, "--campaign-key", path]) == 1
    assert "chmod o-rwx" in capsys.readouterr().err


def test_a_secret_in_a_paths_place_is_not_repeated(folder_store: Storage, capsys):
    assert main(["forget", folder_store.uri, "--user", USER, "--campaign-key", "5ecr3t-5ecr3t-5ecr3t"]) == 1
    told = capsys.readouterr()
    assert "--campaign-key" in told.err
    assert "5ecr3t" not in told.err + told.out


def test_control_characters_never_reach_the_terminal(folder_store: Storage, capsys):
    for command in (["show", folder_store.uri, "x\x1b[2J"], ["runs", folder_store.uri, "a\x9bb"]):
        assert main([*command, "pair\x1b]0;x\x07"][: 4 if command[0] == "show" else 3]) == 1
        told = capsys.readouterr().err
        assert "\\x" in told
        assert not set(told) & {"\x1b", "\x9b", "\x07"}
