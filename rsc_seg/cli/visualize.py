"""Draws affinity, PCA, token-norm and coupling maps of one's own pictures, for one or several encoders side by side."""

from pathlib import Path

from rsc_seg.cli.common import config_from, make_parser, print_config, run_command, say
from rsc_seg.config import EvaluateConfig, require_choice
from rsc_seg.errors import UserError

MAPS = ("affinity", "pca", "norms", "coupling")
_EPILOG = """examples:
  visualize.py cat.jpg --backbone dinov2_vits14 --weights demo
  visualize.py photos/*.jpg --backbone dinov2_vits14 --weights demo --size 518x518 \\
      --checkpoint runs/mine/student.safetensors
"""


def _size(text: str) -> list[int]:
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise UserError(f"--size {text}: expected HEIGHTxWIDTH in pixels, for example 518x518.")
    return [int(p) for p in parts]


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = make_parser("visualize.py", __doc__, _EPILOG)
    parser.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        help="a tuned encoder, shown beside the untuned one (repeatable)",
    )
    parser.add_argument(
        "--size", default="", metavar="HxW", help="pixels that pictures are squashed to (default: data.image_size)"
    )
    parser.add_argument(
        "--maps", help="affinity, pca, norms, coupling, separated by commas (default: all; coupling needs two pictures)"
    )
    parser.add_argument("--queries", type=int, default=3, help="query points of the affinity maps (default: 3)")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/pictures"), help="default: runs/pictures")
    args = parser.parse_intermixed_args(argv)
    images = [Path(text) for text in args.overrides if "=" not in text]
    args.overrides = [text for text in args.overrides if "=" in text]

    def command() -> None:
        config = config_from(args, EvaluateConfig)
        if args.print_config:
            print_config(config)
            return
        kinds = args.maps.split(",") if args.maps is not None else [k for k in MAPS if k != "coupling" or images[1:]]
        for kind in kinds:
            require_choice("--maps", kind, MAPS)
        if not images:
            raise UserError("no picture given: visualize.py IMAGE... --backbone NAME.")
        size = _size(args.size) if args.size else config.data.image_size
        from rsc_seg.pipelines.visualize import visualize

        paths = visualize(
            config, images, args.checkpoint, kinds=kinds, size=size, queries=args.queries, folder=args.output_dir
        )
        for path in paths:
            say(str(path))

    return run_command(command, parser.prog)


if __name__ == "__main__":
    raise SystemExit(main())
