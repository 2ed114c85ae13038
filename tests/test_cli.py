"""The `adgen` command as an operator meets it: output, JSON, exit codes, one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import CAMPAIGN, begin, pair_ids, refresh

from adgen.cli import main
from adgen.creatives.folder import FolderStorage
from adgen.creatives.publish import read_pointer
from adgen.creatives.reading import open_published
from adgen.creatives.storage import Storage

pytestmark = pytest.mark.usefixtures("aws_environment")


def run_json(capsys: pytest.CaptureFixture, *arguments: str, code: int = 0):
    assert main([*arguments, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_runs_lists_newest_first_and_marks_the_published_one(store: Storage, capsys: pytest.CaptureFixture):
    old, new = refresh(store, pair_ids(4)), refresh(store, pair_ids(4))
    driven = begin(store, "next")
    found = run_json(capsys, "runs", store.uri, CAMPAIGN)
    assert [(run["run_id"], run["state"], run["published"]) for run in found] == [
        (driven.run_id, "RUNNING", False),
        (new.run_id, "COMPLETE", True),
        (old.run_id, "COMPLETE", False),
    ]
    assert found[1]["counts"]["ok"] == 3
    assert main(["runs", store.uri, CAMPAIGN]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(new.run_id in line and "published" in line for line in lines)
    assert any(driven.run_id in line and "RUNNING" in line for line in lines)


def test_runs_of_an_empty_store(store: Storage, capsys: pytest.CaptureFixture):
    assert run_json(capsys, "runs", store.uri, CAMPAIGN) == []
    assert main(["runs", store.uri, CAMPAIGN]) == 0
    assert f"campaign {CAMPAIGN} has no runs" in capsys.readouterr().out


def test_show_prints_one_pair(store: Storage, capsys: pytest.CaptureFixture):
    run = refresh(store, pair_ids(4), look="[red]not markup[/red]")
    pair = pair_ids(1)[0]
    found = run_json(capsys, "show", store.uri, CAMPAIGN, pair)
    assert found["run_id"] == run.run_id
    assert [(row["pair_id"], row["status"]) for row in found["rows"]] == [(pair, "ok")]
    assert main(["show", store.uri, CAMPAIGN, pair]) == 0
    assert "[red]not markup[/red]" in capsys.readouterr().out
    assert main(["show", store.uri, CAMPAIGN, "nobody"]) == 1
    assert f"adgen: pair nobody is not in run {run.run_id}" in capsys.readouterr().err


def test_rollback_moves_the_pointer(store: Storage, capsys: pytest.CaptureFixture):
    old, _ = refresh(store, pair_ids(4)), refresh(store, pair_ids(4))
    assert main(["rollback", store.uri, CAMPAIGN, old.run_id]) == 0
    assert f"run {old.run_id} is published, generation 3" in capsys.readouterr().out
    assert read_pointer(store, CAMPAIGN)[0].run_id == old.run_id


def test_verify_exits_1_with_the_list(store: Storage, capsys: pytest.CaptureFixture):
    run = refresh(store, pair_ids(4))
    good = {"run_id": run.run_id, "rows": 4, "ok": 3, "missing": 0, "mismatched": 0, "rejected": 1, "failed": 0}
    assert run_json(capsys, "verify", store.uri, CAMPAIGN) == good | {"problems": []}
    uri = next(row["uri"] for row in open_published(store, CAMPAIGN).rows() if row["uri"])
    store.delete(uri)
    found = run_json(capsys, "verify", store.uri, CAMPAIGN, code=1)
    assert (found["ok"], found["missing"], len(found["problems"])) == (2, 1, 1)
    assert main(["verify", store.uri, CAMPAIGN]) == 1
    assert f"{uri} is missing" in capsys.readouterr().out


def test_pull_says_what_it_did(store: Storage, tmp_path: Path, capsys: pytest.CaptureFixture):
    before, _ = refresh(store, pair_ids(4)), refresh(store, pair_ids(8))
    dest = str(tmp_path / "pulled")
    found = run_json(capsys, "pull", store.uri, CAMPAIGN, dest, "--since", before.run_id)
    assert (found["rows"], found["changed_rows"], found["fetched"]) == (8, 2, 2)
    assert run_json(capsys, "pull", store.uri, CAMPAIGN, dest)["fetched"] == 3
    assert run_json(capsys, "verify", dest, CAMPAIGN)["ok"] == 5


def test_synth_and_import_print_their_counts(tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("PIL")
    shop = tmp_path / "shop"
    found = run_json(capsys, "synth", str(shop), "--users", "3", "--products", "12", "--pairs", "5", "--seed", "7")
    assert (found["users"], found["products"], found["pairs"]) == (3, 12, 5)
    assert (shop / "pairs.parquet").exists()
    assert main(["import-pad1m", str(tmp_path / "nothing.json"), str(shop)]) == 1
    assert "nothing.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs", "gs://bucket", "c"], "scheme 'gs' is not supported"),
        (["verify", "STORE", "c/.."], "campaign 'c/..'"),
        (["verify", "STORE", "c"], "has nothing published"),
        (["rollback", "STORE", "c", "latest"], "not a run id"),
    ],
)
def test_an_error_is_one_line_on_stderr(store_uri: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture):
    assert main([store_uri if word == "STORE" else word for word in arguments]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("adgen: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["verify", "only-a-store"], ["runs", "a", "b", "--bogus"]])
def test_a_wrong_command_line_exits_2(arguments: list[str]):
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    assert raised.value.code == 2


def test_help_names_every_command(capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as raised:
        main(["--help"])
    assert raised.value.code == 0
    shown = capsys.readouterr().out
    for command in ("import-pad1m", "synth", "runs", "show", "rollback", "verify", "pull", "report", "forget", "clean-up"):
        assert command in shown


_CONSUMER = """
import sys
heavy = {"torch", "ray", "PIL", "transformers", "duckdb", "deepspeed"}
import adgen.creatives
assert not {"numpy", "pyarrow", "boto3"} & set(sys.modules), "import adgen.creatives is not light"
from adgen.cli import main
for command in (["verify", sys.argv[1], sys.argv[2]], ["pull", sys.argv[1], sys.argv[2], sys.argv[3]]):
    assert main(command) == 0
for command in (["runs", sys.argv[3], sys.argv[2]], ["verify", sys.argv[3], sys.argv[2]]):
    assert main(command) == 0
loaded = heavy & set(sys.modules)
assert not loaded, loaded
allowed = ("cli", "command_line", "creatives", "errors", "records", "config", "terminal")
commands = {name for name in sys.modules if name.startswith("adgen.") and name.endswith(".commands")}
rooms = {name.rpartition(".")[0] for name in commands}
others = [name for name in sys.modules if name.startswith("adgen.") and name.split(".")[1] not in allowed]
assert set(others) <= commands | rooms, others
"""


@pytest.mark.slow
def test_a_consumer_needs_the_base_install_only(tmp_path: Path):
    store = FolderStorage(tmp_path / "store")
    refresh(store, pair_ids(4))
    command = [sys.executable, "-c", _CONSUMER, store.uri, CAMPAIGN, str(tmp_path / "pulled")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


ODD_PLACES = {
    "a missing folder that cannot be made": ["synth", "/proc/nowhere/shop", "--users", "2", "--products", "4"],
    "a folder for a file": ["import-pad1m", "/", "{tmp}/shop"],
    "no inputs": ["starter-model", "{tmp}/nothing", "{tmp}/model"],
}


@pytest.mark.parametrize("name", ODD_PLACES)
def test_a_place_that_cannot_be_used_is_one_sentence(tmp_path, capsys, name):
    assert main([each.format(tmp=tmp_path) for each in ODD_PLACES[name]]) == 1
    said = capsys.readouterr().err
    assert said.startswith("adgen: ")
    assert len(said.splitlines()) == 1


SHOW = """
from adgen import cli
with cli.plain_streams():
    print("\\u676f" * 20, flush=True)
"""
UTC = "import datetime, pyarrow as pa; print(pa.array([datetime.datetime.now(datetime.UTC)], pa.timestamp('us', 'UTC'))[0].as_py())"


@pytest.mark.slow
def test_an_ascii_console_a_closed_pipe_and_an_image_without_time_zones_are_no_traceback(tmp_path):
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    shown = subprocess.run([sys.executable, "-c", SHOW], env=ascii_only, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "\\u676f" * 20 + "\n", "")
    reader, writer = os.pipe()
    os.close(reader)  # who reads has gone
    with os.fdopen(writer, "w") as closed:
        gone = subprocess.run(
            [sys.executable, "-m", "adgen.cli", "synth", str(tmp_path / "shop"), "--users", "2", "--products", "4", "--json"],
            stdout=closed, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    assert (gone.returncode, gone.stderr) == (1, "")
    bare = subprocess.run([sys.executable, "-c", UTC], env=os.environ | {"PYTHONTZPATH": ""}, capture_output=True, text=True)
    assert (bare.returncode, bare.stderr) == (0, "")
