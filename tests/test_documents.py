"""What the documents say is so: their commands are taken or run, their columns, reasons, links and cited sections exist."""

import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.documents import DOCUMENTS, ROOT, blocks, job_of, load_job, parse

from adgen import cli, records
from adgen.creatives.reading import open_published
from adgen.creatives.stores import open_storage
from adgen.finishing.gates import GATES
from adgen.records import OK, REJECTED
from adgen.shop.inputs.feeds.offers import OFFERS
from adgen.shop.inputs.tables import open_inputs

NAMES = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]
IN_ORDER = ("README.md", "docs/inputs.md", "docs/outputs.md", "docs/models.md", "docs/training.md", "docs/operations.md")
"""As a newcomer reads them: a later one uses what an earlier one made."""
SMALLER = {"--users": "2", "--products": "6", "--pairs": "2"}
"""The demo's shop in tests; everything else of its recipe stays."""
PLACES = re.compile(r"(?:demo/|myshop$|mystore$|creatives$|campaign-key$|user-secret$).*")
"""What commands name relative to the folder that they are given in."""
CITED = re.compile(r"docs/design\.md (\d+(?:\.\d+)?(?:(?:, | and | to )\d+\.\d+)*)")


def bash_blocks(document: Path):
    return [block for block in blocks(document) if block.language == "bash"]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_is_taken_by_its_own_parser(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in bash_blocks(ROOT / name):
        for words in block.commands:
            try:
                parse(words)
            except (SystemExit, Exception) as refused:
                pytest.fail(f"{name}, block at line {block.line}: {' '.join(words)}: {refused}")


@pytest.mark.parametrize("name", NAMES)
def test_no_command_hides_in_an_indented_block(name):
    """They would be neither run nor parsed."""
    assert not re.findall(r"^    (?:adgen|python|make|pip) .*", (ROOT / name).read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    gone = [target for target in targets if "://" not in target and not ((ROOT / name).parent / target).exists()]
    assert not gone


def table_under(document: Path, heading: str) -> list[str]:
    """The first cells of the table below a heading that begins so."""
    section = re.search(rf"^## {re.escape(heading)}.*?\n(.*?)(?=^## |\Z)", document.read_text(encoding="utf-8"), re.M | re.S)
    cells = [line.split("|")[1].strip() for line in section.group(1).splitlines() if line.startswith("|")]
    return [name for cell in cells[2:] for name in re.split(r",\s*", cell)]


def test_inputs_names_every_column_of_every_table():
    for table, schema in (records.INPUT_TABLES | {"offers": OFFERS}).items():
        assert table_under(ROOT / "docs" / "inputs.md", table) == schema.names


def test_outputs_names_every_column_of_the_manifest():
    assert sorted(table_under(ROOT / "docs" / "outputs.md", "Columns of the manifest")) == sorted(records.MANIFEST.names)


def test_outputs_names_every_reason():
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "adgen").rglob("*.py")]
    reasons = {reason for source in sources for reason in re.findall(r"PairError\(\"(\w+)\"", source)}
    reasons |= {"null_field", "unknown_product"}  # the plan's own
    assert reasons - set(table_under(ROOT / "docs" / "outputs.md", "Reasons")) == set()
    assert {"title_empty", "forbidden_words"} <= set(GATES)


def test_what_the_tree_cites_is_in_the_tree():
    """Sections of docs/design.md that somebody cites exist, and nobody cites what a reader of the repository does not have."""
    headings = re.findall(r"^#{2,3} (\d+(?:\.\d+)?) ", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.M)
    folders = ("adgen", "jobs", "cluster", "tests", "docs")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".md", ".yaml", ".toml")]
    elsewhere = re.compile(
        "|".join(("DESI" + "GN", "STA" + "CK", "MOD" + r"EL\.md", "FI" + r"ELD\.md", r"[Ss]p" + r"ec (?:section|\d)"))
    )
    for path in files:
        text = path.read_text(encoding="utf-8")
        cited = {each for some in CITED.findall(text) for each in re.findall(r"\d+(?:\.\d+)?", some)}
        assert cited <= set(headings), f"{path}: {cited - set(headings)}"
        assert not elsewhere.findall(text), path


# -- run -----------------------------------------------------------------------------------------------------------------


def run(words: list[str]) -> int:
    """A command of ours in this process; those of others and of make are not run, but for the demo's recipe."""
    if words[:2] == ["make", "demo"]:
        recipe = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M).group(1)
        lines = [line.strip().removeprefix("$(BIN)/").split() for line in recipe.splitlines() if "$(BIN)" in line]
        return max(run(smaller(line)) for line in lines)
    words = [str(Path(word).absolute()) if PLACES.fullmatch(word) else word for word in words]
    if words[0] == "adgen":
        return cli.main(words[1:])
    if job := job_of(words):
        return load_job(job).main(words[2:])
    return 0


def smaller(words: list[str]) -> list[str]:
    """With the values of SMALLER in the places of its own."""
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def assert_pulled(folder: Path) -> None:
    """The feed and the log of README.md have become creatives that were pulled."""
    assert pq.read_table(folder / "myshop" / "offers.parquet")["price"].to_pylist() == ["49.00 EUR", "129.00 EUR", "89.00 EUR"]
    rows = list(open_published(open_storage(folder / "creatives"), "spring").rows())
    assert sorted(row["product_id"] for row in rows) == ["lamp-1", "lamp-1"]
    assert {row["status"] for row in rows} <= {OK, REJECTED}
    assert any(row["status"] == OK for row in rows)
    assert "html" in (folder / "report.html").read_text(encoding="utf-8")[:100]


@pytest.mark.slow
def test_the_documents_run_from_their_first_line_to_their_last(no_ray, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("jobs", "adgen", "cluster"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in filter(NAMES.__contains__, IN_ORDER):
        for block in blocks(ROOT / name):
            where = f"{name}, line {block.line}"
            if block.mark and block.mark[0] == "file":
                (tmp_path / block.mark[1]).write_text(block.text, encoding="utf-8")
            elif block.language == "python" and block.is_run:
                exec(compile(block.text, where, "exec"), {})
            elif block.language == "bash" and block.is_run:
                for words in block.commands:
                    assert run(words) == 0, f"{where}: {' '.join(words)}: {capsys.readouterr()}"
        if name == "README.md":
            assert_pulled(tmp_path)
        if name == "docs/inputs.md":
            tables = open_inputs("myshop").tables
            assert {table: tables[table].num_rows for table in tables} == {"products": 3, "histories": 2, "pairs": 2}
