"""The builder of .venv: what it rebuilds when, and what it says when it cannot. No installer is run."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "third_party" / "make_env.py"


class Builder:
    """make_env on a checkout of its own, with steps that only note that they ran."""

    def __init__(self, module: ModuleType, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.module, self.root, self.ran = module, root, list[str]()
        self.fail: BaseException | None = None
        venv = root / ".venv"
        for name, value in {
            "ROOT": root,
            "VENV": venv,
            "PYTHON": venv / "bin" / "python",
            "STAMP": venv / "stamp.json",
            "UNFINISHED": venv / "unfinished",
        }.items():
            monkeypatch.setattr(module, name, value)
        (root / "lock").write_text("a==1\n")
        (root / "setup").write_text("b\n")
        steps = [
            module.Step(name, (root / file,), self.note(name)) for name, file in [("one", "lock"), ("two", "setup")]
        ]
        monkeypatch.setattr(module, "STEPS", tuple(steps))
        monkeypatch.setattr(module, "make_venv", self.make_venv)

    def make_venv(self) -> None:
        self.ran.append("venv")
        self.module.PYTHON.parent.mkdir()
        self.module.PYTHON.symlink_to(sys.executable)

    def note(self, name: str) -> Callable[[], None]:
        def run() -> None:
            self.ran.append(name)
            if self.fail and name == "two":
                raise self.fail

        return run

    def build(self) -> list[str]:
        self.ran.clear()
        self.module.build()
        return list(self.ran)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    spec = importlib.util.spec_from_file_location("make_env", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return Builder(module, tmp_path, monkeypatch)


def test_only_what_changed_is_built_again(builder: Builder) -> None:
    assert builder.build() == ["venv", "one", "two"]
    assert builder.build() == []
    (builder.root / "setup").write_text("c\n")
    assert builder.build() == ["two"]
    (builder.root / "lock").write_text("a==2\n")
    assert builder.build() == ["one"]
    assert builder.build() == []


def test_a_build_that_was_cut_off_starts_anew(builder: Builder) -> None:
    builder.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        builder.build()
    (builder.module.VENV / "half-copied").touch()
    builder.fail = None
    assert builder.build() == ["venv", "one", "two"]
    assert not (builder.module.VENV / "half-copied").exists()


def test_a_clean_failure_keeps_the_steps_that_stand(builder: Builder) -> None:
    builder.fail = builder.module.EnvError("no index")
    with pytest.raises(builder.module.EnvError):
        builder.build()
    builder.fail = None
    assert builder.build() == ["two"]


def test_an_environment_of_somebody_else_is_added_to(builder: Builder) -> None:
    builder.module.VENV.mkdir()
    builder.make_venv()
    (builder.module.VENV / "mine").touch()
    assert builder.build() == ["one", "two"]
    assert (builder.module.VENV / "mine").exists()


def test_a_broken_environment_of_somebody_else_is_not_removed(builder: Builder) -> None:
    builder.module.VENV.mkdir()
    (builder.module.VENV / "mine").touch()
    with pytest.raises(builder.module.EnvError, match="move it away"):
        builder.build()
    assert (builder.module.VENV / "mine").exists()


def test_an_environment_whose_python_is_gone_is_made_anew(builder: Builder) -> None:
    builder.build()
    builder.module.PYTHON.unlink()
    assert builder.build() == ["venv", "one", "two"]


def test_a_checkout_that_moved_is_installed_again(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    builder.build()
    done = json.loads(builder.module.STAMP.read_text())
    monkeypatch.setattr(builder.module, "ROOT", builder.root / "elsewhere")
    assert all(step.digest() != done[step.name] for step in builder.module.STEPS)


def test_uv_gets_the_index_of_pip_but_keeps_its_own(builder: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "SSL_CERT_FILE", "UV_SYSTEM_CERTS"):
        monkeypatch.delenv(name, raising=False)
    settings = {"index-url": "file:///index", "cert": "/cert.pem", "timeout": "9"}
    wanted = {"UV_DEFAULT_INDEX": "file:///index", "SSL_CERT_FILE": "/cert.pem", "UV_SYSTEM_CERTS": "1"}
    assert builder.module.uv_environment(settings) == wanted
    monkeypatch.setenv("UV_INDEX_URL", "file:///other")
    assert builder.module.uv_environment(settings) == {"SSL_CERT_FILE": "/cert.pem", "UV_SYSTEM_CERTS": "1"}


def test_a_package_that_the_lock_lacks_is_named(builder: Builder) -> None:
    with pytest.raises(builder.module.EnvError, match=r"no line 'nothing-here==\.\.\.'"):
        builder.module.pinned("nothing-here")


def test_make_refuses_an_old_python_in_one_line() -> None:
    command = ["make", "-s", "env", "PYTHON=/no/such/python"]
    done = subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True)
    assert done.returncode == 2
    first, *rest = done.stderr.splitlines()
    assert first.startswith("make: Python 3.11 or newer is needed and '/no/such/python' is not")
    assert all("Error 1" in line for line in rest)
