"""make_scenes.py: write the embedded set in the layouts of public sets."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, run_command, say
from rsc_seg.data.scenes import LAYOUT_NAMES, SceneSet, layout_root, read_manifest, write_scenes
from rsc_seg.errors import UserError

PROG = "make_scenes.py"


def _parser() -> argparse.ArgumentParser:
    defaults = SceneSet()
    width, height = defaults.size
    parser = OneLineParser(
        prog=PROG, description="Compose labelled scenes and write them in the layouts of public sets."
    )
    parser.add_argument("--output", type=Path, required=True, metavar="D", help="new or empty folder")
    parser.add_argument("--train", type=int, default=defaults.train, metavar="N", help="scenes (%(default)s)")
    parser.add_argument("--val", type=int, default=defaults.val, metavar="M", help="scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, metavar="S", help="(%(default)s)")
    parser.add_argument("--size", default=f"{width}x{height}", metavar="WxH", help="pixels (%(default)s)")
    parser.add_argument("--layouts", default=",".join(LAYOUT_NAMES), help="comma-separated (%(default)s)")
    return parser


def parse_size(text: str) -> tuple[int, int]:
    """`480x360` to (480, 360); raises UserError for anything else."""
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UserError(f"--size {text}: expected WIDTHxHEIGHT, for example 480x360.")
    return int(width), int(height)


def _run(args: argparse.Namespace) -> None:
    layouts = tuple(name.strip() for name in args.layouts.split(",") if name.strip())
    wanted = SceneSet(seed=args.seed, train=args.train, val=args.val, size=parse_size(args.size), layouts=layouts)
    root = write_scenes(args.output, wanted)
    manifest = read_manifest(root) or {}
    say(f"{root}: {wanted.train} + {wanted.val} scenes, {manifest['files']} files, sha256 {manifest['sha256'][:16]}")
    for name in manifest["layouts"]:
        say(f"  {name}: {layout_root(root, name)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after bad input."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args), PROG)
