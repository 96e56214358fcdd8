"""Segments one's own pictures into any classes by name: an overlay with legend, a label file and the numbers."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from rsc_seg.cli.common import OneLineParser, make_parser, plain_config, print_config, run_command, say
from rsc_seg.config import load_config
from rsc_seg.config_catseg import SegmentConfig, TrainCatSegConfig
from rsc_seg.errors import UserError

PROG = "segment.py"
_MOST_NAMED = 5  # unreadable pictures in the last line; each has its own line before
_KEYS = tuple(f.name for f in dataclasses.fields(SegmentConfig))
_EPILOG = """examples:
  segment.py cat.jpg --classes "cat, grass, sky" --weights model_base.pth
  segment.py photos/ --classes ade20k_150 --config configs/catseg/vitl.yaml --weights model_large.pth
  segment.py cat.jpg --classes @names.txt --weights runs/mine/catseg.safetensors --config runs/mine/config.yaml
  segment.py cat.jpg --classes "cat" --background "everything else" --weights model_base.pth test.protocol=whole

Each picture gets NAME_overlay.png, NAME_labels.png and NAME.json in the output folder; docs/segment.md says more.
"""


def _parser() -> OneLineParser:
    parser = make_parser(PROG, __doc__ or "", _EPILOG, encoder=False)
    parser.usage = f"{PROG} IMAGE... --classes NAMES --weights FILE [options] [key=value ...]"
    add = parser.add_argument
    add(
        "--classes",
        metavar="NAMES",
        help="names between commas; @FILE, a .txt (a name a line) or .json file; or a set's list such as ade20k_150",
    )
    add("--background", metavar="NAME", help="a class that is left uncoloured; added to the classes if it is none")
    add("--weights", type=Path, metavar="FILE", help="a trained Cat-Seg: released (model_base.pth) or of a run")
    add("--output-dir", type=Path, default=Path("runs/segments"), metavar="D", help="default: runs/segments")
    add("--alpha", type=float, default=0.5, metavar="A", help="share of the colours in the overlay (default: 0.5)")
    return parser


def _config(args: argparse.Namespace) -> SegmentConfig:
    """Defaults, what of --config concerns this command, flags, and key=value."""
    base: dict[str, Any] = {}
    if args.config is not None:
        whole = dataclasses.asdict(load_config(TrainCatSegConfig, args.config))
        base = {key: whole[key] if key in whole else whole["data"][key] for key in _KEYS}
        args.config = None
    return plain_config(args, SegmentConfig, base)


def _split(words: list[str]) -> tuple[list[Path], list[str]]:
    """Pictures and options; a file whose name holds = is a picture."""
    options = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in options], options


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code: 2 also when a picture could not be read."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)

    def command() -> None:
        images, args.overrides = _split(args.overrides)
        config = _config(args)
        if args.print_config:
            print_config(config)
            return
        if args.classes is None:
            raise UserError('--classes: name what to look for, for example --classes "cat, grass, sky".')
        from rsc_seg.pipelines.segment import Request, segment_pictures
        from rsc_seg.pipelines.segment_inputs import parse_classes

        names = parse_classes(args.classes, args.background)
        background = None if args.background is None else " ".join(args.background.split())
        request = Request(images, names, args.output_dir.expanduser(), args.weights, args.alpha, background)
        failed, count = [], 0
        for result in segment_pictures(config, request):
            count += 1
            if result.error:
                failed.append(result.image)
                sys.stderr.write(f"{PROG}: {result.error}\n")
            else:
                say(result.line)
        if failed:
            few = ", ".join(map(str, failed[:_MOST_NAMED])) + (", ..." if len(failed) > _MOST_NAMED else "")
            raise UserError(f"{len(failed)} of {count} pictures could not be read: {few}; the others are done.")

    return run_command(command, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
