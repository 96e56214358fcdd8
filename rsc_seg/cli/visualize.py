"""Draws what encoders see, the untuned one and any number of tuned ones side by side.

  affinity   cosine of a token with all others        pca      three joint principal components as colours
  norms      length of every token                    coupling what a second picture changes (two pictures or more)
  tsne       objects of labelled pictures in a plane  maskclip classes by name (CLIP only)
  refiner    a Refiner's map of a box                 page     one interactive page: a click shows the token's affinity

Without one of these words: affinity, pca, norms, and coupling where there are two pictures.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from rsc_seg.cli.common import OneLineParser, config_from, make_parser, print_config, run_command, say
from rsc_seg.config import EvaluateConfig, require_choice
from rsc_seg.data.storage import is_image
from rsc_seg.errors import UserError

if TYPE_CHECKING:  # what draws is imported when something is drawn: --help stays quick
    from rsc_seg.pipelines.visualize_inputs import Request

PROG = "visualize.py"
MAPS = ("affinity", "pca", "norms", "coupling")
KINDS = (*MAPS, "tsne", "maskclip", "refiner", "page")
_EPILOG = """examples:
  visualize.py cat.jpg --backbone dinov2_vits14 --weights demo
  visualize.py affinity photos/ --backbone dinov2_vits14 --weights demo --size 518x518 \\
      --checkpoint runs/mine/student.safetensors runs/other/student.safetensors
  visualize.py page cat.jpg dog.jpg --run runs/mine
  visualize.py tsne --run runs/mine data.kind=coco data.root=/data/coco --per-class 256
  visualize.py maskclip cat.jpg --classes "cat, grass, sky" --backbone clip_vitb16
  visualize.py refiner cat.jpg --run runs/mine --box 0.2,0.3,0.7,0.8

docs/visualize.md says how to read the figures.
"""


def _size(text: str) -> list[int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH in pixels, for example 518x518.")
    return [int(p) for p in parts]


def _numbers(flag: str, text: str, count: int, example: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count:
        raise UserError(f"{flag} {text}: expected {count} numbers between commas, for example {flag} {example}.")
    return found


def _map_flags(parser: argparse.ArgumentParser, kind: Optional[str]) -> None:
    add = parser.add_argument
    if kind is None:
        add("--maps", help="affinity, pca, norms, coupling, separated by commas (default: all that can be made)")
    if kind in (None, "affinity"):
        add("--queries", type=int, default=3, help="query points of the affinity maps (default: 3)")
        add(
            "--query",
            action="append",
            default=[],
            metavar="X,Y",
            help="a query point by hand, shares of width and height from the top left (repeatable)",
        )
    if kind in (None, "pca"):
        add("--scope", default="image", help="one PCA for each image (default), for the whole set, or separate")
    add("--enlarge", default="nearest", metavar="MODE", help="nearest (default: squares are tokens) or bilinear")


def _tsne_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--classes", help="names between commas as the set has them (default: its 7 things with the most instances)")
    add("--per-class", type=int, default=256, help="instances of a class, drawn by run.seed (default: 256)")
    add("--perplexity", type=float, default=30.0, help="of t-SNE (default: 30)")


def _maskclip_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--classes", metavar="NAMES", help="as in segment.py: names between commas, @FILE, or a list such as voc_20")
    add("--background", metavar="NAME", help="a class that is left uncoloured; added to the classes if it is none")
    add("--prompts", default="imagenet", help="prompt set or file of templates (docs/text.md; default: imagenet)")
    add("--text-weights", metavar="W", help="official, none or a file of a whole CLIP (default: as --weights)")
    add("--alpha", type=float, default=0.55, metavar="A", help="share of the colours (default: 0.55)")


def _refiner_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--refiner", nargs="+", action="extend", default=[], metavar="FILE", help="refiner.safetensors (repeatable)"
    )
    parser.add_argument(
        "--box",
        action="append",
        default=[],
        metavar="X0,Y0,X1,Y1",
        help="shares of width and height from the top left (repeatable; default: 0.25,0.25,0.75,0.75)",
    )


def _page_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--components",
        type=int,
        default=384,
        metavar="N",
        help="numbers kept of a token; wider features are projected first (default: 384)",
    )


_FLAGS: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "tsne": _tsne_flags,
    "maskclip": _maskclip_flags,
    "refiner": _refiner_flags,
    "page": _page_flags,
}


def _parser(kind: Optional[str]) -> OneLineParser:
    parser = make_parser(PROG, __doc__ or "", _EPILOG)
    images = "" if kind == "tsne" else "IMAGE... "
    parser.usage = f"{PROG} {kind or '[KIND]'} {images}[--checkpoint FILE...] [options] [key=value ...]"
    add = parser.add_argument
    add(
        "--checkpoint",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="tuned encoders, shown beside the untuned one (repeatable)",
    )
    add("--run", type=Path, metavar="RUN", help="a run folder: its backbone and size, its student (and Refiner)")
    add("--size", default="", metavar="HxW", help="pixels that pictures are squashed to (default: data.image_size)")
    add("--format", default="png,svg", metavar="F", help="png, svg or both (default: png,svg)")
    add("--output-dir", type=Path, default=Path("runs/pictures"), help="default: runs/pictures")
    if kind in _FLAGS:
        _FLAGS[kind](parser)
    else:
        _map_flags(parser, kind)
    return parser


def _is_picture(word: str) -> bool:
    folder = Path(word)
    return is_image(word) or (folder.is_dir() and not (folder / "refiner.safetensors").is_file())


def _is_option(word: str) -> bool:
    return "=" in word and not Path(word).exists()


def _split(args: argparse.Namespace) -> tuple[list[Path], list[Path], list[Path]]:
    """Pictures, checkpoints and Refiners, wherever they stand: the flags take all words that follow them."""
    words: list[str] = list(args.overrides)
    found: dict[str, list[Path]] = {"checkpoint": [], "refiner": []}
    for flag, paths in found.items():
        for word in getattr(args, flag, []):
            if _is_picture(word) or _is_option(word):
                words.append(word)
            else:
                paths.append(Path(word))
    args.overrides = [word for word in words if _is_option(word)]
    return [Path(word) for word in words if not _is_option(word)], found["checkpoint"], found["refiner"]


def _config(args: argparse.Namespace, kind: Optional[str]) -> EvaluateConfig:
    """Defaults, then what of a run concerns pictures, then the rest as everywhere."""
    base: dict[str, Any] = {"backbone": {"name": "clip_vitb16"}} if kind == "maskclip" else {}
    if args.run is not None:
        from rsc_seg.pipelines.folder import read_config

        run = read_config(args.run)
        base = {"backbone": dataclasses.asdict(run.backbone), "data": {"image_size": list(run.data.image_size)}}
        if args.backbone is not None and args.backbone != run.backbone.name:
            raise UserError(f"--backbone {args.backbone}: {args.run} is a run of {run.backbone.name}; leave one out.")
    return config_from(args, EvaluateConfig, base)


def _kinds(args: argparse.Namespace, kind: Optional[str], images: list[Path]) -> list[str]:
    if kind is not None:
        return [kind]
    if args.maps is None:
        several = len(images) > 1 or any(path.is_dir() for path in images)
        return [k for k in MAPS if k != "coupling" or several]
    kinds = args.maps.split(",")
    for one in kinds:
        require_choice("--maps", one, MAPS)
    return kinds


def _draw(args: argparse.Namespace, kind: Optional[str]) -> list[Path]:
    images, checkpoints, refiners = _split(args)
    config = _config(args, kind)
    if args.print_config:
        print_config(config)
        return []
    if args.run is not None and (args.run / "student.safetensors").is_file():
        checkpoints.insert(0, args.run / "student.safetensors")
    from rsc_seg.pipelines.visualize_inputs import Request

    size = _size(args.size) if args.size else config.data.image_size
    request = Request(images, checkpoints, size, args.output_dir.expanduser(), args.format.split(","))
    if kind == "tsne":
        return _draw_tsne(args, config, request)
    if kind == "maskclip":
        return _draw_maskclip(args, config, request)
    if kind == "refiner":
        from rsc_seg.pipelines.visualize_refiner import draw_refiner

        if args.run is not None and (args.run / "refiner.safetensors").is_file():
            refiners.insert(0, args.run / "refiner.safetensors")
        return draw_refiner(
            config, request, refiners, [_numbers("--box", text, 4, "0.2,0.3,0.7,0.8") for text in args.box]
        )
    if kind == "page":
        from rsc_seg.pipelines.visualize_page import draw_page

        return draw_page(config, request, args.components)
    from rsc_seg.pipelines.visualize import MapOptions, visualize

    points = [_numbers("--query", text, 2, "0.5,0.3") for text in getattr(args, "query", [])]
    options = MapOptions(
        _kinds(args, kind, images),
        getattr(args, "queries", 3),
        [(x, y) for x, y in points],
        getattr(args, "scope", "image"),
        args.enlarge,
    )
    return visualize(config, request, options)


def _draw_tsne(args: argparse.Namespace, config: EvaluateConfig, request: "Request") -> list[Path]:
    from rsc_seg.pipelines.visualize_tsne import TsneOptions, draw_tsne

    if request.images:
        raise UserError(f"{request.images[0]}: tsne takes labelled pictures by data.kind and data.root, not files.")
    classes = None if args.classes is None else [" ".join(name.split()) for name in args.classes.split(",")]
    return draw_tsne(config, request, TsneOptions(classes, args.per_class, args.perplexity))


def _draw_maskclip(args: argparse.Namespace, config: EvaluateConfig, request: "Request") -> list[Path]:
    from rsc_seg.pipelines.segment_inputs import parse_classes
    from rsc_seg.pipelines.visualize_maskclip import MaskClipOptions, draw_maskclip

    if args.classes is None:
        raise UserError('--classes: name what to look for, for example --classes "cat, grass, sky".')
    names = parse_classes(args.classes, args.background)
    clear = None if args.background is None else " ".join(args.background.split())
    options = MaskClipOptions(names, clear, args.prompts, args.text_weights, args.alpha)
    return draw_maskclip(config, request, options)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    # a picture or folder that has the name of a kind can be given as ./name
    kind = words.pop(0) if words and words[0] in KINDS else None
    args = _parser(kind).parse_intermixed_args(words)

    def command() -> None:
        for path in _draw(args, kind):
            say(str(path))

    return run_command(command, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
