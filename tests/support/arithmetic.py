"""The tables of cluster/ARITHMETIC.md, read and computed again."""

import ast
import math
import operator
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "cluster/ARITHMETIC.md"
OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip
FUNCTIONS = {"ceil": math.ceil, "floor": math.floor, "max": max}


def value_of(formula, names):
    """A formula of names, numbers, + - * / ** and ceil, floor, max; KeyError for anything else."""

    def walk(node):
        match node:
            case ast.Constant(value=int() | float()):
                return node.value
            case ast.Name():
                return names[node.id]
            case ast.BinOp():
                return OPERATORS[type(node.op)](walk(node.left), walk(node.right))
            case ast.Call(func=ast.Name(id=name), keywords=[]):
                return FUNCTIONS[name](*map(walk, node.args))
        raise KeyError(ast.dump(node))

    return walk(ast.parse(formula, mode="eval").body)


def number(text):
    """`1,953,125`, `4.4e11`, `81%` as a number."""
    text = text.replace(",", "").strip("`* ")
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


def tables(path):
    """Every table of the page: its header cells and its rows of cells."""
    for block in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), re.MULTILINE):
        header, _, *rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        yield header, rows


def inputs_and_results(columns=("value",), page=PAGE):
    """The page's two kinds of table whose number columns are `columns`, read in order: names so far, formulas, numbers."""
    names, results = {column: {} for column in columns}, []
    for header, rows in tables(page):
        if header == ["input", *columns, "unit", "source"]:
            for row in rows:
                for column, cell in zip(columns, row[1:], strict=False):
                    names[column][row[0].strip("`")] = number(cell)
        if header == ["result", "formula", *columns, "unit"]:
            for row in rows:
                for column, cell in zip(columns, row[2:], strict=False):
                    exact = value_of(row[1].strip("`"), names[column])
                    names[column][row[0].strip("`")] = exact
                    results.append((f"{row[0]} {column}", exact, number(cell)))
    return names, results
