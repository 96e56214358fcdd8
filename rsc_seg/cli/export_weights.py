"""Writes a tuned encoder for timm, for open_clip (a whole CLIP with the tuned image tower) or as a hub repository.

A trained Cat-Seg is written for the official code (--to catseg).
"""

import argparse
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, run_command, say

TARGETS = ("timm", "open_clip", "hub", "catseg")
_EPILOG = """examples:
  export_weights.py runs/x/student.safetensors --to open_clip --output clip_refined.safetensors
  export_weights.py runs/x/student_alpha1.safetensors --initial official --alpha 0.7 --to hub --output my-model
  export_weights.py runs/x/catseg.safetensors --to catseg --output model_final.pth
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = OneLineParser(
        prog="export_weights.py",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, help="a tuned encoder or catseg.safetensors, or a hub folder")
    parser.add_argument("--to", choices=TARGETS, required=True, help="who shall load it")
    parser.add_argument("--output", type=Path, required=True, help="file (timm, open_clip, catseg) or folder (hub)")
    parser.add_argument("--backbone", help="default: as the sidecar says")
    parser.add_argument("--initial", metavar="WEIGHTS", help="official, none or a file: what the training started from")
    parser.add_argument("--alpha", type=float, help="share of the tuned weights, the rest is --initial")
    parser.add_argument(
        "--text", default="official", metavar="WEIGHTS", help="text tower: official, none or a file of a whole CLIP"
    )
    parser.add_argument("--probe", type=Path, help="a run's probe.json for the card (default: beside the checkpoint)")
    args = parser.parse_args(argv)

    def command() -> None:
        from rsc_seg.pipelines.export import export_weights

        files = export_weights(
            args.checkpoint,
            args.output,
            target=args.to,
            backbone=args.backbone,
            initial=args.initial,
            alpha=args.alpha,
            text=args.text,
            probe=args.probe,
        )
        for path in files:
            say(str(path))

    return run_command(command, parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
