"""Measures encoders: `probe` is the quick measure with its controls, `report` a run's page from the last measure,
`table` the mean and spread over several runs, `regions` a CLIP's zero-shot classification of boxes and masks,
`maskclip` its zero-shot segmentation, `coupling` the coupling ratio of pairs, `aggregate` averages over contexts."""

import argparse
import dataclasses
import importlib
import re
from pathlib import Path
from typing import Any, NamedTuple

from rsc_seg.cli.common import OneLineParser, add_config_flags, config_from, print_config, run_command, say
from rsc_seg.config import EvaluateConfig
from rsc_seg.config_zeroshot import (
    EvaluateAggregateConfig,
    EvaluateCouplingConfig,
    EvaluateMaskclipConfig,
    EvaluateRegionsConfig,
)
from rsc_seg.errors import UserError

_EPILOG = """examples:
  evaluate.py probe --run runs/mine                                    # on the run's own data
  evaluate.py probe --run runs/mine data.kind=cityscapes data.root=/data/cityscapes
  evaluate.py probe --backbone dinov2_vits14 --weights demo --checkpoint runs/mine/student.safetensors data.kind=scenes
  evaluate.py report runs/mine                                         # report.html again, nothing measured
  evaluate.py table runs/seed0 runs/seed1 runs/seed2
  evaluate.py regions --backbone clip_vitb16 --checkpoint A.safetensors B.safetensors data.root=/data/coco
  evaluate.py maskclip --backbone clip_vitb16 --checkpoint A.safetensors maskclip.set=pascal_context_59_val \\
      data.root=/data
  evaluate.py coupling --backbone dinov2_vits14 --weights demo --refiner runs/mine/refiner.safetensors data.kind=scenes
  evaluate.py aggregate --backbone dinov2_vits14 --weights demo data.kind=scenes aggregate.numbers=[0,1,4,16]
"""
_KEY_VALUE = re.compile(r"[a-z_]+(\.[a-z_]+)+=")


class Measure(NamedTuple):
    """A subcommand that compares checkpoints: its options, where it lives, its function, its CSV file, its help."""

    config: type
    module: str
    run: str
    table: str
    help: str
    refiners: bool = False


MEASURES = {
    "regions": Measure(
        EvaluateRegionsConfig,
        "evaluate_regions",
        "run_regions",
        "classes.csv",
        "zero-shot classification of boxes and masks (docs/regions_eval.md)",
    ),
    "maskclip": Measure(
        EvaluateMaskclipConfig,
        "evaluate_maskclip",
        "run_maskclip",
        "classes.csv",
        "zero-shot segmentation: each token takes the nearest class name (docs/maskclip.md)",
    ),
    "coupling": Measure(
        EvaluateCouplingConfig,
        "evaluate_coupling",
        "run_coupling",
        "pairs.csv",
        "coupling ratio over pairs of images side by side (docs/context.md)",
        refiners=True,
    ),
    "aggregate": Measure(
        EvaluateAggregateConfig,
        "evaluate_aggregate",
        "run_aggregate",
        "aggregate.csv",
        "features averaged over random contexts, and the gain over their number (docs/context.md)",
    ),
}


def _add_files(parser: argparse.ArgumentParser, flag: str, about: str) -> None:
    parser.add_argument(flag, nargs="+", action="extend", default=[], metavar="FILE", help=about)


def _parser() -> OneLineParser:
    parser = OneLineParser(
        prog="evaluate.py", description=__doc__, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("probe", "report", "table", *MEASURES)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="|".join(names), parser_class=OneLineParser)
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
    for name, measure in MEASURES.items():
        sub = kinds.add_parser(name, help=measure.help)
        add_config_flags(sub)
        _add_files(sub, "--checkpoint", "tuned encoders, one or more")
        if measure.refiners:
            _add_files(sub, "--refiner", "Refiners of the untuned encoder, one or more")
        sub.add_argument("--output-dir", type=Path, help=f"default: runs/{name}_<backbone>; goes on with what is there")
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
    """key=value behind a flag that takes all words that follow it; a file of that name is a file."""
    return _KEY_VALUE.match(text) is not None and not Path(text).exists()


def _paths(args: argparse.Namespace, flag: str) -> list[Path]:
    """The files of a flag; options among them go to the other options."""
    words = getattr(args, flag)
    args.overrides = [*args.overrides, *filter(_is_option, words)]
    return [Path(text) for text in words if not _is_option(text)]


def _compare(args: argparse.Namespace) -> None:
    """Any of `MEASURES`."""
    measure = MEASURES[args.kind]
    flags = ["checkpoint", *(["refiner"] if measure.refiners else [])]
    files = {f"{flag}s": _paths(args, flag) for flag in flags}
    config: Any = config_from(args, measure.config)
    module = importlib.import_module(f"rsc_seg.pipelines.{measure.module}")  # takes seconds: not for --help
    if args.print_config:
        print_config(module.resolved(config))
        return
    folder = args.output_dir or module.default_folder(config)
    result = getattr(module, measure.run)(config, folder, **files)
    for line in (*module.result_lines(result), f"written: {folder / module.RESULT}, {folder / measure.table}"):
        say(line)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)  # key=value behind a flag is left over: argparse takes one group only
    has_options = args.kind == "probe" or args.kind in MEASURES
    unknown = [text for text in rest if not has_options or "=" not in text or text.startswith("-")]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    if has_options:
        args.overrides = [*args.overrides, *rest]
    command = {"probe": _probe, "report": _report, "table": _table}.get(args.kind, _compare)
    return run_command(lambda: command(args), parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
