#!/usr/bin/env python3
"""Build, update or repair .venv for `make`: the locked packages, detectron2, then this project itself, editable.

Each step runs only when the files that it reads have changed. A marker lies in .venv while it is being changed: an
environment that was left half-built is removed and built anew, one that somebody else made is only added to.
"""

import ast
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "rsc-seg-built.json"
UNFINISHED = VENV / "rsc-seg-unfinished"
LOCK = ROOT / "requirements.lock"
RECIPE = ROOT / "third_party" / "detectron2" / "install_detectron2.py"
PROBE = "iniconfig"  # the smallest locked package: asked for to learn whether there is an index


class EnvError(Exception):
    """The environment cannot be built; the message is one line that says why and what to do."""


class Step(NamedTuple):
    """A part of the build and what it depends on."""

    name: str
    files: tuple[Path, ...]
    run: Callable[[], None]

    def digest(self) -> str:
        """Changes with the content of `files` and with the place of the checkout."""
        content = b"\0".join([str(ROOT).encode(), *(path.read_bytes() for path in self.files)])
        return hashlib.sha256(content).hexdigest()


def say(text: str) -> None:
    """A line about progress."""
    print(f"[env] {text}", flush=True)


def child_environment() -> dict[str, str]:
    """os.environ without what would make pip install elsewhere than into .venv."""
    elsewhere = {"PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PYTHONPATH", "PYTHONHOME"}
    return {key: value for key, value in os.environ.items() if key not in elsewhere | {"VIRTUAL_ENV", "CONDA_PREFIX"}}


def call(*command: str | Path, quiet: bool = False, env: dict[str, str] | None = None) -> bool:
    """Whether `command` succeeds. It inherits the checkout's lock, so an orphan of a killed build is waited for."""
    pipe = subprocess.DEVNULL if quiet else None
    env = child_environment() | (env or {})
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, stdout=pipe, stderr=pipe, close_fds=False)
    except OSError:  # no such program
        return False
    return done.returncode == 0


def pinned(package: str) -> str:
    """`package==version` as the lock has it."""
    found = re.search(rf"^{re.escape(package)}==[^\s;]+", LOCK.read_text(), re.MULTILINE)
    if not found:
        raise EnvError(f"{LOCK.name}: no line '{package}==...'; run `make lock` where there is an index.")
    return found.group()


def working_uv() -> str | None:
    """Path of a uv that runs, if the machine has one."""
    uv = shutil.which("uv")
    return uv if uv and call(uv, "--version", quiet=True) else None


def make_venv() -> None:
    """A .venv that holds Python and pip."""
    if call(sys.executable, "-m", "venv", VENV, quiet=True):
        return
    uv = working_uv()  # Debian's python3 without python3-venv cannot seed pip; uv can
    command = ("venv", "-q", "--seed", "--allow-existing", "--python", sys.executable, VENV)
    if not (uv and call(uv, *command, env=uv_environment({}))):
        raise EnvError(
            f"{sys.executable} cannot make a virtual environment: install its venv package (on Debian and Ubuntu "
            "`apt install python3-venv`), check free disk space, or install uv."
        )


def pip_settings() -> dict[str, str]:
    """pip's configuration of this machine by its last name, the environment above the files."""
    shown = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"], cwd=ROOT, env=child_environment(), capture_output=True, text=True
    )
    pairs = [line.split("=", 1) for line in shown.stdout.splitlines() if "=" in line]
    pairs.sort(key=lambda pair: pair[0].startswith(":env:"))
    return {key.rsplit(".", 1)[-1]: str(ast.literal_eval(value)) for key, value in pairs}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """What makes uv use the index and certificates that pip would use; uv's own settings stand above these."""
    wanted = {
        "UV_DEFAULT_INDEX": settings.get("index-url"),
        "SSL_CERT_FILE": settings.get("cert"),
        "UV_SYSTEM_CERTS": "1",
    }
    taken = set(os.environ) | ({"UV_DEFAULT_INDEX"} if "UV_INDEX_URL" in os.environ else set())
    return {key: value for key, value in wanted.items() if value and key not in taken}


def require_pip() -> None:
    """Raises EnvError unless .venv has pip or can be given one, and pip reaches an index or a folder of wheels."""
    pip = (PYTHON, "-m", "pip")
    if not call(*pip, "--version", quiet=True) and not call(PYTHON, "-m", "ensurepip", "--default-pip", quiet=True):
        raise EnvError(f"{VENV} has no pip and cannot get one; remove the folder and run make again.")
    with tempfile.TemporaryDirectory() as probe:
        flags = ("--retries", "1", "--no-deps", "--no-cache-dir", "-d", probe)
        if not call(*pip, "download", *flags, pinned(PROBE), quiet=True):
            raise EnvError(
                f"no package index answers ({pinned(PROBE)} could not be downloaded): check the network and "
                "`pip config list`; without a network see docs/install.md."
            )


def usable_uv(settings: dict[str, str]) -> str | None:
    """A uv of the machine or of the index; None where pip works from a folder alone, which uv would not know of."""
    if "no-index" in settings:
        return None
    here = VENV / "bin" / "uv"
    return working_uv() or (str(here) if call(PYTHON, "-m", "pip", "install", "-q", pinned("uv"), quiet=True) else None)


def install_packages() -> None:
    """The lock, by uv where it can be had, by pip otherwise."""
    require_pip()
    settings = pip_settings()
    uv = usable_uv(settings)
    say(f"installing {LOCK.name} with {'uv' if uv else 'pip (slower than uv)'}; about 6 GB on disk on Linux")
    if uv:
        if call(uv, "pip", "install", "--python", PYTHON, "-r", LOCK, env=uv_environment(settings)):
            return
        say("uv failed; trying pip")
    if not call(PYTHON, "-m", "pip", "install", "--progress-bar", "off", "-r", LOCK):
        raise EnvError(f"{LOCK.name} could not be installed (the reason stands above); mend that and run make again.")


def install_detectron2() -> None:
    """detectron2 by the recipe of this project; its dependencies are in the lock."""
    if not call(PYTHON, RECIPE, "--no-deps"):
        raise EnvError("detectron2 could not be installed (the reason stands above).")


def install_project() -> None:
    """This checkout, editable, with its console scripts."""
    command = (PYTHON, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-e", ROOT)
    if not call(*command, env={"PYTHONWARNINGS": "ignore"}):  # setuptools warns about every editable installation
        raise EnvError("the project could not be installed into .venv (the reason stands above).")


STEPS = (
    Step("packages", (LOCK,), install_packages),
    Step("detectron2", (RECIPE,), install_detectron2),
    Step("project", (ROOT / "setup.cfg", ROOT / "pyproject.toml"), install_project),
)


def built() -> dict[str, str]:
    """Digest of each step that .venv holds; empty where it must be built."""
    try:
        done = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return done if isinstance(done, dict) else {}


def run(step: Step, done: dict[str, str]) -> None:
    """Run one step and note it in the stamp; a clean failure keeps what stands, anything else leaves the marker."""
    digest = step.digest()
    done.pop(step.name, None)
    STAMP.write_text(json.dumps(done))
    try:
        step.run()
    except EnvError:
        UNFINISHED.unlink()
        raise
    done[step.name] = digest
    STAMP.write_text(json.dumps(done))


def build() -> None:
    """Bring .venv up to date; does nothing, quickly, when it is."""
    broken = VENV.exists() and not call(PYTHON, "-c", "", quiet=True)
    if UNFINISHED.exists() or (broken and (STAMP.exists() or not any(VENV.iterdir()))):
        say("removing a half-built or broken .venv")
        shutil.rmtree(VENV)
    elif broken:
        raise EnvError(f"{VENV} holds no working Python and was not made by make: move it away and run make again.")
    done = built()
    due = [step for step in STEPS if done.get(step.name) != step.digest()]
    if not due:
        return
    fresh = not VENV.exists()
    VENV.mkdir(exist_ok=True)
    UNFINISHED.touch()
    if fresh:
        say(f"making .venv with Python {sys.version.split()[0]}")
        make_venv()
    for step in due:
        run(step, done)
    UNFINISHED.unlink()
    say("ready: .venv")


def main() -> int:
    """Build under a lock, so that two makes in one checkout take turns."""
    checkout = os.open(ROOT, os.O_RDONLY)
    os.set_inheritable(checkout, True)
    try:
        fcntl.flock(checkout, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("another build is at work on .venv; waiting for it")
        fcntl.flock(checkout, fcntl.LOCK_EX)
    try:
        build()
    except EnvError as error:
        print(f"[env] ERROR: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("[env] interrupted; the next make starts the environment anew", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
