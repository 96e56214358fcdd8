"""Runs every measure of the paper that the data at hand allow, and prints ours beside the paper's numbers."""

import argparse
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, run_command, say
from rsc_seg.errors import UserError

_EPILOG = """examples:
  benchmark_all.py --backbone evaclip_vitb16 --checkpoint A.safetensors B.safetensors --data-root /data
  benchmark_all.py --backbone dinov2_vitb14 --checkpoint runs/mine/student.safetensors --data-root /data --only cause
  benchmark_all.py --backbone clip_vitb16 --data-root /data --limit 100 maskclip.window=224 maskclip.stride=112
  benchmark_all.py --backbone clip_tiny16 --weights none --scenes        # everything at tiny scale, in a minute
The same command goes on where it was stopped. docs/compare.md says where data are looked for.
"""


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="benchmark_all.py",
        description=__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--backbone", required=True, metavar="NAME", help="encoder, for example evaclip_vitb16 or dinov2_vitb14")
    add("--weights", metavar="W", help="of the untuned encoder: official (default), demo, none, a file")
    add("--checkpoint", nargs="+", action="extend", default=[], metavar="FILE", help="tuned encoders, one or more")
    add("--refiner", nargs="+", action="extend", default=[], metavar="FILE", help="Refiners, for the coupling ratio")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--data-root", metavar="D", help="the folder above the sets (default: the embedded scenes)")
    where.add_argument("--scenes", action="store_true", help="the embedded scenes, everything at tiny scale")
    add("--limit", type=int, metavar="N", help="first N pictures of each set")
    add(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="M",
        help="regions, maskclip, coupling, cause, or a set",
    )
    add("--device", metavar="D", help="auto, cpu, cuda or mps (= run.device=D)")
    add("--output-dir", type=Path, help="default: runs/benchmark_<backbone>[_scenes]; goes on with what is there")
    add("overrides", nargs="*", metavar="key=value", help="options of the measures that have them")
    return parser


def _is_option(text: str) -> bool:
    """key=value behind a flag that takes all words that follow it; a file of that name is a file."""
    return "=" in text and not Path(text).exists()


def _benchmark(args: argparse.Namespace, rest: list[str]) -> None:
    from rsc_seg.pipelines.benchmark_all import default_folder, run_benchmark
    from rsc_seg.pipelines.benchmark_plan import Setup
    from rsc_seg.pipelines.benchmark_table import JSON, MARKDOWN, PAGE, console_lines

    words = {name: getattr(args, name) for name in ("checkpoint", "refiner", "only")}
    overrides = [*args.overrides, *(w for values in words.values() for w in values if _is_option(w)), *rest]
    plain = {name: [w for w in values if not _is_option(w)] for name, values in words.items()}
    setup = Setup(
        backbone=args.backbone,
        weights=args.weights,
        root=Path(args.data_root).expanduser() if args.data_root else None,
        limit=args.limit,
        only=plain["only"],
        overrides=overrides,
        device=args.device,
        checkpoints=[Path(text).expanduser() for text in plain["checkpoint"]],
        refiners=[Path(text).expanduser() for text in plain["refiner"]],
        scenes=args.scenes or not args.data_root,
    )
    folder = (args.output_dir or default_folder(setup)).expanduser()
    rows, failed = run_benchmark(setup, folder)
    for line in (*console_lines(rows), f"written: {folder / JSON}, {folder / MARKDOWN}", f"report: {folder / PAGE}"):
        say(line)
    if failed:
        raise UserError(f"{len(failed)} of the measures failed, the others are done: {'; '.join(failed)}")


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    unknown = [text for text in rest if "=" not in text or text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return run_command(lambda: _benchmark(args, rest), parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
