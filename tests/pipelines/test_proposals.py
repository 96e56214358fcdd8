"""Files of boxes from images alone, checked and drawn."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.config import DataConfig, EvaluateConfig, load_config
from rsc_seg.data.proposals import Proposals
from rsc_seg.errors import UserError
from rsc_seg.pipelines import proposals as module
from rsc_seg.pipelines.proposals import ProposalOptions, make_proposals
from rsc_seg.pipelines.proposals_check import check_proposals, draw_proposals, recall
from tests.training.helpers import write_pictures

DETECTOR = {"detector": "fasterrcnn_mobilenet_v3_large_320_fpn", "detector_weights": "none"}


def config(root: Path, *more: str, backbone: str = "dinov2_tiny14", side: str = "[56,84]") -> EvaluateConfig:
    given = [f"data.root={root}", "data.kind=folder", f"data.image_size={side}", "run.device=cpu"]
    return load_config(EvaluateConfig, None, [*given, f"backbone.name={backbone}", "backbone.weights=none", *more])


def options(**more: object) -> ProposalOptions:
    return ProposalOptions(**{"per_image": 8, **more})  # type: ignore[arg-type]


def test_boxes_of_features_lie_in_their_images(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p", 3, size=(40, 120))  # wide: the frame is padded below
    made = make_proposals(config(root), tmp_path / "b.json", options())
    document = json.loads((tmp_path / "b.json").read_text())
    assert (made.images, made.boxes, made.left_out) == (3, len(document["annotations"]), 0)
    assert document["info"]["method"] == "features" and document["info"]["backbone"] == "dinov2_tiny14"
    assert document["categories"] == [{"id": 0, "name": "object"}]
    file = Proposals(tmp_path / "b.json")  # checks them against the images' sizes
    for name in ("00.png", "01.png", "02.png"):
        boxes = file.boxes(name)
        assert 1 <= len(boxes) <= 8 and (boxes >= 0).all()
        assert boxes[:, 2].max() == 120 and boxes[:, 3].max() == 40  # the padding is cut off, the picture is not
    scores = [a["score"] for a in document["annotations"] if a["image_id"] == 1]
    assert scores == sorted(scores, reverse=True)
    again = make_proposals(config(root), tmp_path / "c.json", options())
    assert json.loads(again.path.read_text())["annotations"] == document["annotations"]


def test_regions_of_a_picture_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With colours for tokens, a red square on green is the best box."""
    root = tmp_path / "p"
    root.mkdir()
    pixels = np.zeros((56, 84, 3), np.uint8)
    pixels[:, :, 1] = 200
    pixels[14:42, 28:70] = (200, 0, 0)
    Image.fromarray(pixels).resize((168, 112), Image.Resampling.NEAREST).save(root / "a.png")

    def colours(self: object, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(x, 14)

    monkeypatch.setattr(module.DenseEncoder, "dense", colours)
    make_proposals(config(root), tmp_path / "b.json", options())
    boxes = Proposals(tmp_path / "b.json").boxes("a.png")
    assert [56, 28, 140, 84] in boxes[:2].tolist()


def test_boxes_of_a_detector(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p", 2)
    made = make_proposals(config(root), tmp_path / "b.json", options(method="rpn", **DETECTOR))
    document = json.loads(made.path.read_text())
    assert made.images == 2 and document["info"]["detector"] == DETECTOR["detector"]
    assert "backbone" not in document["info"]


def test_boxes_with_nouns(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p", 2)
    (tmp_path / "nouns.json").write_text('["cat", "dog"]')
    tiny = {"backbone": "clip_tiny16", "side": "[48,64]"}
    labelled = options(nouns=str(tmp_path / "nouns.json"))
    document = json.loads(make_proposals(config(root, **tiny), tmp_path / "b.json", labelled).path.read_text())
    assert [c["name"] for c in document["categories"]] == ["cat", "dog"]
    assert {a["category_id"] for a in document["annotations"]} <= {0, 1}
    given = config(root, f"data.proposals={tmp_path / 'b.json'}", **tiny)
    relabel = options(method="proposals", nouns="coco", per_image=3)
    again = json.loads(make_proposals(given, tmp_path / "c.json", relabel).path.read_text())
    assert len(again["categories"]) == 80
    first = [sorted(a["bbox"] for a in d["annotations"] if a["image_id"] == 1) for d in (again, document)]
    assert len(first[0]) == 3 and all(box in first[1] for box in first[0])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"method": "yolo"}, r"--method=yolo: must be one of features, rpn, proposals"),
        ({"per_image": 0}, r"--per-image 0"),
        ({"overlap": 0.0}, r"--overlap 0\.0"),
        ({"method": "proposals"}, r"--method proposals: data\.proposals is not set"),
        ({"nouns": "gone.txt"}, r"gone\.txt: no such file \(rla\.nouns\)"),
        ({"method": "rpn", "detector": "x"}, r"--detector=x"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, more: dict[str, object], message: str) -> None:
    root = write_pictures(tmp_path / "p", 1)
    with pytest.raises(UserError, match=message):
        make_proposals(config(root), tmp_path / "b.json", options(**more))
    assert not (tmp_path / "b.json").exists()


def test_nouns_need_a_clip_and_boxes_need_nouns(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "p", 1)
    with pytest.raises(UserError, match="dinov2_tiny14"):
        make_proposals(config(root), tmp_path / "b.json", options(nouns="coco"))
    (tmp_path / "q.json").write_text('[{"image_id": 0, "bbox": [1, 1, 20, 20]}]')
    given = config(root, f"data.proposals={tmp_path / 'q.json'}")
    with pytest.raises(UserError, match="give --nouns FILE to label them"):
        make_proposals(given, tmp_path / "b.json", options(method="proposals"))


def test_recall_by_hand() -> None:
    truth = [np.array([[0.0, 0, 10, 10], [50, 50, 10, 10]]), np.array([[0.0, 0, 20, 20]]), np.zeros((0, 4))]
    found = [
        np.array([[0.0, 0, 10, 5], [50, 50, 10, 4.9], [50, 50, 10, 10]]),
        np.zeros((0, 4)),
        np.array([[0.0, 0, 5, 5]]),
    ]
    assert recall(found, truth, 2) == pytest.approx(1 / 3)  # IoU 0.5 counts, 0.49 does not
    assert recall(found, truth, 3) == pytest.approx(2 / 3)
    assert np.isnan(recall(found[2:], truth[2:], 3))


def coco_set(root: Path) -> DataConfig:
    """Two images with a ground-truth box each, and the proposals p.json: the second image's meets it."""
    (root / "val2017").mkdir()
    (root / "annotations").mkdir()
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "width": 90, "height": 60} for i in (1, 2)]
    for i in (1, 2):
        Image.new("RGB", (90, 60), (9, 9, 99)).save(root / "val2017" / f"{i:012d}.jpg")
    truth = [{"image_id": i, "bbox": [10, 10, 40, 30], "category_id": 1, "iscrowd": 0} for i in (1, 2)]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "categories": names}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document | {"annotations": truth}))
    boxes = [{"image_id": 1, "bbox": [60, 30, 10, 10], "category_id": 2}, {**truth[1], "category_id": 1}]
    boxes += [{"image_id": 2, "bbox": [0, 0, 5, 5], "category_id": 1}]
    (root / "p.json").write_text(json.dumps(document | {"annotations": boxes}))
    return DataConfig(kind="coco", root=str(root), split="val")


def test_a_check_counts_and_measures(tmp_path: Path) -> None:
    lines = check_proposals(coco_set(tmp_path), tmp_path / "p.json")
    assert "3 boxes for 2 of 2 images, 1 to 2 an image, 1.5 in the middle" in lines[0]
    assert "10 pixels; 1 boxes below 8 x 8" in lines[1]
    assert lines[2] == "unreadable images: 0; other images in the file: 0"
    assert "50.0 % by the first 20, 50.0 % by the first 50" in lines[3] and "(2 boxes)" in lines[3]
    plain = DataConfig(kind="folder", root=str(tmp_path / "val2017"))
    assert len(check_proposals(plain, tmp_path / "p.json")) == 3  # no ground truth, no recall


def test_a_check_refuses_boxes_outside_and_other_images(tmp_path: Path) -> None:
    data = coco_set(tmp_path)
    (tmp_path / "q.json").write_text('[{"image_id": 2, "bbox": [80, 10, 40, 10]}]')
    with pytest.raises(
        UserError, match=r"q\.json, image .*000002\.jpg' \(--check\): box .* outside the image of 90 x 60"
    ):
        check_proposals(data, tmp_path / "q.json")
    (tmp_path / "q.json").write_text('[{"image_id": 7, "bbox": [1, 1, 9, 9]}]')
    with pytest.raises(UserError, match=r"no box for any of the 2 images"):
        check_proposals(data, tmp_path / "q.json")


def test_drawn_pictures_show_the_boxes(tmp_path: Path) -> None:
    data = coco_set(tmp_path)
    written = draw_proposals(data, tmp_path / "p.json", tmp_path / "look", pictures=5, boxes=1)
    assert [p.name for p in written] == ["000000_000000000001.png", "000001_000000000002.png"]
    first = np.asarray(Image.open(written[0])).astype(int)
    assert first.shape == (427, 640, 3) and abs(first[250, 427] - (9, 9, 99)).max() > 50  # its left edge is at 60 of 90
    assert abs(first[100, 100] - (9, 9, 99)).max() < 5
    with pytest.raises(UserError, match="--pictures 0"):
        draw_proposals(data, tmp_path / "p.json", tmp_path / "look", pictures=0, boxes=1)
