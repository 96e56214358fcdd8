"""prepare_data.py: make what detectron2 and Cat-Seg read of the downloads of public sets, and check it."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, run_command, say
from rsc_seg.data.prepare_run import check_split, prepare_split, unready
from rsc_seg.data.prepare_sources import MissingSource, Recipe, make_recipe
from rsc_seg.data.segsets import PREPARED_SETS, splits_of
from rsc_seg.errors import UserError

PROG = "prepare_data.py"
logger = logging.getLogger(__name__)

_EPILOG = """examples:
  prepare_data.py ade20k_150 --root /data --check        # what is there, what is missing and where to get it
  prepare_data.py ade20k_150 --root /data --split val
  prepare_data.py coco_stuff_171 --root /data --workers 8

The folders are those of detectron2's DETECTRON2_DATASETS; docs/datasets.md shows them.
"""


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        prog=PROG,
        description="Prepare a public set for detectron2 and Cat-Seg: labels, checks, nothing is downloaded.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", metavar="NAME", help=", ".join(PREPARED_SETS))
    add("--root", type=Path, required=True, metavar="D", help="the folder above the set's own")
    add("--split", metavar="S", help="train or val (default: those that are there)")
    add("--check", action="store_true", help="only look: read every label, write nothing; exit code 2 when not ready")
    add("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes (%(default)s)")
    add("--subset", action="store_true", help="take fewer images than the official split has")
    return parser


def _recipes(args: argparse.Namespace) -> tuple[list[Recipe], list[MissingSource]]:
    """What can be done, and what is not there. Raises UserError when that is all, or is what --split names."""
    wanted = splits_of(args.name)
    if args.split is not None:
        known = [s.split for s in wanted]
        wanted = [s for s in wanted if s.split == args.split]
        if not wanted:
            raise UserError(f"--split {args.split}: {args.name} has {', '.join(known)}.")
    recipes: list[Recipe] = []
    absent: list[MissingSource] = []
    for segset in wanted:
        try:
            recipes.append(make_recipe(segset, args.root, args.subset))
        except MissingSource as e:
            absent.append(e)
    if not recipes:
        raise absent[0]
    return recipes, absent


def _run(args: argparse.Namespace) -> None:
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: must be 1 or more.")
    args.root = args.root.expanduser()
    recipes, absent = _recipes(args)
    for note in absent:
        logger.warning("%s", note)
    lacking: list[str] = []
    for recipe in recipes:
        if not args.check:
            say(prepare_split(recipe, args.workers).line)
            continue
        outcome = check_split(recipe, args.workers)
        lack = unready(outcome)
        say(lack or f"{outcome.segset.name}: ready, {outcome.kept} images with labels in {outcome.labels}")
        lacking += [lack] if lack else []
    if lacking:
        raise UserError(f"{'; '.join(lacking)}: run {PROG} {args.name} --root {args.root}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns 0, or 2 after bad input and for a checked set that is not ready."""
    args = _parser().parse_args(argv)
    return run_command(lambda: _run(args), PROG)


if __name__ == "__main__":
    raise SystemExit(main())
