"""Runs side by side: which share a table, the differences, classes, options, pictures, and folders that are no runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from rsc_seg.cli.evaluate import main as evaluate
from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.weights import save_encoder
from rsc_seg.pipelines.compare_configs import differing_options
from rsc_seg.pipelines.compare_groups import class_table, group_table, protocol_differences, reference_line
from rsc_seg.pipelines.compare_parts import run_names
from rsc_seg.pipelines.compare_runs import CompareOptions, compare, result_lines, run_comparison, summary_lines
from tests.pipelines.tiny import labelled_set, train
from tests.zeroshot.sample import drawn_segments, write_set

CLIP = ["--backbone", "clip_tiny16", "--weights", "none", "--device", "cpu", "data.workers=0"]
PROBE = ["probe.linear_seeds=2", "probe.linear_epochs=1", "probe.kmeans_seeds=1", "probe.coupling_pairs=1"]
REGIONS = ["regions", *CLIP, "regions.prompts=single", "data.image_size=[64,64]"]
MASKCLIP = ["maskclip", *CLIP, "maskclip.prompts=single", "maskclip.short_side=64", "data.kind=plain"]


def checkpoint(path: Path, seed: int) -> Path:
    """An encoder that differs from the untuned one."""
    encoder, info = build_backbone(BackboneConfig(name="clip_tiny16", weights="none"))
    torch.manual_seed(seed)
    state = {key: value + 0.02 * torch.randn_like(value) for key, value in encoder.trunk.state_dict().items()}
    save_encoder(path, state, info)
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two training runs with their measure, regions of two checkpoints and of fewer pictures, MaskCLIP, coupling."""
    root = tmp_path_factory.mktemp("compare")
    data, panoptic = labelled_set(root / "data"), root / "panoptic"
    write_set(panoptic, {0: drawn_segments(0), 1: drawn_segments(1)})
    for seed in (0, 1):
        run = train(root / f"seed{seed}", data, "--seed", str(seed))
        probe = ["probe", "--run", str(run), f"data.root={data}", "data.kind=plain", *PROBE]
        assert evaluate([*probe, "probe.best_layer=false"]) == 0
    for name, seed, more in (("one", 1, []), ("two", 2, []), ("few", 2, ["data.limit=1"])):
        file = checkpoint(root / "weights" / f"{name}.safetensors", seed)
        argv = [*REGIONS, "--checkpoint", str(file), f"data.root={panoptic}", *more]
        assert evaluate([*argv, "--output-dir", str(root / f"regions_{name}")]) == 0
    assert evaluate([*MASKCLIP, f"data.root={data}", "--output-dir", str(root / "maskclip")]) == 0
    coupling = ["coupling", *CLIP, f"data.root={data / 'val' / 'images'}", "data.image_size=[64,64]"]
    assert evaluate([*coupling, "--output-dir", str(root / "coupling")]) == 0
    return root


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_training_runs_share_a_table_with_differences_to_the_first_student(runs: Path) -> None:
    found = compare([runs / "seed0", runs / "seed1"])
    (group,), (lines,) = found.groups, found.lines
    names = [row["name"] for row in read(runs / "seed0" / "probe.json")["rows"]]
    assert group.family == "probe" and group.apart == ""
    start = lines[reference_line(lines)]
    assert start.name == f"seed0: {names[-1]}"
    table = group_table(group, lines, "Quick measure")
    own = read(runs / "seed1" / "probe.json")["rows"][-1]
    row = next(row for row in table.rows if row.name == f"seed1: {own['name']}")
    assert row.cells["affinity_ap"].value == own["headline"]["affinity_ap"]  # type: ignore[union-attr]
    assert row.cells["linear_miou"].spread == own["linear"]["miou"]["std"]  # type: ignore[union-attr]
    assert [row.name for row in table.rows if row.reference] == [start.name]
    text = "\n".join(result_lines(found))
    first = read(runs / "seed0" / "probe.json")["rows"][-1]
    change = own["headline"]["affinity_ap"] - first["headline"]["affinity_ap"]
    assert f"{own['headline']['affinity_ap']:.1f} ({round(change, 1) + 0.0:+.1f})" in text


def test_an_equal_start_is_one_row(runs: Path) -> None:
    (lines,) = compare([runs / "regions_one", runs / "regions_two"]).lines
    assert [line.name for line in lines] == ["untuned", "regions_one: one", "regions_two: two"]
    assert "the same numbers in regions_two" in lines[0].note
    assert [line.name for line in lines if line.result] == ["regions_one: one", "regions_two: two"]


def test_other_pictures_stand_in_a_table_of_their_own_and_the_page_says_why(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    found = run_comparison([runs / "regions_two", runs / "regions_few"], page)
    assert [len(group.members) for group in found.groups] == [1, 1]
    assert "pictures: 1 here, 2 there" in found.groups[1].apart and "data.limit: 1 here" in found.groups[1].apart
    assert found.headings[0].endswith("(1 of 2)")
    assert found.groups[1].apart in page.read_text().replace("&amp;", "&")
    assert any("not comparable" in line for line in summary_lines(found))


def test_the_summary_holds_boxes_things_and_stuff(runs: Path) -> None:
    found = compare([runs / "regions_one", runs / "regions_two"])
    sentence = next(line for line in summary_lines(found) if "regions_two" in line and " against " in line)
    for title in ("Boxes", "Thing Masks", "Stuff Masks"):
        assert f"{title} (top-1) " in sentence and f"{title} (top-5) " in sentence


def test_reference_by_name_or_folder(runs: Path) -> None:
    folders = [runs / "regions_one", runs / "regions_two"]
    for wanted in ("regions_two", str(runs / "regions_two")):
        found = compare(folders, wanted)
        assert found.lines[0][reference_line(found.lines[0])].name == "regions_two: two"
        assert [run.name for run in found.runs] == ["regions_one", "regions_two"]
    with pytest.raises(UserError, match=r"--reference regions_tow.*Did you mean 'regions_two'"):
        compare(folders, "regions_tow")


def test_classes_are_counted_from_the_results(runs: Path) -> None:
    found = compare([runs / "regions_one", runs / "regions_two"])
    (table,) = class_table(found.groups[0], found.lines[0], "Classes")
    assert table.folded and len(table.rows) == 133
    counts = [read(runs / f"regions_{n}" / "regions.json")["rows"][1]["counts"]["by_class"] for n in ("one", "two")]
    for t, row in enumerate(table.rows):
        total = counts[0]["regions"][t]
        values = [100 * c["masks_top1"][t] / total if total else None for c in counts]
        assert [row.cells["value0"], row.cells["value1"]] == values
        assert row.cells["change1"] == (None if total == 0 else values[1] - values[0])  # type: ignore[operator]


def test_the_page_holds_everything(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "compare.html"
    names = ["seed0", "seed1", "regions_one", "regions_two", "maskclip", "coupling"]
    run_comparison([runs / name for name in names], page, CompareOptions(maps=1, device="cpu"))
    text = page.read_text()
    for part in (
        "RANDOM WEIGHTS",
        "classes that gained most",
        "<details><summary",
        "Stage distill",
        "Affinity map of seed1",
        "Options that differ",
        "regions_two: regions",
        "Coupling ratio: images",
        "IoU of the linear probe",
        "What this does not show",
    ):
        assert part in text, part
    assert "No maps of regions_one, regions_two, maskclip, coupling: maps are of runs that keep their student" in text
    command = read(runs / "regions_two" / "regions.json")["command"]
    assert command.split()[0] in text and "(commit " in text


def test_maps_that_cannot_be_made_leave_the_numbers(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "seed0"
    shutil.copytree(runs / "seed0", moved)
    result = read(moved / "probe.json")
    result["config"]["data"]["root"] = str(tmp_path / "gone")
    (moved / "probe.json").write_text(json.dumps(result))
    page = tmp_path / "compare.html"
    run_comparison([moved], page, CompareOptions(device="cpu"))
    assert "No maps of the students" in page.read_text() and "Quick measure" in page.read_text()


def test_only_options_that_differ_are_listed(runs: Path) -> None:
    differing = dict(differing_options(compare([runs / "seed0", runs / "seed1"]).runs))
    assert differing == {"run.seed": ["0", "1"]}
    mixed = dict(differing_options(compare([runs / "seed0", runs / "coupling"]).runs))
    assert mixed["backbone.name"] == ["dinov2_tiny14", "clip_tiny16"] and "coupling.floor" not in mixed


def test_names_take_as_many_folders_as_they_need() -> None:
    given = [Path("/a/x/run"), Path("/b/x/run"), Path("/c/other")]
    assert run_names(given) == ["a/x/run", "b/x/run", "other"]
    with pytest.raises(UserError, match="named twice"):
        run_names([Path("/a/x"), Path("/a/x")])


def test_differences_of_protocols_are_short() -> None:
    one, other = {"a": 1, "names": list("abcdef"), "same": 0}, {"a": 2, "names": list("abcdeg"), "same": 0, "b": None}
    assert protocol_differences(one, other) == ["a: 1 here, 2 there", "names: others"]


def test_folders_that_are_no_runs_and_damaged_results(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such run folder"):
        compare([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no result \(looked for probe.json"):
        compare([tmp_path / "empty"])
    broken = tmp_path / "broken"
    shutil.copytree(runs / "regions_one", broken)
    (broken / "regions.json").write_text('{"rows": [')
    with pytest.raises(UserError, match=r"broken/regions.json: not readable as JSON"):
        compare([broken])
    (broken / "regions.json").write_text('{"rows": [{"name": "untuned"}]}')
    with pytest.raises(UserError, match=r"broken/regions.json: not a whole result"):
        compare([broken])
    (broken / "regions.json").write_text("[]")
    with pytest.raises(UserError, match=r"broken/regions.json: holds no object"):
        compare([broken])
    maskclip = tmp_path / "maskclip"
    shutil.copytree(runs / "maskclip", maskclip)
    lines = (maskclip / "classes.csv").read_text().splitlines()
    (maskclip / "classes.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match=r"classes.csv: 2 classes, the result beside it has 3"):
        compare([maskclip])
    with pytest.raises(UserError, match="--output is a folder"):
        run_comparison([runs / "coupling"], tmp_path)
