"""Measures encoders; `probe` is the quick measure with its controls, `table` the mean and spread over several runs."""

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rsc_seg.cli.common import OneLineParser, add_config_flags, config_from, print_config, run_command, say
from rsc_seg.config import EvaluateConfig
from rsc_seg.errors import UserError

_EPILOG = """examples:
  evaluate.py probe --run runs/mine                                    # on the run's own data
  evaluate.py probe --run runs/mine data.kind=cityscapes data.root=/data/cityscapes
  evaluate.py probe --backbone dinov2_vits14 --weights demo --checkpoint runs/mine/student.safetensors data.kind=scenes
  evaluate.py table runs/seed0 runs/seed1 runs/seed2
"""


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="evaluate.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="probe|table", parser_class=OneLineParser)
    probe = kinds.add_parser(
        "probe", help="k-means, linear probe, affinity AP, coupling ratio and token norms on a labelled set"
    )
    add_config_flags(probe)
    probe.add_argument(
        "--run", type=Path, help="run folder: backbone and data come from its config.yaml, rows from its files"
    )
    probe.add_argument("--checkpoint", type=Path, action="append", help="a tuned encoder (may be given several times)")
    probe.add_argument("--output", type=Path, help="JSON file (default: <run>/probe.json)")
    table = kinds.add_parser("table", help="mean and spread of several runs' probe.json over training seeds")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    return parser


def _base(run: Path | None) -> dict[str, Any] | None:
    if run is None:
        return None
    from rsc_seg.pipelines.folder import read_config

    config = read_config(run)
    data = dataclasses.replace(config.data, every=1, limit=None)
    return {
        "backbone": dataclasses.asdict(config.backbone),
        "data": dataclasses.asdict(data),
        "probe": dataclasses.asdict(config.probe),
        "run": dataclasses.asdict(config.run),
    }


def _probe(args: argparse.Namespace) -> None:
    config = config_from(args, EvaluateConfig, _base(args.run))
    if args.print_config:
        print_config(config)
        return
    if args.run is not None and args.checkpoint:
        raise UserError("give --run or --checkpoint, not both.")
    from rsc_seg.pipelines.probe import run_probe
    from rsc_seg.probe.suite import save_json
    from rsc_seg.probe.table import text_table

    result = run_probe(config, run=args.run, checkpoints=args.checkpoint)
    output = args.output or (args.run / "probe.json" if args.run else None)
    if output is not None:
        save_json(result, output)
    for line in (
        text_table(result),
        *result["remarks"],
        result["weights"]["note"],
        f"written: {output}" if output else "",
    ):
        if line:
            say(line)


def _table(args: argparse.Namespace) -> None:
    from rsc_seg.pipelines.seeds import seeds_markdown

    say(seeds_markdown(args.runs))


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args = parser.parse_args(argv)
    return run_command(lambda: _probe(args) if args.kind == "probe" else _table(args), parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
