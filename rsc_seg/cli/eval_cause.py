"""Unsupervised segmentation by CAUSE on frozen encoders: trains codebook, head and probes, scores, and reports.

The untuned encoder comes first, each --checkpoint beside it. What a stage made is kept and found again.
"""

import argparse
from pathlib import Path

from rsc_seg.cli.common import OneLineParser, config_from, make_parser, print_config, run_command, say
from rsc_seg.config import EvalCauseConfig
from rsc_seg.errors import UserError

_EPILOG = """examples:
  eval_cause.py --config configs/cause/demo.yaml --checkpoint runs/demo/student.safetensors
  eval_cause.py --backbone dinov2_vitb14 --checkpoint runs/mine/student.safetensors \\
      --dataset cityscapes --data-root /data --flip --seeds 3 --cache /data/cache
  eval_cause.py --backbone dinov2_vits14 --dataset cocostuff27 --data-root /data --head mlp --limit 300 --crf off
  eval_cause.py --backbone dinov2_vitb14 --dataset cityscapes --data-root /data --flip --crf on \\
      --cause-weights segment_tr.pth cluster_tr.pth modular.npy
  eval_cause.py ... cause.lr=1e-3 score.pictures=8            # any option by its name
"""


def _parser() -> OneLineParser:
    parser = make_parser("eval_cause.py", __doc__ or "", _EPILOG)
    add = parser.add_argument
    add("--checkpoint", type=Path, action="append", default=[], help="a tuned encoder (may be given several times)")
    add(
        "--dataset", metavar="SET", help="cityscapes, cocostuff27, cocostuff171, pascalvoc, scenes, ... (docs/cause.md)"
    )
    add("--data-root", metavar="DIR", help="the set's folder, or the one above it (= data.root=DIR)")
    add("--limit", type=int, metavar="N", help="first N images of each split (= data.limit=N)")
    add("--head", metavar="H", help="tr or mlp (= cause.head=H)")
    add("--preset", metavar="P", help="released-4gpu or full-epoch (= cause.preset=P)")
    add("--probe-grad", metavar="G", help="detached or released (= cause.probe_grad=G)")
    add("--seeds", type=int, metavar="K", help="runs of CAUSE for every encoder (= cause.seeds=K)")
    add("--flip", action="store_true", default=None, help="also average over the mirrored image (= score.flip=true)")
    add(
        "--full-image",
        action="store_true",
        default=None,
        help="whole images, our own protocol (= score.full_image=true)",
    )
    add("--crf", metavar="C", help="auto, on or off (= score.crf=C)")
    add(
        "--cache",
        metavar="DIR",
        help="where tokens and stages are kept (= cache.dir=DIR; default: in the output folder)",
    )
    add(
        "--cause-weights",
        type=Path,
        nargs=3,
        metavar=("SEGMENT", "CLUSTER", "MODULAR"),
        help="official files segment_*.pth, cluster_*.pth, modular.npy: only scored, nothing is trained",
    )
    add("--output-dir", type=Path, help="default: runs/cause_<backbone>_<dataset>_<head>_<preset>_<probe gradient>")
    return parser


def _config(args: argparse.Namespace) -> EvalCauseConfig:
    named = {
        "data.dataset": args.dataset,
        "data.root": args.data_root,
        "data.limit": args.limit,
        "cause.head": args.head,
        "cause.preset": args.preset,
        "cause.probe_grad": args.probe_grad,
        "cause.seeds": args.seeds,
        "score.flip": args.flip,
        "score.full_image": args.full_image,
        "score.crf": args.crf,
        "cache.dir": args.cache,
    }
    return config_from(args, EvalCauseConfig, more=named)


def _named_head(args: argparse.Namespace) -> str | None:
    """The head that the command line asks for by itself, whatever a config file or the default says."""
    named = [args.head, *(item.partition("=")[2] for item in args.overrides if item.startswith("cause.head="))]
    return next((head for head in reversed(named) if head is not None), None)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = _parser()
    args = parser.parse_intermixed_args(argv)

    def command() -> None:
        config = _config(args)
        if args.cause_weights is not None and args.checkpoint:
            raise UserError("--cause-weights belong to one encoder: name it by --weights, without --checkpoint.")
        from rsc_seg.cause.official import CauseFiles
        from rsc_seg.pipelines.cause import default_folder, run_cause
        from rsc_seg.pipelines.cause_plan import resolved
        from rsc_seg.pipelines.cause_text import result_lines

        if args.print_config:
            print_config(resolved(config))
            return
        given = args.cause_weights
        folder = args.output_dir or default_folder(config, given=given is not None)
        files = None if given is None else CauseFiles(given[0], given[1], given[2], _named_head(args))
        result, page = run_cause(config, folder, checkpoints=args.checkpoint, cause_weights=files)
        for line in (*result_lines(result), f"written: {folder / 'cause.json'}, {folder / 'classes.csv'}"):
            say(line)
        say(f"report: {page.resolve()}")

    return run_command(command, parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
