"""What all commands share: flags, logging, one-line errors with exit code 2."""

import argparse
import logging
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from rsc_seg.config import EvaluateConfig, RscvConfig, load_config, to_yaml
from rsc_seg.errors import UserError
from rsc_seg.models.sizes import fill_sizes

C = TypeVar("C")
BAD_INPUT = 2
INTERRUPTED = 130


def setup_logging() -> None:
    """Messages of this package to stderr, with the time."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("rsc_seg")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def run_command(command: Callable[[], None], prog: str) -> int:
    """Runs a command; a UserError becomes one line on stderr and exit code 2, an interrupt exit code 130."""
    setup_logging()
    try:
        command()
    except UserError as e:
        sys.stderr.write(f"{prog}: error: {' '.join(str(e).split())}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write(f"{prog}: interrupted\n")
        return INTERRUPTED
    return 0


def say(text: str) -> None:
    """A command's result, on stdout."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line that points to --help."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(BAD_INPUT, f"{self.prog}: error: {message}; see {self.prog} --help.\n")


def make_parser(prog: str, description: str, epilog: str = "", *, encoder: bool = True) -> OneLineParser:
    """A parser with the flags that every training and measuring command has; `encoder`: those that name one, too."""
    parser = OneLineParser(
        prog=prog, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    if encoder:
        add_config_flags(parser)
    else:
        add_run_flags(parser)
    return parser


def add_config_flags(parser: argparse.ArgumentParser) -> None:
    """--backbone, --weights, and those of `add_run_flags`."""
    parser.add_argument(
        "--backbone", metavar="NAME", help="encoder, for example dinov2_vitb14 or clip_vitb16 (= backbone.name=NAME)"
    )
    parser.add_argument(
        "--weights", metavar="W", help="official, demo, none, a file or a hub folder (= backbone.weights=W)"
    )
    add_run_flags(parser)


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """--config, --seed, --device, --print-config and key=value."""
    parser.add_argument("--config", metavar="FILE", help="YAML with differences from the defaults")
    parser.add_argument("--seed", type=int, help="= run.seed=N")
    parser.add_argument("--device", metavar="D", help="auto, cpu, cuda or mps (= run.device=D)")
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any option by its name; the last word")


def config_from(
    args: argparse.Namespace,
    schema: type[C],
    base: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> C:
    """Defaults of `schema`, then `base`, then --config, then the named flags, then key=value; sizes left open are the
    backbone's.

    `more` are a command's own flags as values by key, None where one was not given. Flags are taken as typed, while the
    right side of key=value is YAML.
    """
    named = {"backbone.name": args.backbone, "backbone.weights": args.weights, **(more or {})}
    config = plain_config(args, schema, base, named)
    if isinstance(config, RscvConfig):
        fill_sizes(config.backbone.name, config.data, config.crops)
    elif isinstance(config, EvaluateConfig):
        fill_sizes(config.backbone.name, config.data)
    return config


def plain_config(
    args: argparse.Namespace,
    schema: type[C],
    base: dict[str, Any] | None = None,
    more: dict[str, Any] | None = None,
) -> C:
    """`config_from` for a parser with `add_run_flags` alone; no size is filled in."""
    named = {"run.seed": args.seed, "run.device": args.device, **(more or {})}
    given = {key: value for key, value in named.items() if value is not None}
    return load_config(schema, args.config, args.overrides, base=base, named=given)


def print_config(config: Any) -> None:
    """The resolved configuration on stdout."""
    say(to_yaml(config))
