"""Spark reads a run's manifest as everybody else does. Needs `pip install 'pyspark<4'` and Java, which none of ours brings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import CAMPAIGN, pair_ids, refresh

from adgen.creatives import layout, open_campaign
from adgen.creatives.pull import pull
from adgen.creatives.storage import Storage
from adgen.records import MANIFEST

READ = """
import json, os, sys
from pyspark.sql import SparkSession
session = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
table = session.read.parquet(sys.argv[1])
rows = table.filter("status = 'ok'").collect()  # every column: nested ones, too
json.dump([table.columns, sorted([row.pair_id, row.title, row.sha256] for row in rows)], open(sys.argv[2], "w"))
os._exit(0)
"""


@pytest.mark.skipif(not shutil.which("java"), reason="Spark needs Java")
def test_spark_sees_the_same_manifest(folder_store: Storage, tmp_path: Path):
    """Of a pulled mirror: the folder of the run's manifest files."""
    pytest.importorskip("pyspark")
    refresh(folder_store, pair_ids(40), rows_per_file=10)
    pull(folder_store, CAMPAIGN, tmp_path / "pulled")
    run = open_campaign(tmp_path / "pulled", CAMPAIGN).published()
    folder = tmp_path / "pulled" / layout.run(CAMPAIGN, run.run.run_id) / "manifest"
    subprocess.run([sys.executable, "-c", READ, str(folder), str(tmp_path / "found.json")], check=True)
    columns, rows = json.loads((tmp_path / "found.json").read_text())
    assert columns == MANIFEST.names
    assert rows == sorted([row["pair_id"], row["title"], row["sha256"]] for row in run.rows(where=[("status", "==", "ok")]))
