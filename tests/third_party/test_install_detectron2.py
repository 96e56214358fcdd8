"""The detectron2 recipe, offline: what it accepts, what it refuses, and what it left in this environment."""

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "third_party" / "detectron2" / "install_detectron2.py"


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_detectron2", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def edited_sources(recipe: ModuleType) -> dict[str, bytes]:
    """The smallest files to which every edit applies."""
    files: dict[str, bytes] = {}
    for edit in recipe.EDITS:
        files[edit.file] = files.get(edit.file, b"") + edit.old.encode() + b"\n"
    return files


def write_upload(path: Path, names: dict[str, bytes]) -> str:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def toy_upload(recipe: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An upload of the recipe's own shape, pinned in place of the real one."""
    path = folder / "upload.whl"
    names = edited_sources(recipe) | {"detectron2/config/a.yaml": b"a: 1\n", "sal-1.dist-info/LICENSE": b"Apache"}
    monkeypatch.setattr(
        recipe, "SHA256", write_upload(path, names | {"detectron2/_C.so": b"\x7fELF", "tools/x.py": b"evil = 1\n"})
    )
    files = recipe.read_upload(path).files
    monkeypatch.setattr(recipe, "UPSTREAM_DIGEST", recipe.tree_digest(files))
    return path


def test_a_file_with_another_hash_is_refused(recipe: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "upload.whl"
    got = write_upload(path, {"detectron2/__init__.py": b""})
    with pytest.raises(recipe.InstallError, match=f"sha256 is {got}, want {recipe.SHA256}"):
        recipe.read_upload(path)


def test_a_missing_file_is_named(recipe: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(recipe.InstallError, match=r"absent\.whl: no such file"):
        recipe.read_upload(tmp_path / "absent.whl")


def test_an_upload_without_licence_is_refused(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "upload.whl"
    monkeypatch.setattr(recipe, "SHA256", write_upload(path, {"detectron2/__init__.py": b""}))
    with pytest.raises(recipe.InstallError, match="no LICENSE"):
        recipe.read_upload(path)


def test_only_upstreams_python_and_yaml_are_taken(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = recipe.read_upload(toy_upload(recipe, tmp_path, monkeypatch))
    assert upload.left_out == ["detectron2/_C.so", "tools/x.py"]
    assert upload.licence == b"Apache"
    assert set(upload.files) == {edit.file for edit in recipe.EDITS} | {"detectron2/config/a.yaml"}


def test_tree_digest_is_over_git_blob_ids_and_ignores_known_edits(recipe: ModuleType) -> None:
    # git hash-object of "hello\n"
    line = "ce013625030ba8dba906f756967f9e9ca394464a  detectron2/a.py\n"
    files = {"detectron2/a.py": b"hello\n"}
    assert recipe.tree_digest(files) == hashlib.sha256(line.encode()).hexdigest()
    known = dict.fromkeys(recipe.REUPLOAD_EDITS, b"anything")
    assert recipe.tree_digest(files | known) == recipe.tree_digest(files)
    assert recipe.tree_digest({"detectron2/a.py": b"hello \n"}) != recipe.tree_digest(files)


def test_files_that_are_not_upstreams_are_refused(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = toy_upload(recipe, tmp_path, monkeypatch)
    monkeypatch.setattr(recipe, "UPSTREAM_DIGEST", "0" * 64)
    with pytest.raises(recipe.InstallError, match="differ from upstream"):
        recipe.make_wheel(tmp_path / "out", upload)
    assert not (tmp_path / "out").exists()


def test_an_edit_that_does_not_fit_is_refused(recipe: ModuleType) -> None:
    files = edited_sources(recipe)
    name = recipe.EDITS[0].file
    for wrong in (b"", files[name] * 2):
        with pytest.raises(recipe.InstallError, match=f"the edit of {name} does not apply"):
            recipe.apply_edits(files | {name: wrong})


def test_edited_files_and_no_others_are_marked(recipe: ModuleType) -> None:
    files = edited_sources(recipe) | {"detectron2/other.py": b"x = 1\n"}
    edited = recipe.apply_edits(files)
    marked = {name for name, content in edited.items() if content.startswith(recipe.MARK)}
    assert marked == {edit.file for edit in recipe.EDITS}
    assert all(content.count(recipe.MARK) <= 1 for content in edited.values())
    assert edited["detectron2/other.py"] == b"x = 1\n"


def test_the_wheel_is_the_same_every_time_and_its_record_is_true(
    recipe: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = toy_upload(recipe, tmp_path, monkeypatch)
    with pytest.raises(recipe.InstallError, match="the wheel built here has sha256") as refused:
        recipe.make_wheel(tmp_path / "a", upload)
    monkeypatch.setattr(recipe, "WHEEL_SHA256", str(refused.value).split("sha256 ")[1].split(",")[0])
    first, second = recipe.make_wheel(tmp_path / "a", upload), recipe.make_wheel(tmp_path / "b", upload)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        info = f"detectron2-{recipe.VERSION}.dist-info/"
        record = archive.read(info + "RECORD").decode().splitlines()
        assert {line.split(",")[0] for line in record} == set(archive.namelist())
        sizes = {line.split(",")[0]: line.split(",")[2] for line in record}
        assert all(int(sizes[name] or len(archive.read(name))) == len(archive.read(name)) for name in sizes)
        assert f"Version: {recipe.VERSION}\n" in archive.read(info + "METADATA").decode()


def test_another_edition_of_the_recipe_is_outdated_and_upstreams_build_is_not(recipe: ModuleType) -> None:
    assert recipe.outdated("0.6+a59f0563.purepy0")
    assert not recipe.outdated(recipe.VERSION)
    assert not recipe.outdated("0.6")


def test_the_backend_and_the_script_agree(recipe: ModuleType) -> None:
    tomllib = importlib.import_module("tomllib")
    project = tomllib.loads((SCRIPT.parent / "pyproject.toml").read_text())["project"]
    assert project["version"] == recipe.VERSION
    assert tuple(project["dependencies"]) == recipe.REQUIRES


def test_a_wrong_file_is_one_line_and_status_1(tmp_path: Path) -> None:
    path = tmp_path / "upload.whl"
    path.write_bytes(b"not a wheel")
    command = [sys.executable, str(SCRIPT), "--build-only", str(tmp_path / "out"), "--wheel", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("[detectron2] ERROR: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_this_environment_holds_detectron2(recipe: ModuleType) -> None:
    version = importlib.metadata.version("detectron2")
    assert version == recipe.VERSION or "purepy" not in version
    code = (
        "from detectron2.config import get_cfg; from detectron2.structures import Instances;"
        "from detectron2.data import DatasetCatalog; print(get_cfg().VERSION, len(Instances((4, 6))._fields))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "0"], done.stderr
