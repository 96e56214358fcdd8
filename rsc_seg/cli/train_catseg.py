"""Trains Cat-Seg on detectron2, or evaluates it (--eval-only), and reports; resumes exactly (--resume)."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from rsc_seg.cli.common import OneLineParser, make_parser, plain_config, print_config, run_command, say, setup_logging
from rsc_seg.config_catseg import TrainCatSegConfig

if TYPE_CHECKING:  # imported where it runs: --help and --print-config need no torch
    from rsc_seg.pipelines.catseg import CatSegJob

PROG = "train_catseg.py"
_EPILOG = """examples:
  train_catseg.py --config configs/catseg/demo.yaml
  train_catseg.py --config configs/catseg/vitb.yaml data.root=/data --num-gpus 4 clip.checkpoint=student.safetensors
  train_catseg.py --config configs/catseg/vitb.yaml data.root=/data --eval-only --weights model_base.pth \\
      'data.test=[ade20k_150_val,pascal_context_59_val]'
  train_catseg.py --config ... --output-dir runs/mine --resume
"""


def _parser() -> OneLineParser:
    parser = make_parser(PROG, __doc__ or "", _EPILOG, encoder=False)
    add = parser.add_argument
    add("--eval-only", action="store_true", help="evaluate on data.test; finished sets of the same call are kept")
    add("--weights", type=Path, metavar="FILE", help="a whole Cat-Seg: released (model_base.pth) or catseg.safetensors")
    add("--num-gpus", type=int, metavar="N", help="processes, on the CPU too (= run.devices=N)")
    add("--resume", action="store_true", help="go on with the run in --output-dir, exactly")
    add("--output-dir", type=Path, metavar="D", help="run folder (default: runs/catseg_<tower>_<training set>)")
    return parser


def _work(job: "CatSegJob") -> None:
    """What each process does; all but the first say nothing but warnings."""
    from rsc_seg.d2.launch import is_main
    from rsc_seg.pipelines.catseg import run_catseg

    setup_logging()
    if not is_main():
        logging.getLogger("rsc_seg").setLevel(logging.ERROR)
    run_catseg(job)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)

    def command() -> None:
        config = plain_config(args, TrainCatSegConfig, more={"run.devices": args.num_gpus})
        if args.print_config:
            print_config(config)
            return
        from rsc_seg.pipelines.catseg import CatSegJob, check_job
        from rsc_seg.pipelines.catseg_folder import RESULT, default_folder, result_lines

        folder = args.output_dir or default_folder(config, weights=args.weights, eval_only=args.eval_only)
        job = CatSegJob(config, folder.expanduser(), args.weights, args.eval_only, args.resume)
        job, device = check_job(job)
        from rsc_seg.d2.launch import run_processes

        run_processes(_work, config.run.devices, device=device, args=(job,))
        for line in result_lines(json.loads((job.folder / RESULT).read_text(encoding="utf-8"))):
            say(line)
        say(f"report: {(job.folder / 'report.html').resolve()}")

    return run_command(command, PROG)


if __name__ == "__main__":
    raise SystemExit(main())
