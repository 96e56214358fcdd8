"""Measures encoders: `probe` is the quick measure with its controls, `report` a run's page from the last measure,
`table` the mean and spread over several runs, `regions` a CLIP's zero-shot classification of boxes and masks."""

import argparse
import dataclasses
import re
from pathlib import Path
from typing import Any

from rsc_seg.cli.common import OneLineParser, add_config_flags, config_from, print_config, run_command, say
from rsc_seg.config import EvaluateConfig
from rsc_seg.config_zeroshot import EvaluateRegionsConfig
from rsc_seg.errors import UserError

_EPILOG = """examples:
  evaluate.py probe --run runs/mine                                    # on the run's own data
  evaluate.py probe --run runs/mine data.kind=cityscapes data.root=/data/cityscapes
  evaluate.py probe --backbone dinov2_vits14 --weights demo --checkpoint runs/mine/student.safetensors data.kind=scenes
  evaluate.py report runs/mine                                         # report.html again, nothing measured
  evaluate.py table runs/seed0 runs/seed1 runs/seed2
  evaluate.py regions --backbone clip_vitb16 --checkpoint A.safetensors B.safetensors data.root=/data/coco
"""
_KEY_VALUE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="evaluate.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(
        dest="kind", required=True, metavar="probe|report|table|regions", parser_class=OneLineParser
    )
    probe = kinds.add_parser(
        "probe", help="k-means, linear probe, affinity AP, coupling ratio and token norms on a labelled set"
    )
    add_config_flags(probe)
    probe.add_argument(
        "--run", type=Path, help="run folder: backbone and data come from its config.yaml, rows from its files"
    )
    probe.add_argument("--checkpoint", type=Path, action="append", help="a tuned encoder (may be given several times)")
    probe.add_argument("--output", type=Path, help="JSON file (default: <run>/probe.json); the page lies beside it")
    report = kinds.add_parser("report", help="a run's report.html from its probe.json, without measuring")
    report.add_argument("run", type=Path, metavar="RUN")
    report.add_argument("--device", metavar="D", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    table = kinds.add_parser("table", help="mean and spread of several runs' probe.json over training seeds")
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    regions = kinds.add_parser("regions", help="zero-shot classification of boxes and masks (docs/regions_eval.md)")
    add_config_flags(regions)
    regions.add_argument(
        "--checkpoint", nargs="+", action="extend", default=[], metavar="FILE", help="tuned encoders, one or more"
    )
    regions.add_argument("--output-dir", type=Path, help="default: runs/regions_<backbone>; goes on with what is there")
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
    from rsc_seg.pipelines.probe import result_lines, run_probe
    from rsc_seg.pipelines.report import measure_run
    from rsc_seg.probe.suite import save_json

    written = []
    if args.run is not None:
        result, page = measure_run(config, args.run, args.output)
        written = [f"written: {args.output or args.run / 'probe.json'}", f"report: {page}"]
    else:
        result = run_probe(config, checkpoints=args.checkpoint)
        if args.output is not None:
            save_json(result, args.output)
            written = [f"written: {args.output}"]
    for line in (*result_lines(result), *written):
        say(line)


def _report(args: argparse.Namespace) -> None:
    from rsc_seg.pipelines.report import rebuild_report

    say(f"report: {rebuild_report(args.run, args.device)}")


def _table(args: argparse.Namespace) -> None:
    from rsc_seg.pipelines.seeds import seeds_markdown

    say(seeds_markdown(args.runs))


def _is_option(text: str) -> bool:
    """key=value behind --checkpoint, which takes all words that follow it; a file of that name is a file."""
    return _KEY_VALUE.match(text) is not None and not Path(text).exists()


def _regions(args: argparse.Namespace) -> None:
    args.overrides = [*args.overrides, *filter(_is_option, args.checkpoint)]
    checkpoints = [Path(text) for text in args.checkpoint if not _is_option(text)]
    config = config_from(args, EvaluateRegionsConfig)
    from rsc_seg.pipelines.evaluate_regions import RESULT, default_folder, resolved, run_regions
    from rsc_seg.pipelines.regions_text import result_lines

    if args.print_config:
        print_config(resolved(config))
        return
    folder = args.output_dir or default_folder(config)
    result = run_regions(config, folder, checkpoints=checkpoints)
    for line in (*result_lines(result), f"written: {folder / RESULT}, {folder / 'classes.csv'}"):
        say(line)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)  # key=value behind a flag is left over: argparse takes one group only
    has_options = args.kind in ("probe", "regions")
    unknown = [text for text in rest if not has_options or "=" not in text or text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if has_options:
        args.overrides = [*args.overrides, *rest]
    command = {"probe": _probe, "report": _report, "table": _table, "regions": _regions}[args.kind]
    return run_command(lambda: command(args), parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
