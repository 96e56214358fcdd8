"""Writes boxes for images in COCO's format: regions of an encoder's tokens, or a detector's proposals; with --nouns
each is labelled by a CLIP. --check and --draw look at such a file."""

import argparse
from pathlib import Path

from rsc_seg.cli.common import config_from, make_parser, print_config, run_command, say
from rsc_seg.config import EvaluateConfig
from rsc_seg.errors import UserError

PROG = "make_proposals.py"
_EPILOG = """examples:
  make_proposals.py --backbone dinov2_vitb14 data.root=/data/coco --output boxes.json
  make_proposals.py --method rpn data.root=/data/coco --output boxes.json
  make_proposals.py --backbone clip_vitb16 --method proposals --nouns nouns.txt --output labels.json \\
      data.root=/data/coco data.proposals=boxes.json
  make_proposals.py --check boxes.json --draw look/ data.root=/data/coco
"""


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(PROG, __doc__ or "", _EPILOG)
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file to write; a broken-off run goes on")
    parser.add_argument("--method", default="features", help="features, rpn or proposals (default: %(default)s)")
    parser.add_argument("--per-image", type=int, default=100, metavar="N", help="boxes, at most (%(default)s)")
    parser.add_argument("--overlap", type=float, default=0.7, metavar="IOU", help="of two boxes, at most (%(default)s)")
    parser.add_argument("--detector", default="fasterrcnn_resnet50_fpn", help="of torchvision (%(default)s)")
    parser.add_argument("--detector-weights", default="official", metavar="W", help="official, none or a file")
    parser.add_argument("--nouns", metavar="FILE", help="label boxes with these names, or with `coco`'s 80 things")
    parser.add_argument("--text-weights", metavar="W", help="of the CLIP's text tower (default: those of --weights)")
    parser.add_argument("--threshold", type=float, default=-1.0, metavar="C", help="least cosine of a label")
    parser.add_argument("--check", type=Path, metavar="FILE", help="say what a file of boxes holds for these images")
    parser.add_argument("--draw", type=Path, metavar="FOLDER", help="draw boxes of --output or --check on images")
    parser.add_argument("--pictures", type=int, default=8, metavar="N", help="images to draw (%(default)s)")
    parser.add_argument("--draw-boxes", type=int, default=10, metavar="N", help="boxes on each (%(default)s)")
    return parser


def _make(args: argparse.Namespace, config: EvaluateConfig) -> None:
    from rsc_seg.pipelines.proposals import ProposalOptions, make_proposals

    options = ProposalOptions(
        method=args.method,
        per_image=args.per_image,
        overlap=args.overlap,
        detector=args.detector,
        detector_weights=args.detector_weights,
        nouns=args.nouns,
        text_weights=args.text_weights,
        threshold=args.threshold,
    )
    made = make_proposals(config, args.output, options)
    say(f"{made.path}: {made.boxes} boxes of {made.images} images, {made.left_out} unreadable ones left out")


def _run(args: argparse.Namespace) -> None:
    config = config_from(args, EvaluateConfig)
    if args.print_config:
        print_config(config)
        return
    if args.output is None and args.check is None:
        raise UserError("give --output FILE to write boxes, or --check FILE to look at some.")
    if args.output is not None and args.check is not None:
        raise UserError("give --output or --check, not both.")
    if args.output is not None:
        _make(args, config)
    from rsc_seg.pipelines.proposals_check import check_proposals, draw_proposals

    path = args.output or args.check
    for line in check_proposals(config.data, path):
        say(line)
    if args.draw is not None:
        written = draw_proposals(config.data, path, args.draw, pictures=args.pictures, boxes=args.draw_boxes)
        say(f"drawn: {len(written)} pictures in {args.draw}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    return run_command(lambda: _run(args), PROG)


if __name__ == "__main__":
    raise SystemExit(main())
