#!/usr/bin/env python3
"""Install detectron2 as a pure-Python package from the configured package index.

Upstream publishes no detectron2 on the index. This script

1. does nothing when a usable detectron2 is already importable;
2. downloads one pinned third-party upload (name, version, sha256) with pip. It is a wheel: nothing of it is executed;
3. checks that its Python files are upstream's, file by file, against one digest of upstream's git blob ids at
   UPSTREAM_COMMIT (see `tree_digest`);
4. leaves out what must not be installed (a foreign compiled extension, a stray top-level package), applies the few
   EDITS that current libraries need, and writes detectron2-0.6+...-py3-none-any.whl, the same bytes every time;
5. installs that wheel into the environment of the running interpreter.

It is a PEP 517 build backend too (see the pyproject.toml beside it): `pip install ./third_party/detectron2` and
`uv pip install ./third_party/detectron2` do steps 2 to 5.

No compiled operator is installed: deformable convolution, rotated boxes and the fast COCO evaluator raise when used.
Whoever wants those builds upstream: `--from-git` (needs upstream's host and a C++ compiler).
"""

import argparse
import base64
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

DIST, DIST_VERSION = "sal-detectron2", "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
UPSTREAM_COMMIT = "a59f05630a8f205756064244bf5beb8661f96180"  # 2024-04-17, Apache-2.0
UPSTREAM_GIT = "git+https://github.com/facebookresearch/detectron2@" + UPSTREAM_COMMIT
# `tree_digest` of upstream's own files at that commit, those of REUPLOAD_EDITS left out
UPSTREAM_DIGEST = "ceaf461332d6c8b68457eae81b354d839d5c5f3f0a6f7b9226752abdca56e192"
# where the uploader differs from upstream; each difference was read and is harmless, the last one is needed
REUPLOAD_EDITS = (
    "detectron2/__init__.py",  # the version number: set back by EDITS
    "detectron2/utils/testing.py",  # one more unittest.skipIf
    "detectron2/data/common.py",  # random.sample of a list: Python 3.11 refuses a set
)
VERSION = "0.6+a59f0563.purepy1"  # count purepy up with every change to EDITS, REQUIRES or MARK
WHEEL_SHA256 = "d0de21b12d5281046eba7890446a7d2c8318f08bca699c165b9d2df713635ea9"
REQUIRES = (
    "Pillow>=9.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "numpy",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "black",
    "packaging",
)
MARK = b"# Modified from upstream by install_detectron2.py (see its EDITS).\n"  # Apache-2.0, section 4b


class Edit(NamedTuple):
    """A replacement in one file; `old` must occur there exactly once."""

    file: str
    old: str
    new: str
    why: str


EDITS = (
    Edit(
        "detectron2/__init__.py",
        '__version__ = "0.7.2"',
        '__version__ = "0.6"',
        "0.7.2 is the uploader's number; upstream says 0.6 at this commit",
    ),
    Edit(
        "detectron2/evaluation/sem_seg_evaluation.py",
        "np.array(Image.open(f), copy=copy, dtype=dtype)",
        "np.array(Image.open(f), copy=copy or None, dtype=dtype)",
        "numpy 2 raises for copy=False when a copy is needed, as in SemSegEvaluator's default loader",
    ),
    Edit("detectron2/layers/mask_ops.py", "np.array(mask, copy=False)", "np.asarray(mask)", "numpy 2, the same"),
    Edit("detectron2/model_zoo/model_zoo.py", "import pkg_resources\n", "", "setuptools dropped pkg_resources"),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        'pkg_resources.resource_filename(\n        "detectron2.model_zoo", os.path.join("configs", config_path)\n    )',
        'os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)',
        "setuptools dropped pkg_resources",
    ),
)


class InstallError(Exception):
    """detectron2 cannot be built or installed; the message says why and what to do."""


class Upload(NamedTuple):
    """What is taken from the upload."""

    files: dict[str, bytes]
    licence: bytes
    left_out: list[str]


def say(text: str) -> None:
    """A line about progress."""
    print(f"[detectron2] {text}", flush=True)


def usable() -> tuple[str | None, str]:
    """Version of an importable detectron2 or None, and a failed import's last words; asked of a new interpreter."""
    code = (
        "import detectron2.engine, detectron2.modeling, detectron2.evaluation, detectron2.projects.deeplab;"
        "import importlib.metadata as m; print('FOUND', m.version('detectron2'))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return (found[-1][6:], "") if done.returncode == 0 and found else (None, done.stderr.strip())


def outdated(version: str) -> bool:
    """Whether `version` is another edition of this recipe; upstream's own builds are left alone."""
    return "purepy" in version and version != VERSION


def pip_commands() -> tuple[list[str], list[str]]:
    """The command that downloads and the one that installs, in an environment of pip or of uv."""
    pip = [sys.executable, "-m", "pip"]
    if importlib.util.find_spec("pip"):
        return pip, [*pip, "install"]
    uv = shutil.which("uv")
    if uv:
        return [uv, "tool", "run", "pip"], [uv, "pip", "install", "--python", sys.executable]
    raise InstallError(f"neither pip nor uv found: run `{sys.executable} -m ensurepip` first.")


def download(folder: Path) -> Path:
    """The pinned upload, from the index that pip is configured for."""
    pip, _ = pip_commands()
    pin = folder / "pin.txt"
    pin.write_text(f"{DIST}=={DIST_VERSION} --hash=sha256:{SHA256}\n")
    # the upload is tagged for one interpreter because of the compiled file that is left out here
    tag = ["--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any"]
    flags = ["-q", "--no-deps", "--require-hashes", "--only-binary=:all:", *tag, "-d", str(folder), "-r", str(pin)]
    done = subprocess.run([*pip, "download", *flags], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        reason = words[-1].removeprefix("ERROR: ") if words else f"pip ended with status {done.returncode}"
        raise InstallError(
            f"could not download {DIST}=={DIST_VERSION} from the configured index ({reason}). "
            "Other ways: pass the file with --wheel FILE, or build upstream with --from-git."
        )
    return wheels[0]


def read_upload(path: Path) -> Upload:
    """Upstream's Python and YAML files and the licence out of the upload.

    Raises InstallError when it is missing, is another file than the pinned one, or carries no licence.
    """
    if not path.is_file():
        raise InstallError(f"{path}: no such file.")
    got = hashlib.sha256(path.read_bytes()).hexdigest()
    if got != SHA256:
        raise InstallError(f"{path}: sha256 is {got}, want {SHA256}: not the pinned {DIST}=={DIST_VERSION}.")
    files, left_out, licence = {}, [], b""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if name.endswith(".dist-info/LICENSE"):
                licence = archive.read(name)
            elif name.startswith("detectron2/") and name.endswith((".py", ".yaml")):
                files[name] = archive.read(name)
            elif not name.endswith("/"):
                left_out.append(name)
    if not licence:
        raise InstallError(f"{path}: carries no LICENSE.")
    return Upload(files, licence, left_out)


def tree_digest(files: dict[str, bytes]) -> str:
    """sha256 over sorted `git-blob-id  path` lines, so that upstream's repository alone can vouch for the files."""
    lines = []
    for name in sorted(files.keys() - set(REUPLOAD_EDITS)):
        blob = hashlib.sha1(b"blob %d\0" % len(files[name]) + files[name]).hexdigest()
        lines.append(f"{blob}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def apply_edits(files: dict[str, bytes], edits: tuple[Edit, ...] = EDITS) -> dict[str, bytes]:
    """The files with the edits applied and every edited one marked; raises InstallError when one does not fit."""
    edited = dict(files)
    for file, old, new, why in edits:
        text = edited.get(file, b"").decode()
        if text.count(old) != 1:
            raise InstallError(
                f"the edit of {file} does not apply ({why}): its old text occurs {text.count(old)} times."
            )
        edited[file] = text.replace(old, new).encode()
    return edited | {name: MARK + edited[name] for name in {edit.file for edit in edits}}


def dist_info(files: dict[str, bytes], licence: bytes) -> dict[str, bytes]:
    """The wheel's metadata files for `files`, RECORD included."""
    meta = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {VERSION}",
        f"Summary: Pure-Python repack (no compiled ops) of upstream detectron2 {UPSTREAM_COMMIT}",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.8",
        *(f"Requires-Dist: {requirement}" for requirement in REQUIRES),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: install_detectron2", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    folder = f"detectron2-{VERSION}.dist-info/"
    out = {
        folder + "LICENSE": licence,
        folder + "METADATA": ("\n".join(meta) + "\n").encode(),
        folder + "WHEEL": ("\n".join(wheel) + "\n").encode(),
        folder + "top_level.txt": b"detectron2\n",
    }
    record = []
    for name, content in sorted((files | out).items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(content)}\n")
    return out | {folder + "RECORD": "".join([*record, f"{folder}RECORD,,\n"]).encode()}


def write_wheel(files: dict[str, bytes], licence: bytes, folder: Path) -> Path:
    """Pack a wheel whose bytes depend on its content alone: fixed dates and modes, no compression."""
    path = folder / f"detectron2-{VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted((files | dist_info(files, licence)).items()):
            item = zipfile.ZipInfo(name, (2024, 4, 17, 0, 0, 0))
            item.external_attr = 0o644 << 16
            item.create_system = 3
            archive.writestr(item, content)
    return path


def make_wheel(folder: Path, upload: Path | None = None) -> Path:
    """Download (or take `upload`), check, edit, pack; the wheel's path in `folder`."""
    with tempfile.TemporaryDirectory() as scratch:
        files, licence, left_out = read_upload(upload or download(Path(scratch)))
        if tree_digest(files) != UPSTREAM_DIGEST:
            raise InstallError(f"the upload's files differ from upstream at {UPSTREAM_COMMIT}.")
        built = write_wheel(apply_edits(files), licence, Path(scratch))
        got = hashlib.sha256(built.read_bytes()).hexdigest()
        if got != WHEEL_SHA256:
            raise InstallError(f"the wheel built here has sha256 {got}, want {WHEEL_SHA256}.")
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(shutil.copy(built, folder))
    say(
        f"{len(files)} files of upstream {UPSTREAM_COMMIT[:8]}, {len(REUPLOAD_EDITS)} of them with known edits of the "
        f"uploader; {len(left_out)} others left out; {len({edit.file for edit in EDITS})} edited here"
    )
    return path


# PEP 517: called by pip and uv


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    """pip, to download with."""
    return ["pip"]


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: str | None = None) -> str:
    """Name of the wheel made in `wheel_directory`."""
    return make_wheel(Path(wheel_directory)).name


def build_sdist(sdist_directory: str, config_settings: Any = None) -> str:
    """Refused: there is no source distribution of this recipe."""
    raise InstallError("only a wheel can be built here.")


def install(args: argparse.Namespace) -> None:
    """Install the wheel, or upstream's own build, into the running interpreter's environment."""
    if not importlib.util.find_spec("torch") or not importlib.util.find_spec("torchvision"):
        raise InstallError("install torch and torchvision first.")
    _, command = pip_commands()
    # the dependencies come first: --force-reinstall below would reinstall every one of them
    if not args.no_deps and subprocess.call([*command, "-q", *REQUIRES]):
        raise InstallError("installing detectron2's dependencies failed.")
    forced = [*command, "-q", "--no-deps", "--force-reinstall"]
    if args.from_git:
        if subprocess.call([*forced, "--no-build-isolation", UPSTREAM_GIT]):
            raise InstallError("building upstream failed; without --from-git no compiler is needed.")
        return
    with tempfile.TemporaryDirectory() as scratch:
        if subprocess.call([*forced, str(make_wheel(Path(scratch), args.wheel))]):
            raise InstallError("installing the wheel failed.")


def main(argv: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say whether detectron2 is usable")
    parser.add_argument("--from-git", action="store_true", help="build upstream with its compiled operators instead")
    parser.add_argument("--wheel", metavar="FILE", type=Path, help="use this copy of the pinned upload")
    parser.add_argument("--build-only", metavar="DIR", type=Path, help="write the wheel to DIR, install nothing")
    parser.add_argument("--no-deps", action="store_true", help="install without detectron2's dependencies")
    parser.add_argument("--force", action="store_true", help="install even when a usable one is there")
    args = parser.parse_args(argv)
    if args.build_only:
        say(f"wrote {make_wheel(args.build_only, args.wheel)}")
        return 0
    version, words = usable()
    if args.check:
        say(f"usable: {version}" if version else f"not usable: {(words.splitlines() or ['?'])[-1]}")
        return 0 if version else 1
    if version and not outdated(version) and not args.force:
        say(f"already usable ({version}): nothing to do")
        return 0
    install(args)
    version, words = usable()
    if not version:
        raise InstallError(f"installed, but importing it fails: {words[-1500:]}")
    say(f"installed {version}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InstallError as error:
        sys.exit(f"[detectron2] ERROR: {error}")
