"""All of R-SC-V on this machine: demo weights, embedded pictures, both stages, control, measure, report."""

from pathlib import Path

from rsc_seg.cli.common import config_from, make_parser, print_config, run_command, say
from rsc_seg.config import EvaluateConfig, RscvConfig

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "rscv" / "demo.yaml"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = make_parser("demo.py", __doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/demo"), help="default: runs/demo")
    args = parser.parse_intermixed_args(argv)
    args.config = args.config or CONFIG

    def command() -> None:
        config = config_from(args, RscvConfig)
        if args.print_config:
            print_config(config)
            return
        import dataclasses

        from rsc_seg.pipelines.probe import result_lines
        from rsc_seg.pipelines.report import measure_run
        from rsc_seg.pipelines.rscv import run_rscv

        folder = args.output_dir
        run_rscv(config, folder, resume=(folder / "config.yaml").is_file())
        evaluation = EvaluateConfig(
            config.backbone, dataclasses.replace(config.data, every=1, limit=None), config.probe, config.run
        )
        result, page = measure_run(evaluation, folder)
        for line in (*result_lines(result), f"report: {page.resolve()}"):
            say(line)

    return run_command(command, parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
