"""The benchmark: rows beside the paper's numbers, when a setting is the same, what is kept, what fails."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from rsc_seg.cli.benchmark_all import main
from rsc_seg.data.scenes import SceneSet, write_scenes
from rsc_seg.errors import UserError
from rsc_seg.pipelines import benchmark_all
from rsc_seg.pipelines.benchmark_all import LAYOUTS, run_benchmark
from rsc_seg.pipelines.benchmark_plan import Job, Setup, make_plan
from rsc_seg.pipelines.benchmark_rows import FAILED, NOTHING, OTHER, SAME, method_of, rows_of_result
from rsc_seg.pipelines.compare_read import READERS
from rsc_seg.pipelines.evaluate_regions import resolved
from rsc_seg.pipelines.paper_numbers import NOT_MEASURED, nearest_rows, paper_tables

TINY = ["--backbone", "clip_tiny16", "--weights", "none", "--device", "cpu"]
QUICK = ["regions.prompts=single", "maskclip.prompts=single", "data.workers=0"]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of each split in the layouts of COCO, COCO-Stuff, ADE20K and Cityscapes."""
    wanted = SceneSet(train=2, val=2, size=(160, 120), layouts=LAYOUTS)
    return write_scenes(tmp_path_factory.mktemp("scenes") / "data", wanted)


@pytest.fixture(scope="module")
def whole(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every measure once, on the embedded scenes."""
    out = tmp_path_factory.mktemp("benchmark") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_all, "scenes_root", lambda: scenes)
        assert main([*TINY, "--scenes", *QUICK, "--output-dir", str(out)]) == 0
    return out


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_every_table_of_the_paper_has_a_row(whole: Path) -> None:
    rows = read(whole / "benchmark.json")["rows"]
    assert {row["table"] for row in rows} == {table.name for table in paper_tables()} | {"–"}
    by_table = {row["table"]: row for row in rows}
    assert by_table["Table 3a"]["status"] == "not run" and "this project has none" in by_table["Table 3a"]["reasons"][0]
    assert "train_catseg.py --eval-only" in by_table["Table 4"]["reasons"][0]
    assert "no encoder of CLIPSelf" in by_table["Table 2"]["reasons"][0]
    assert by_table["Figure 6 (a)"]["reasons"] == [
        "the embedded scenes have no layout of this set; prepare the set itself and give --data-root"
    ]
    assert {row["title"] for row in rows if row["table"] == "–"} == {
        "MaskCLIP, ADE20K (150 classes)",
        "MaskCLIP, Cityscapes (19 classes)",
    }


def test_ours_come_from_the_results_and_the_papers_from_the_paper(whole: Path) -> None:
    rows = {row["table"]: row for row in read(whole / "benchmark.json")["rows"]}
    scores = read(whole / "regions" / "regions.json")["rows"][0]["scores"]
    first = rows["Table 1"]
    assert first["ours"]["boxes_top1"] == scores["boxes"]["top1"]
    assert first["ours"]["stuff_masks_top5"] == scores["stuff_masks"]["top5"]
    assert list(first["paper"].values()) == [18.2, 33.2, 20.6, 36.5, 18.4, 43.5]
    assert first["same"] == OTHER
    for reason in ("clip_tiny16, the paper's is evaclip_vitb16", "weights: none", "embedded scenes", "prompts=single"):
        assert reason in "; ".join(first["reasons"])
    coupling = read(whole / "coupling" / "coupling.json")["rows"][0]["scores"]
    assert rows["Table 9"]["ours"] == {"mean_of_ratios": coupling["mean_of_ratios"]}
    cause = read(whole / "cause_cityscapes" / "untuned" / "cause.json")
    assert cause["config"]["cause"]["probe_grad"] == "released" and cause["config"]["score"]["flip"]
    assert rows["Table 5a"]["ours"]["pacc"] == cause["rows"][0]["scores"]["cluster flip"]["pacc"]["mean"]
    assert rows["Table 5a"]["same"] == NOTHING  # the paper's rows are DINOv2's


def test_files_say_whose_numbers_they_hold(whole: Path) -> None:
    text = (whole / "benchmark.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| Table 1 "))
    assert "18.2 / 33.2" in line and "| no |" in line
    assert "that the paper prints" in text and "RANDOM WEIGHTS" in text and "What the paper does not say" in text
    page = (whole / "report.html").read_text()
    assert "paper 18.2" in page and "none of them was measured here" in page and "RANDOM WEIGHTS" in page


def test_what_is_finished_is_kept(whole: Path, scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    before = read(out / "benchmark.json")

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(benchmark_all, "_run_job", refuse)
    monkeypatch.setattr(benchmark_all, "scenes_root", lambda: scenes)
    assert main([*TINY, "--scenes", *QUICK, "--output-dir", str(out)]) == 0
    after = read(out / "benchmark.json")
    assert after["rows"] == before["rows"]
    assert {job["state"] for job in after["jobs"]} == {"kept from an earlier call"}


def test_a_failing_measure_is_named_and_the_others_go_on(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(scenes, data)
    document = data / "coco" / "annotations" / "panoptic_val2017.json"
    whole = document.read_text()
    document.write_text("{")
    argv = [*TINY, "--data-root", str(data), "--only", "regions", "coupling", "--output-dir", str(out)]
    argv += ["regions.prompts=single", "data.workers=0", "data.image_size=[64,64]"]
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert "1 of the measures failed" in shown.err and "panoptic_val2017.json" in shown.err.rstrip().splitlines()[-1]
    rows = {row["table"]: row for row in read(out / "benchmark.json")["rows"]}
    assert rows["Table 1"]["status"] == rows["Table 2"]["status"] == FAILED and rows["Table 9"]["status"] == "done"
    document.write_text(whole)
    assert main(argv) == 0
    state = {job["key"]: job["state"] for job in read(out / "benchmark.json")["jobs"]}
    assert state == {"regions": "measured", "coupling": "kept from an earlier call"}


def regions_job(tmp_path: Path) -> Job:
    (tmp_path / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
    (tmp_path / "coco" / "annotations" / "panoptic_val2017.json").write_text("{}")
    jobs, missing = make_plan(Setup("evaclip_vitb16", root=tmp_path))
    assert [job.key for job in jobs] == ["regions"] and "cause_cityscapes" in [item.key for item in missing]
    return jobs[0]


def official_result(job: Job, **training: Any) -> dict[str, Any]:
    """What a run on COCO with official weights would write."""
    scores = {kind: {"top1": 50.0, "top5": 60.0} for kind in ("boxes", "thing_masks", "stuff_masks")}
    source = "x.safetensors sha256 0" if training else "official"
    weights = {"backbone": "evaclip_vitb16", "source": source, "note": "", "training": training}
    row = {"name": "tuned" if training else "untuned", "note": "", "weights": weights, "scores": scores}
    return {"pictures": 5000, "rows": [row], "config": asdict(resolved(job.config))}


CLIPSELF = {"objective": "clipself", "start": "official", "images": 118287, "data": "/d/coco", "rla": {"boxes": "grid"}}


def test_the_setting_is_the_same_only_when_nothing_differs(tmp_path: Path) -> None:
    job = regions_job(tmp_path)
    (row,) = rows_of_result(job, official_result(job))
    assert (row.table, row.same, row.reasons) == ("Table 1", SAME, []) and row.unstated
    for change, reason in (
        ({"pictures": 100}, "data: 100 pictures, not 5000"),
        ({"config": {"regions": {"mask_resize": "antialias"}}}, "regions.mask_resize=antialias in place of plain"),
        ({"config": {"regions": {"embeddings": "x.npy"}}}, "regions.embeddings=x.npy in place of None"),
        ({"config": {"backbone": {"depth": 10}}}, "backbone.depth=10 in place of None"),
        ({"weights": {"source": "none"}}, "weights: none"),
        ({"weights": {"backbone": "clip_vitb16"}}, "encoder: clip_vitb16, the paper's is evaclip_vitb16"),
    ):
        result = official_result(job)
        result["pictures"] = change.get("pictures", 5000)
        for section, values in change.get("config", {}).items():  # type: ignore[attr-defined]
            result["config"][section] |= values
        result["rows"][0]["weights"] |= change.get("weights", {})
        (row,) = rows_of_result(job, result)
        assert row.same == OTHER and reason in "; ".join(row.reasons), reason


def test_tuned_weights_stand_beside_the_row_of_their_method_and_boxes(tmp_path: Path) -> None:
    job = regions_job(tmp_path)
    first, second = rows_of_result(job, official_result(job, **CLIPSELF))
    assert (first.table, first.same, first.paper["boxes_top1"]) == ("Table 1", SAME, 72.1)
    assert (second.table, second.same, second.paper["boxes_top1"]) == ("Table 2", OTHER, 74.0)
    assert second.reasons == ["boxes: grid, the paper's row has proposals"]
    first, _ = rows_of_result(job, official_result(job, **{**CLIPSELF, "images": 106}))
    assert "tuned on 106 pictures" in "; ".join(first.reasons)
    (row,) = rows_of_result(job, official_result(job, objective="rscv", target="refiner"))
    assert row.method == "R-SC-V" and row.same == NOTHING and row.paper == {}
    for training, why in (({}, "no a.json beside it"), ({"objective": "mine"}, "a.json names no known objective")):
        result = official_result(job, **training)
        result["rows"][0]["name"] = "runs/a, alpha 0.5"
        (row,) = rows_of_result(job, result)
        assert row.same == "method unknown" and row.reasons == [f"method unknown: {why}"] and row.paper == {}


def test_methods_are_read_from_what_weights_record() -> None:
    assert method_of("untuned", {}) == "untuned" and method_of("Refiner a", {}) == "Refiner"
    for training, method in (
        ({"objective": "r-sc-regiontext", "target": "refiner"}, "R-SC-RegionText"),
        ({"objective": "sc-clipself", "target": "teacher"}, "SC-CLIPSelf"),
        ({"objective": "rscv", "target": "teacher"}, "SCD"),
        ({"target": "refiner"}, "R-SC-V"),
        ({}, "unknown method"),
        ({"objective": "mine"}, "unknown method"),
    ):
        assert method_of("x", {"training": training}) == method


def test_the_papers_numbers() -> None:
    tables = {table.name: table for table in paper_tables()}
    assert len(tables) == len(paper_tables()) == 21
    assert {table.measure for table in tables.values()} == {"regions", "maskclip", "coupling", "cause", *NOT_MEASURED}
    assert {f"{m}.json" for m in ("regions", "maskclip", "coupling", "cause")} <= set(READERS)
    assert all(0 < value < 100 for t in tables.values() for row in t.rows for value in row.numbers.values())
    assert tables["Table 5a"].rows[1].numbers == {"miou": 31.8, "pacc": 90.5}
    assert [row.numbers["mean_of_ratios"] for row in tables["Table 9"].rows] == [2.32, 1.86, 0.95, 0.97]
    best = next(r for r in tables["Figure 6 (b)"].rows if (r.method, r.backbone) == ("R-SC-CLIPSelf", "evaclip_vitb16"))
    assert best.numbers == {"miou": 23.8}
    assert nearest_rows(tables["Table 9"], "untuned", "dinov2_vitb14") == []
    assert [r.backbone for r in nearest_rows(tables["Table 1"], "untuned", "clip_vitl14")] == ["evaclip_vitl14_336"]


def test_bad_input(scenes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for setup, said in (
        (Setup("clip_tiny16", root=tmp_path / "gone"), "gone: no such folder"),
        (Setup("clip_tiny16", root=tmp_path / "empty"), "nothing can be measured there"),
        (Setup("dinov2_tiny14", root=scenes, only=["regions"]), "has no text beside it"),
        (Setup("clip_tiny16", root=scenes, only=["region"]), "--only region: must be one of"),
        (Setup("clip_tiny16", root=scenes, overrides=["maskclip.windo=3"]), "Did you mean 'maskclip.window'"),
        (Setup("clip_tiny16", root=scenes, limit=0), "--limit 0"),
        (Setup("clip_tiny17", root=scenes), "clip_tiny17"),
        (Setup("clip_tiny16", root=scenes, checkpoints=[tmp_path / "no.pt"]), "no.pt: no such checkpoint"),
    ):
        with pytest.raises(UserError, match=said.replace("(", r"\(")):
            run_benchmark(setup, out)
    assert not out.exists()
    context = Setup("clip_tiny16", root=scenes, only=["maskclip_pascal_context_59"])
    with pytest.raises(UserError, match="have no layout of this set; prepare the set itself and give --data-root.$"):
        make_plan(replace(context, scenes=True))
    with pytest.raises(UserError, match=r"prepare_data.py pascal_context_59 --root [^ ]*\.$"):
        make_plan(context)
    with pytest.raises(UserError, match="holds other files"):
        run_benchmark(Setup("clip_tiny16", root=scenes), tmp_path)
    with pytest.raises(UserError, match="is a file"):
        run_benchmark(Setup("clip_tiny16", root=scenes), tmp_path / "file")
