"""benchmark_all.py as a user types it."""

from pathlib import Path

import pytest

from rsc_seg.cli.benchmark_all import main
from tests.zeroshot.sample import drawn_segments, write_set

TINY = ["--backbone", "clip_tiny16", "--weights", "none", "--device", "cpu", "--only", "regions", "coupling"]
QUICK = ["regions.prompts=single", "data.workers=0", "data.image_size=[64,64]"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark") / "data"
    write_set(folder / "coco", {0: drawn_segments(0), 1: drawn_segments(1)})
    return folder


def test_a_row_for_each_table_with_the_reasons_below(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*TINY, *QUICK, "--limit", "2", "--data-root", str(root), "--output-dir", str(out)]) == 0
    shown = capsys.readouterr()
    line = next(line for line in shown.out.splitlines() if line.startswith("Table 1 "))
    assert "18.2 / 33.2 / 20.6 / 36.5 / 18.4 / 43.5" in line and "no [" in line
    assert "data: 2 pictures, not 5000" in shown.out and "not asked for (cause)" in shown.out
    assert f"report: {out / 'report.html'}" in shown.out and "1 of 2" in shown.err
    assert (out / "benchmark.md").is_file()


def test_bad_input_is_one_line(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for argv, said in (
        ([*TINY, "--data-root", str(empty)], "nothing can be measured there"),
        ([*TINY, "--data-root", str(root), "cause.lr=1"], "no measure that is to run has the option 'cause.lr'"),
        ([*TINY, "--data-root", str(root), "--checkpoint", "gone.pt"], "gone.pt: no such checkpoint"),
    ):
        assert main([*argv, "--output-dir", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        line = err.rstrip().splitlines()[-1]
        assert line.startswith("benchmark_all.py: error: ") and said in line and "Traceback" not in err
    with pytest.raises(SystemExit) as stop:
        main([*TINY, "--data-root", str(root), "--nonsense"])
    assert stop.value.code == 2 and "unrecognized arguments: --nonsense" in capsys.readouterr().err
