"""Any number of run folders on one page: measures with differences, classes, maps, options, commands."""

import argparse
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, run_command, say

_EPILOG = """examples:
  report.py runs/seed0 runs/seed1 runs/other                       # compare.html in the present folder
  report.py runs/regions_a runs/regions_b --reference regions_b --output pages/regions.html
  report.py runs/catseg_a runs/catseg_b runs/cause_demo runs/ablation --maps 0
A RUN is a folder of rscv_finetune.py, ablate.py, evaluate.py, eval_cause.py or train_catseg.py (docs/compare.md).
"""


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="report.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, the reference first")
    parser.add_argument("--reference", metavar="RUN", help="what others are compared with (default: the first)")
    parser.add_argument(
        "--output", type=Path, default=Path("compare.html"), metavar="FILE", help="default: %(default)s"
    )
    parser.add_argument(
        "--maps", type=int, default=2, metavar="N", help="pictures whose maps are drawn for all students (2; 0: none)"
    )
    parser.add_argument("--device", metavar="D", default="auto", help="draws the maps: auto, cpu, cuda or mps")
    return parser


def _report(args: argparse.Namespace) -> None:
    from rsc_seg.pipelines.compare_runs import CompareOptions, result_lines, run_comparison

    options = CompareOptions(args.reference, args.maps, args.device)
    folders = [path.expanduser() for path in args.runs]
    found = run_comparison(folders, args.output.expanduser(), options)
    for line in (*result_lines(found), f"report: {args.output}"):
        say(line)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(lambda: _report(args), parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
