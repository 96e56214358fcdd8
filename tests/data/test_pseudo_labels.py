"""Boxes labelled by a CLIP, and the writing of such files."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.config import CropConfig, DataConfig, RlaConfig
from rsc_seg.data.box_writer import write_boxes
from rsc_seg.data.images import open_images
from rsc_seg.data.nouns import Nouns, PseudoLabels
from rsc_seg.data.pseudo_labels import LabelOptions, label_crops, write_pseudo_labels
from rsc_seg.data.rla import label_boxes
from rsc_seg.errors import UserError

NOUNS = Nouns(("red", "green", "blue"), "colours")
SHOW = LabelOptions((16, 16), enlarge=1.0)


class Colours:
    """An encoder whose embedding of a picture is its mean colour."""

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def __init__(self) -> None:
        self.seen = 0

    def cls(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += len(x)
        return x.mean(dim=(2, 3))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures whose left third is red, the middle green, the right blue."""
    place = tmp_path / "pictures"
    place.mkdir()
    pixels = np.zeros((40, 90, 3), np.uint8)
    for k in range(3):
        pixels[:, 30 * k : 30 * k + 30, k] = 200
    for i in range(3):
        Image.fromarray(pixels).save(place / f"{i}.png")
    return place


def boxes(i: int) -> torch.Tensor:
    return torch.tensor([[60.0, 0, 30, 40], [0, 0, 25, 40], [20, 5, 40, 20]][: i + 1], dtype=torch.float64)


def write(folder: Path, path: Path, encoder: Colours | None = None, **options: float) -> dict:
    source = open_images("folder", str(folder), "train")
    show = LabelOptions((16, 16), **({"enlarge": 1.0} | options))  # type: ignore[arg-type]
    embeddings, encoder = torch.eye(3), encoder or Colours()
    write_pseudo_labels(path, source, boxes, encoder=encoder, embeddings=embeddings, nouns=NOUNS, options=show, key="k")
    return json.loads(path.read_text())


def test_boxes_have_the_noun_of_what_they_show(folder, tmp_path):
    document = write(folder, tmp_path / "l.json")
    rows = [(a["image_id"], a["category_id"]) for a in document["annotations"]]
    assert rows == [(1, 2), (2, 2), (2, 0), (3, 2), (3, 0), (3, 1)]  # best first: the last box is half green
    assert document["categories"] == [{"id": k, "name": n} for k, n in enumerate(NOUNS.names)]
    scores = [a["score"] for a in document["annotations"]]
    assert scores[:5] == [1.0] * 5 and 0.7 < scores[5] < 1
    found = PseudoLabels(tmp_path / "l.json", NOUNS).labelled("1.png")
    assert found.categories.tolist() == [2, 0] and found.boxes.tolist() == boxes(1).tolist()


def test_thresholds_and_counts_leave_out_the_worst(folder, tmp_path):
    assert len(write(folder, tmp_path / "a.json", threshold=0.99)["annotations"]) == 5
    assert len(write(folder, tmp_path / "b.json", per_image=1)["annotations"]) == 3
    with pytest.raises(UserError, match=r"c\.json: not written: no box was found in 3 images \(0 unreadable\)"):
        write(folder, tmp_path / "c.json", threshold=1.1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json", "pictures"]


def test_enlarging_shows_more(folder, tmp_path):
    plain, wide = (write(folder, tmp_path / f"{e}.json", enlarge=e)["annotations"][0] for e in (1.0, 2.0))
    assert plain["category_id"] == wide["category_id"] == 2 and wide["score"] < plain["score"] == 1


def test_crops_go_through_in_parts():
    crops = torch.zeros(150, 3, 4, 4)
    crops[:, 1] = 1
    numbers, scores = label_crops(Colours(), crops, torch.eye(3))
    assert numbers.tolist() == [1] * 150 and scores.tolist() == [1.0] * 150
    assert [len(t) for t in label_crops(Colours(), crops[:0], torch.eye(3))] == [0, 0]


def test_nouns_and_embeddings_are_as_many(folder, tmp_path):
    source = open_images("folder", str(folder), "train")
    given = {"encoder": Colours(), "embeddings": torch.eye(4), "nouns": NOUNS, "options": SHOW}
    with pytest.raises(UserError, match="colours: 3 nouns for 4 embeddings"):
        write_pseudo_labels(tmp_path / "l.json", source, boxes, **given)


def test_a_broken_off_run_goes_on_and_writes_the_same(folder, tmp_path):
    straight = write(folder, tmp_path / "a.json")

    class Stops(Colours):
        def cls(self, x: torch.Tensor) -> torch.Tensor:
            if self.seen >= 3:
                raise KeyboardInterrupt
            return super().cls(x)

    path = tmp_path / "b.json"
    with pytest.raises(KeyboardInterrupt):
        write(folder, path, Stops())
    partial = tmp_path / ".b.json.partial"
    assert partial.is_file() and not path.exists()
    with partial.open("a") as file:
        file.write('{"i": 2, "si')  # what a killed process leaves
    encoder = Colours()
    assert write(folder, path, encoder) == straight and encoder.seen == 3 and not partial.exists()


def test_another_key_or_a_damaged_line_begins_anew(folder, tmp_path):
    for text in ("another\n{}\n", "k\nnot json\n", 'k\n{"no": 1}\n'):
        (tmp_path / ".l.json.partial").write_text(text)
        encoder = Colours()
        write(folder, tmp_path / "l.json", encoder)
        assert encoder.seen == 6


def test_unreadable_images_are_named_and_left_out(folder, tmp_path, caplog):
    (folder / "1.png").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        document = write(folder, tmp_path / "l.json")
    assert [i["file_name"] for i in document["images"]] == ["0.png", "2.png"]
    assert "left out: " in caplog.text and "1.png: not readable as an image" in caplog.text
    source = open_images("folder", str(folder), "train")
    made = write_boxes(tmp_path / "m.json", source, lambda i, n: [{"bbox": [0, 0, 9, 9]}], key="", names=[], info={})
    assert (made.images, made.boxes, made.left_out) == (2, 2, 1)


def test_a_place_that_cannot_be_written(folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not written"):
        write(folder, tmp_path / "file" / "l.json")


def test_boxes_to_label_follow_rla_boxes(folder, tmp_path):
    source = open_images("folder", str(folder), "train")
    rows = [{"image_id": i, "bbox": b} for i in range(3) for b in ([0, 0, 5, 5], [0, 0, 30, 40], [9, 9, 40, 30])]
    (tmp_path / "p.json").write_text(json.dumps(rows))
    data = DataConfig(kind="folder", root=str(folder), proposals=str(tmp_path / "p.json"))
    given = label_boxes(RlaConfig(per_image=1), data, CropConfig(), source, 0)
    assert given(1).tolist() == [[0, 0, 30, 40], [9, 9, 40, 30]]  # all that are large enough
    cells = label_boxes(RlaConfig(boxes="grid", per_image=4), data, CropConfig(), source, 0)
    assert 1 <= len(cells(0)) <= 4 and torch.equal(cells(0), cells(0))
    drawn = label_boxes(RlaConfig(boxes="random", per_image=4), data, CropConfig(), source, 0)
    assert drawn(2).shape == (4, 4) and (drawn(2)[:, :2] + drawn(2)[:, 2:] <= torch.tensor([90.01, 40.01])).all()
