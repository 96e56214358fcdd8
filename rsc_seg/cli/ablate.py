"""Trains a list of configurations one after another, measures each, and writes one table with spreads over seeds."""

import argparse
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, run_command, say
from rsc_seg.errors import UserError

_EPILOG = """examples:
  ablate.py configs/ablation/threeway.yaml --seeds 3 --output-dir runs/threeway
  ablate.py configs/ablation/*.yaml --base configs/rla/r_sc_clipself_evaclip_vitb16.yaml data.root=/data/coco
  ablate.py mine.yaml theirs.yaml --measure data.kind=cityscapes --measure data.root=/data/cityscapes
The same command goes on where it was stopped. docs/ablations.md shows the files.
"""


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="ablate.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("items", nargs="+", metavar="CONFIG | key=value", help="files, and options of all runs")
    parser.add_argument("--base", type=Path, metavar="PRESET", help="put every CONFIG on this preset")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="training runs of each row (default: 1)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/ablation"), help="default: runs/ablation")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or mps (= run.device=D)")
    parser.add_argument(
        "--measure", action="append", default=[], metavar="key=value", help="option of the measure (data.*, probe.*)"
    )
    parser.add_argument(
        "--regions", default="auto", help="zero-shot accuracy of regions: auto (where there is a CLIP), on or off"
    )
    parser.add_argument("--classes", default="auto", help="what stands for a region's class: auto, text or prototypes")
    parser.add_argument("--list", action="store_true", help="name the runs and what each changes, and stop")
    return parser


def _ablate(args: argparse.Namespace) -> None:
    from rsc_seg.pipelines.ablation_plan import plan_runs

    files = [Path(item) for item in args.items if "=" not in item or Path(item).exists()]
    overrides = [item for item in args.items if "=" in item and not Path(item).exists()]
    if not files:
        raise UserError("no CONFIG is given; name one or more files, such as configs/ablation/threeway.yaml.")
    if args.device is not None:
        overrides.insert(0, f"run.device={args.device}")
    variants = plan_runs(files, base=args.base, overrides=overrides)
    if args.list:
        for variant in variants:
            say(f"{variant.name}: " + (variant.what or f"as {variant.sources[-1]}"))
        return
    from rsc_seg.pipelines.ablate import failure_line, run_ablation
    from rsc_seg.pipelines.ablation_measure import MeasureOptions
    from rsc_seg.pipelines.ablation_table import MARKDOWN, PAGE, comparison_markdown

    options = MeasureOptions(args.measure, args.regions, args.classes)
    result = run_ablation(variants, args.output_dir, seeds=args.seeds, options=options)
    say(comparison_markdown(result))
    say(f"written: {args.output_dir / MARKDOWN}, {args.output_dir / PAGE}")
    failed = failure_line(result)
    if failed is not None:
        raise UserError(failed)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)
    return run_command(lambda: _ablate(args), parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
