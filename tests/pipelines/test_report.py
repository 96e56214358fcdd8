"""What the report says: its summary, curves, rows with maps, and where its pictures come from."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rsc_seg.errors import UserError
from rsc_seg.pipelines.report import curves, shown_candidates, summary_lines
from rsc_seg.pipelines.report_pictures import ReportPictures, _credits, _relation
from rsc_seg.pipelines.results import read_metrics
from rsc_seg.probe.suite import ProbeRow

NUMBERS = {"linear_miou": 40.0, "affinity_ap": 50.0, "affinity_ap_beyond_6": 45.0, "coupling_median": 1.1}


NAME = "student, alpha 1"


def result(**student: float | None) -> dict[str, Any]:
    rows = [
        ("untuned, last layer", NUMBERS),
        ("SCD control, alpha 1", NUMBERS),
        (NAME, NUMBERS | student),
    ]
    return {"rows": [{"name": name, "headline": headline} for name, headline in rows]}


def test_summary_is_made_of_the_tables_numbers() -> None:
    first, second, third = summary_lines(result(linear_miou=42.0, affinity_ap_beyond_6=43.0, coupling_median=1.05))
    assert "42.0 mIoU, +2.0 against “untuned, last layer”, +2.0 against “SCD control, alpha 1”" in first
    assert "+0.0 against" in second and "−2.0 beyond" in second and "less than before" in second
    assert "1.100 before, 1.050 after" in third


@pytest.mark.parametrize("key", list(NUMBERS))
def test_summary_leaves_out_what_is_null(key: str) -> None:
    lines = summary_lines(result(**{key: None}))
    assert len(lines) == (3 if key.startswith("affinity") else 2)
    assert all("None" not in line and "nan" not in line for line in lines)
    assert summary_lines(result(**dict.fromkeys(NUMBERS))) == []


def names(*given: str) -> list[str]:
    return [c.name for c in shown_candidates([ProbeRow(name, torch.Tensor.float) for name in given])]


def test_unblended_student_has_maps_only_where_it_is_the_student() -> None:
    assert names("SCD control, alpha 1", "student, alpha 1") == ["SCD control, alpha 1", "student, alpha 1"]
    assert names("Refiner", "student, alpha 1", "student, alpha 0.5") == ["Refiner", "student, alpha 0.5"]


def test_curves_of_both_losses_of_an_end_to_end_run() -> None:
    log = [
        {"stage": "end_to_end", "step": i, "loss": 5.0, "refine_loss": 3.0 - i, "refine_token_norm": 7.0}
        | {"distill_loss": 2.0, "distill_excess": 0.5, "distill_token_norm": 9.0}
        for i in range(3)
    ]
    charts = curves(log)
    assert [c.title for c in charts] == ["End to end: Refiner", "End to end: student", "Mean token norm"]
    assert "loss: 3 to 1" in charts[0].svg and "entropy: 0.5 to 0.5" in charts[1].svg
    assert "End to end: Refiner: 7 to 7" in charts[2].svg and "End to end: student: 9 to 9" in charts[2].svg


def test_curves_of_stages_and_of_no_log() -> None:
    log = [{"stage": "refine", "step": 0, "loss": 3.0}, {"stage": "distill", "step": 0, "loss": 2.0, "excess": 0.1}]
    assert [c.title for c in curves(log)] == ["Stage 1: Refiner", "Stage 2: student"]
    aligned = [{"stage": "distill", "step": 0, "loss": 1.1, "rla": 1.0, "scd": 0.5, "excess": 0.1}]
    assert [c.title for c in curves(aligned)] == ["Stage 2: student", "Stage 2: student: alignment"]
    assert curves([]) == [] and curves([{"stage": "refine", "step": 0, "loss": None}]) == []


def test_damaged_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"stage": "refine", "step": 0}\n{"stage": "ref')
    assert len(read_metrics(tmp_path)) == 1
    (tmp_path / "metrics.jsonl").write_text('{"stage": "refine", "step": 0}\n{"stage": "ref\n')
    with pytest.raises(UserError, match=r"metrics.jsonl, line 2"):
        read_metrics(tmp_path)


def test_pictures_that_the_run_was_trained_on_are_named() -> None:
    shown = {"photographs/china": "china", "val/1.png": "val/1.png"}
    assert "china: training images of the run" in _relation(shown, {"photographs/china"}, "val")
    assert _relation(shown, set(shown), "val").startswith("All of these")
    assert _relation(shown, {"train/1.png"}, "val").startswith("None of these")


def test_credits_stand_below_the_last_maps() -> None:
    text = _credits(("china", "chelsea"))
    assert "china by danielbuechele on Flickr (CC BY 2.0, from scikit-learn)" in text
    assert "flower by vultilion on Flickr (CC BY 2.0" in text
    outros = ReportPictures([], "None.", text).outros(["Affinity maps", "Coupling"])
    assert outros == {"Affinity maps": "None.", "Coupling": f"None. {text}"}
