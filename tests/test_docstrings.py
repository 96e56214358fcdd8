"""House rules that no linter setting holds: docstrings, annotations, length of files."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTED = [
    path for folder in ("ops", "models", "training") for path in sorted((ROOT / "rsc_seg" / folder).glob("*.py"))
]
MOST_LINES = 400

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def definitions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Definition]]:
    """Functions, classes and methods of a module by dotted name; what stands inside a function is left out."""
    for node in body:
        if isinstance(node, Definition):
            yield prefix + node.name, node
        if isinstance(node, ast.ClassDef):
            yield from definitions(node.body, f"{prefix}{node.name}.")


def is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def missing_annotations(name: str, node: Definition) -> list[str]:
    if isinstance(node, ast.ClassDef):
        return []
    args = node.args
    all_args = [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]
    bare = [a.arg for a in all_args if a.annotation is None]
    if "." in name and not any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list):
        bare = bare[1:] if bare and bare[0] in ("self", "cls") else bare
    return bare + (["return"] if node.returns is None else [])


@pytest.mark.parametrize("path", DOCUMENTED, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_every_public_name_has_a_docstring_and_every_function_is_annotated(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = [name for name, node in definitions(tree.body) if is_public(name) and not ast.get_docstring(node)]
    if tree.body and not ast.get_docstring(tree):
        silent.insert(0, "the module")
    bare = {name: missing for name, node in definitions(tree.body) if (missing := missing_annotations(name, node))}
    assert not silent, "no docstring"
    assert not bare, "no annotation"


def test_the_folders_are_where_this_test_looks() -> None:
    assert {path.parent.name for path in DOCUMENTED} == {"ops", "models", "training"}
    assert len(DOCUMENTED) > 20


def test_no_file_is_longer_than_the_house_allows() -> None:
    files = [path for folder in ("rsc_seg", "tools", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in files}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_the_checks_see_what_they_are_for() -> None:
    source = "class A:\n    def f(self, x, *rest): ...\n    def _g(self) -> None: ...\ndef h(a: int) -> int: ...\n"
    found = dict(definitions(ast.parse(source).body))
    assert {name: missing_annotations(name, node) for name, node in found.items()} == {
        "A": [],
        "A.f": ["x", "rest", "return"],
        "A._g": [],
        "h": [],
    }
    assert [name for name in found if is_public(name)] == ["A", "A.f", "h"]
