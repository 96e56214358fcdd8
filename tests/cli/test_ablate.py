"""The command that compares runs: what it lists, and what it refuses before any run."""

from pathlib import Path

import pytest

from rsc_seg.cli.ablate import main
from tests.pipelines.objective_runs import ablate, comparison_files, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in COCO's layout."""
    return scenes(tmp_path_factory.mktemp("data") / "scenes")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Presets and comparisons."""
    return comparison_files(tmp_path_factory.mktemp("files"))


def test_help_says_how_to_compare_and_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0 and "configs/ablation/threeway.yaml" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


def test_the_list_trains_nothing(tmp_path: Path, root: Path, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate(root, tmp_path / "run", files / "threeway.yaml", "--list") == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "sc-clipself: objective=sc-clipself",
        "r-sc-clipself: objective=r-sc-clipself",
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["absent.yaml"], "absent.yaml: no such config file"),
        (["threeway.yaml", "--seeds", "0"], "--seeds 0"),
        (["threeway.yaml", "--regions", "maybe"], "--regions=maybe"),
        (["threeway.yaml", "--classes", "txt"], "Did you mean 'text'?"),
        (["threeway.yaml", "--measure", "probe.pairs=3"], "probe.pairs"),
        (["threeway.yaml", "--measure", "data.kind=camvid", "--measure", "data.root=."], "--measure data.kind"),
        (["threeway.yaml", "distill.alhpa=1"], "Did you mean 'distill.alpha'?"),
        (["distill.alpha=1"], "no CONFIG is given"),
    ],
)
def test_bad_options_leave_nothing(
    tmp_path: Path, root: Path, files: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    named = [str(files / item) if item.endswith(".yaml") else item for item in given]
    assert ablate(root, tmp_path / "run", *named) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ablate.py: error: ")]
    assert len(errors) == 1 and said in errors[0], errors
    assert not (tmp_path / "run").exists()
