"""Who imports whom: no circles, the order of the rooms, and no heavy library where a consumer or the model would pay for it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = ("command_line", "config", "cutouts", "records", "errors", "images", "local_cache", "progress", "shipped", "terminal")
MAY_IMPORT = {
    "cli": {"store_commands", "on_ray", "evaluation", "training", "generation", "model", "finishing", "shop", "creatives"},
    "store_commands": {"shop", "creatives"},
    "on_ray": {"evaluation", "training", "generation", "model", "finishing", "shop", "creatives"},
    "evaluation": {"training", "generation", "model", "finishing", "shop", "creatives"},
    "training": {"generation", "model", "shop", "creatives"},
    "generation": {"model", "shop", "creatives"},
    "model": set(),
    "finishing": {"shop", "creatives"},
    "shop": {"creatives"},
    "creatives": set(),
}


def module_name(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(root: Path) -> dict[str, set[str]]:
    """Each module of the package adgen below `root` -> the modules of it that it imports, also inside functions, but for types."""
    paths = {module_name(path, root): path for path in (root / "adgen").rglob("*.py")}
    return {name: found_imports(name, path, paths) for name, path in paths.items()}


def found_imports(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    wanted: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            wanted |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            inside = {f"{node.module}.{each.name}" for each in node.names}
            wanted |= {each if each in known else str(node.module) for each in inside}
    return (wanted & known.keys()) - {name}


def circle_in(imports: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a ring, the first one again at the end; none: []."""
    done: set[str] = set()

    def visit(name: str, above: list[str]) -> list[str]:
        if name in above:
            return [*above[above.index(name) :], name]
        if name in done:
            return []
        for each in sorted(imports[name]):
            if found := visit(each, [*above, name]):
                return found
        done.add(name)
        return []

    return next((found for name in sorted(imports) if (found := visit(name, []))), [])


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def forbidden(imports: dict[str, set[str]]) -> list[str]:
    """Imports against the order, as `a imports b`."""
    return [
        f"{name} imports {other}"
        for name, others in sorted(imports.items())
        for other in sorted(others)
        if room(other) not in {"", room(name), *LEAVES, *MAY_IMPORT.get(room(name), set())}
    ]


@pytest.mark.slow
def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(imports_of(ROOT)) == []


@pytest.mark.slow
def test_rooms_import_only_what_is_below_them():
    assert forbidden(imports_of(ROOT)) == []


def test_a_circle_and_an_import_upwards_are_found(tmp_path):
    for name, text in {
        "adgen/__init__.py": "",
        "adgen/shop/__init__.py": "",
        "adgen/shop/one.py": "from adgen.shop import two\n",
        "adgen/shop/two.py": "def late():\n    from adgen.shop.three import x\n",
        "adgen/shop/three.py": "import adgen.shop.one\nimport adgen.finishing\n",
        "adgen/finishing/__init__.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    imports = imports_of(tmp_path)
    assert circle_in(imports) == ["adgen.shop.one", "adgen.shop.two", "adgen.shop.three", "adgen.shop.one"]
    assert forbidden(imports) == ["adgen.shop.three imports adgen.finishing"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "libraries"),
    [
        ("model", ("ray", "boto3")),
        ("generation", ("ray", "boto3")),
        ("creatives", ("torch", "ray")),
        ("finishing", ("torch", "ray")),
    ],
)
def test_a_package_loads_no_library_that_it_must_do_without(package, libraries):
    """All of its modules but those that tests and the benchmark run as programs."""
    code = (
        "import importlib, pkgutil, sys\n"
        f"package = importlib.import_module('adgen.{package}')\n"
        "for found in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "    if not found.name.endswith('__main__'):\n"
        "        importlib.import_module(found.name)\n"
        f"print([name for name in {libraries!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
def test_transformers_waits_until_a_model_is_built():
    """It takes longer to load than all else, and every process of Ray would pay for it: planning, look-ups, uploads."""
    jobs = [f"adgen.on_ray.{name}.job" for name in ("refresh", "training", "evaluation", "proof")]
    code = (
        f"import sys, {', '.join(['adgen.generation.engine', *jobs])}\n"
        "print([name for name in ('transformers', 'torch._dynamo') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
