"""The package as it is installed: metadata, entry points, and what `import rsc_seg` needs."""

import ast
import configparser
import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rsc_seg

ROOT = Path(__file__).parent.parent
DETECTRON2 = ("detectron2", "fvcore")  # at home in one folder, at the top of its files
OPTIONAL = (*DETECTRON2, "xformers", "matplotlib", "tensorboard", "wandb", "webdataset")
OPTIONAL += ("sklearn", "skimage", "imgviz", "pydensecrf", "lvis")

# the blocked packages are absent, to `import` and to importlib.util.find_spec alike
BLOCKED_IMPORT = """
import importlib, importlib.machinery, sys

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked!r} else super().find_spec(name, path, target)

sys.meta_path = [Finder if finder is importlib.machinery.PathFinder else finder for finder in sys.meta_path]
for name in {modules!r}:
    importlib.import_module(name)
    print(name)
"""


def parse_setup() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(section: str, key: str) -> list[str]:
    return [line for line in parse_setup()[section][key].splitlines() if line and not line.startswith("#")]


def modules() -> list[str]:
    found = pkgutil.walk_packages(rsc_seg.__path__, "rsc_seg.")
    return ["rsc_seg", *sorted(module.name for module in found)]


def requirement_name(line: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", line)
    assert name, line
    return re.sub(r"[-_.]+", "-", name.group()).lower()


SCRIPTS = [tuple(part.strip() for part in line.split("=")) for line in lines("options.entry_points", "console_scripts")]


def test_every_module_imports_without_the_optional_packages() -> None:
    wanted = [name for name in modules() if not name.startswith("rsc_seg.d2.")]
    code = BLOCKED_IMPORT.format(blocked=OPTIONAL, modules=wanted)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == wanted


def test_without_detectron2_its_absence_is_one_clear_line() -> None:
    check = "from rsc_seg.d2 import require_detectron2; require_detectron2()"
    code = BLOCKED_IMPORT.format(blocked=DETECTRON2, modules=["rsc_seg"]) + check
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert "UserError: detectron2 is not installed: pip install 'rsc-seg[d2]'" in done.stderr.splitlines()[-1]


def optional_imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(package, line) of every import of an optional package."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        found += [(name.split(".")[0], node.lineno) for name in names if name.split(".")[0] in OPTIONAL]
    return found


def test_an_optional_package_is_imported_in_one_file_and_inside_functions() -> None:
    users: dict[str, set[str]] = {}
    for path in sorted((ROOT / "rsc_seg").rglob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {item for function in functions for item in optional_imports(function)}
        for package, line in optional_imports(tree):
            if path.parent.name == "d2" and package in DETECTRON2:
                continue
            assert (package, line) in inside, f"{path}:{line} imports {package} outside a function"
            users.setdefault(package, set()).add(path.name)
    assert {package: files for package, files in users.items() if len(files) > 1} == {}


@pytest.mark.parametrize(("script", "target"), SCRIPTS)
def test_a_console_script_has_its_target_and_its_tool(script: str, target: str) -> None:
    module, function = target.split(":")
    assert callable(getattr(importlib.import_module(module), function))
    tool = ROOT / "tools" / f"{module.rsplit('.', 1)[-1]}.py"
    assert f"from {module} import {function}" in tool.read_text(), script
    assert os.access(tool, os.X_OK), f"{tool} is not executable"


def test_every_tool_is_a_console_script() -> None:
    targets = {target.split(":")[0].rsplit(".", 1)[-1] for _, target in SCRIPTS}
    assert {path.stem for path in (ROOT / "tools").glob("*.py")} == targets


def locked() -> dict[str, str]:
    pins = [line.split(" ;")[0] for line in (ROOT / "requirements.lock").read_text().splitlines()]
    return {requirement_name(pin): pin.split("==")[1] for pin in pins}


def test_the_lock_is_plain_pins_of_an_index() -> None:
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9._-]+==[A-Za-z0-9.!]+( ; .+)?", line), line
    assert "detectron2" not in locked()


def test_the_lock_holds_everything_but_the_extras_that_are_fetched_on_demand() -> None:
    wanted = lines("options", "install_requires")
    for extra in set(parse_setup()["options.extras_require"]) - {"crf", "lvis"}:
        wanted += lines("options.extras_require", extra)
    assert [name for name in wanted if requirement_name(name) not in locked()] == []


def test_no_dependency_is_the_bare_name_detectron2() -> None:
    setup = parse_setup()
    wanted = lines("options", "install_requires")
    for extra in setup["options.extras_require"]:
        wanted += lines("options.extras_require", extra)
    assert "detectron2" not in [requirement_name(line) for line in wanted]


def test_extras_are_the_documented_ones() -> None:
    extras = {"xformers", "d2", "viz", "log", "crf", "lvis", "cc3m", "demo", "dev"}
    assert set(parse_setup()["options.extras_require"]) == extras
    page = (ROOT / "docs" / "install.md").read_text()
    assert [extra for extra in sorted(extras) if f"`{extra}`" not in page] == []
