"""The tests themselves: what they share lies in tests/support/; what tests/README.md promises is tested."""

import ast
import re
from pathlib import Path

import pytest
from support.scheduling import ByGroup

TESTS = Path(__file__).parent


def imported(code: str) -> set[str]:
    """The modules that `code` imports, also in strings that are code: what another process runs."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                found.add(module)
            case ast.Constant(value=str(text)) if "import " in text:
                try:
                    found |= imported(text)
                except (SyntaxError, ValueError):
                    continue
    return found


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.stem)
def test_no_test_imports_another(path):
    modules = {name.rpartition(".")[2] for name in imported(path.read_text())}
    assert not modules & {other.stem for other in TESTS.rglob("test_*.py")}


def test_an_import_is_found_in_code_and_in_a_string_of_code():
    code = "from a.b import c\nimport d\nrun('from test_e import f; x = 1')\nsay('import is a word')"
    assert imported(code) == {"a.b", "d", "test_e"}


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def promised() -> list[str]:
    """`file.py` or `file.py::test`, as the tables of tests/README.md name them."""
    return re.findall(r"`((?:\w+/)?test_\w+\.py(?:::\w+)?)`", (TESTS / "README.md").read_text())


@pytest.mark.parametrize("name", sorted(set(promised())))
def test_what_the_readme_names_is_there(name):
    file, _, test = name.partition("::")
    assert (TESTS / file).exists()
    assert not test or test in functions_of(TESTS / file)


def test_every_long_test_says_why_it_is_one():
    assert {f"long/{path.name}" for path in (TESTS / "long").glob("test_*.py")} <= set(promised())


def test_every_promise_names_a_test():
    table = (TESTS / "README.md").read_text().partition("## What is promised")[2]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    assert len(rows) > 40
    assert [promise for promise, tests in rows if "test_" not in tests] == []


def test_a_group_runs_in_one_worker(request):
    """Else each worker makes the fixtures of each file, and a Ray, anew."""
    [first, *_] = request.config.hook.pytest_xdist_make_scheduler.get_hookimpls()[::-1]
    assert first.plugin_name.endswith("conftest.py"), "before xdist's own"
    scheduler = ByGroup.__new__(ByGroup)
    groups = [
        scheduler._split_scope(f"tests/{name}::test_it[a::b]")
        for name in ("test_gate.py", "test_kill.py", "test_ranks.py", "test_runs.py")
    ]
    assert groups == ["ray", "ray", "ray of groups", "test_runs.py"]
