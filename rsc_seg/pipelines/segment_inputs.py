"""What tools/segment.py is given: class names, pictures, and the names of the files it writes for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from rsc_seg.data import vocab
from rsc_seg.data.segset_names import check_names, read_class_names
from rsc_seg.data.segsets import PREPARED_SETS, splits_of
from rsc_seg.data.storage import FolderStorage
from rsc_seg.errors import UserError, suggestion

FLAG = "--classes"
KIND = "rsc-seg segmentation"  # in the JSON files that this project wrote for a picture
_ENDS = ("_overlay", "_labels")
_FILES = (".json", ".txt")
_KNOWN = tuple(dict.fromkeys((*PREPARED_SETS, *vocab.VOCABULARIES)))


def _set_names(name: str) -> list[str]:
    """The names that Cat-Seg gives its text encoder for a set, or those of another list of this project."""
    return splits_of(name)[0].class_names() if name in PREPARED_SETS else vocab.load(name).names


def parse_classes(text: str, background: Optional[str] = None) -> list[str]:
    """Class names of `text`: names between commas, `@FILE` or a .json or .txt file, or the name of a set's vocabulary.

    `background` is added to them unless it is one. Raises UserError for an empty name, a name that stands there twice,
    a file that cannot be read, and what looks like a set's name and is none.
    """
    single = text.strip()
    if single.startswith("@"):
        names = read_class_names(Path(single[1:]).expanduser())
    elif single in _KNOWN:
        names = _set_names(single)
    elif "," not in single and Path(single).suffix.lower() in _FILES:
        names = read_class_names(Path(single).expanduser())
    elif "," not in single and "_" in single and suggestion(single, _KNOWN):
        known = ", ".join(_KNOWN)
        raise UserError(f"{FLAG} {single}: no set is called so; there are {known}.{suggestion(single, _KNOWN)}")
    else:
        names = check_names(single.split(","), FLAG) if single else check_names([], FLAG)
    if background is not None:
        clean = check_names([background], "--background")[0]
        names = names if clean in names else check_names([*names, clean], f"{FLAG} with --background")
    return names


def result_image(path: Path) -> Optional[str]:
    """The picture that a JSON file of tools/segment.py belongs to; None when it is no such file."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return str(held.get("image")) if isinstance(held, dict) and held.get("kind") == KIND else None


def _is_result(path: Path) -> bool:
    """Whether a picture is one that tools/segment.py wrote."""
    ends = [end for end in _ENDS if path.stem.endswith(end)]
    return any(result_image(path.with_name(path.stem.removesuffix(end) + ".json")) is not None for end in ends)


def find_pictures(given: Sequence[Path], output: Path) -> list[Path]:
    """The pictures to segment: files as given, and all pictures of the folders among them, at any depth.

    Each file once, whatever it was given as. In folders, what lies in `output` and earlier results are passed over.
    Raises UserError for a path that is not there, and a folder without pictures.
    """
    if not given:
        raise UserError("no picture given: segment.py IMAGE... --classes NAMES.")
    found: dict[Path, Path] = {}
    for path in (Path(p).expanduser() for p in given):
        if path.is_dir():
            files = [path / name for name in FolderStorage(path).images()]
            kept = [f for f in files if output.resolve() not in f.resolve().parents and not _is_result(f)]
            if not kept:
                raise UserError(f"{path}: no pictures in this folder; looked at any depth, earlier results left out.")
        elif path.exists():
            kept = [path]
        else:
            raise UserError(f"{path}: no such file or folder; name pictures or folders of pictures.")
        for file in kept:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def result_files(folder: Path, name: str) -> dict[str, Path]:
    """The files of one picture."""
    return {
        "facts": folder / f"{name}.json",
        "labels": folder / f"{name}_labels.png",
        "overlay": folder / f"{name}_overlay.png",
    }


def _is_free(folder: Path, name: str, image: Path) -> bool:
    """Whether `image` may have this name: nothing stands there, or an earlier result of the same picture."""
    files = result_files(folder, name)
    if files["facts"].exists():
        return result_image(files["facts"]) == str(image.resolve())
    return not any(path.exists() for path in files.values())


def output_names(images: Sequence[Path], folder: Path) -> list[str]:
    """A name for the files of each picture: its own, with a number where another picture or file has that already.

    A picture that was segmented into `folder` before keeps its name.
    """
    taken: set[str] = set()
    names = []
    for image in images:
        name, again = image.stem, 2
        while name.casefold() in taken or not _is_free(folder, name, image):
            name, again = f"{image.stem}-{again}", again + 1
        taken.add(name.casefold())
        names.append(name)
    return names
