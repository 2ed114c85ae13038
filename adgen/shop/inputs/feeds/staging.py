"""Where an import works before its tables are whole: a folder inside the one that it writes to, and DuckDB in bounds."""

import os
from collections.abc import Sequence
from pathlib import Path

import duckdb

from adgen.errors import InputError
from adgen.shop.inputs.locations import local_path

DUCKDB_MEMORY = "512MB"


def local_folder(dest: str | Path) -> Path:
    """The folder to write to, made where it is not there. InputError: it is not local, or a file."""
    try:
        target = Path(local_path(str(dest))).absolute()
        target.mkdir(parents=True, exist_ok=True)
    except ValueError as error:
        raise InputError(f"{error}; an import writes a local folder, which you may copy to S3") from None
    except OSError as error:
        raise InputError(f"{dest}: cannot be made: {error.strerror}") from None
    return target


def open_staged(staging: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB that spills into the folder."""
    spill = str(staging / "spill")
    return duckdb.connect(config={"memory_limit": DUCKDB_MEMORY, "temp_directory": spill, "threads": 2})


def move_into(target: Path, staging: Path, names: Sequence[str]) -> None:
    """Put whole files into the target's place. InputError where a folder holds the same table in parts."""
    for name in names:
        stem = target / Path(name).stem
        if name.endswith(".parquet") and stem.is_dir() and any(stem.rglob("*.parquet")):
            raise InputError(f"{target}: holds {stem.name}/*.parquet, and this import writes {name}; move the folder away")
    for name in names:
        os.replace(staging / name, target / name)


def quoted(path: Path) -> str:
    """In an SQL string."""
    return str(path).replace("'", "''")
