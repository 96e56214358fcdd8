"""Tunes an encoder. --objective rscv (the default): stage 1 trains the Refiner, stage 2 distils its correlations into
the encoder. Objectives with clipself or regiontext align a CLIP's regions with language; sc- adds the distillation of
the frozen encoder's correlations, r-sc- of the Refiner's; scd is the former alone."""

from pathlib import Path

from rsc_seg.cli.common import config_from, make_parser, print_config, run_command, say
from rsc_seg.config import RscvConfig

_EPILOG = """examples:
  rscv_finetune.py --backbone dinov2_vitb14 data.root=/data/coco
  rscv_finetune.py --config configs/rla/r_sc_clipself_evaclip_vitb16.yaml data.root=/data/coco
  rscv_finetune.py --config configs/rla/r_sc_clipself_evaclip_vitb16.yaml --objective clipself data.root=/data/coco
  rscv_finetune.py --config configs/rscv/demo.yaml data.root=photos/ --output-dir runs/mine
  rscv_finetune.py --output-dir runs/mine --config ... --resume
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = make_parser("rscv_finetune.py", __doc__, _EPILOG)
    parser.add_argument(
        "--objective",
        metavar="NAME",
        help="rscv, scd, clipself, sc-clipself, r-sc-clipself, regiontext, sc-regiontext or r-sc-regiontext "
        "(= objective=NAME)",
    )
    parser.add_argument("--stage", choices=("refiner", "distill", "all"), default="all", help="default: all")
    parser.add_argument("--output-dir", type=Path, help="run folder (default: runs/<objective>_<backbone>)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --output-dir, exactly")
    args = parser.parse_intermixed_args(argv)

    def command() -> None:
        config = config_from(args, RscvConfig, more={"objective": args.objective})
        if args.print_config:
            from rsc_seg.pipelines.objectives import resolve_objective

            resolve_objective(config)
            print_config(config)
            return
        from rsc_seg.pipelines.folder import default_folder
        from rsc_seg.pipelines.rscv import run_rscv

        folder = args.output_dir or default_folder(config)
        run_rscv(config, folder, stage=args.stage, resume=args.resume)
        say(f"done: {folder}")

    return run_command(command, parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
