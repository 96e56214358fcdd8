"""Named flags are taken as typed; key=value is YAML."""

from pathlib import Path
from typing import Any

import pytest

from rsc_seg.cli import eval_cause
from rsc_seg.cli.common import config_from, make_parser
from rsc_seg.config import EvalCauseConfig, RscvConfig, load_config
from rsc_seg.errors import UserError

NAMES = ["2024_11_22", "off", "on", "no", "null", "~", "1e3", "0x10", "${run.seed}", "\\${run.seed}", "a: b", "[x]", ""]


def cause_config(*argv: str) -> EvalCauseConfig:
    return eval_cause._config(eval_cause._parser().parse_intermixed_args([*argv]))


@pytest.mark.parametrize("name", NAMES)
def test_flags_are_plain_text(name: str) -> None:
    found = cause_config("--cache", name, "--data-root", name, "--weights", name)
    assert (found.cache.dir, found.data.root, found.backbone.weights) == (name, name, name)
    common = config_from(make_parser("x", "").parse_args(["--weights", name, "--seed", "3"]), RscvConfig)
    assert (common.backbone.weights, common.run.seed) == (name, 3)


def test_key_value_is_yaml_and_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {root: file, limit: 5}\ncache: {dir: file}\n")
    found = cause_config(
        "--config", str(tmp_path / "c.yaml"), "--data-root", "flag", "data.root=null", "--cache", "flag", "--flip"
    )
    assert (found.data.root, found.data.limit, found.cache.dir, found.score.flip) == (None, 5, "flag", True)
    assert load_config(EvalCauseConfig, None, ["cache.dir=${data.dataset}"]).cache.dir == "cityscapes"


@pytest.mark.parametrize("mode", ["auto", "on", "off"])
def test_a_mode_that_yaml_reads_as_a_truth_value(mode: str) -> None:
    assert cause_config("--crf", mode).score.crf == mode
    assert cause_config(f"score.crf={mode}").score.crf == mode


@pytest.mark.parametrize(
    ("overrides", "named", "said"),
    [
        (["data.root=${nowhere}"], {}, "nowhere"),
        ([], {"run.sed": 1}, "run.seed"),
        ([], {"run.seed": "x"}, "run.seed"),
    ],
)
def test_what_cannot_be_set_is_one_line(overrides: list[str], named: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_config(EvalCauseConfig, None, overrides, named=named)
    assert "\n" not in str(error.value)
