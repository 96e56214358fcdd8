"""Class names, pictures and file names of tools/segment.py, and what it says about a picture."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.config import load_config
from rsc_seg.config_catseg import SegmentConfig
from rsc_seg.errors import UserError
from rsc_seg.pipelines import segment
from rsc_seg.pipelines.segment import Request, fit_short_side, segment_pictures
from rsc_seg.pipelines.segment_inputs import KIND, find_pictures, output_names, parse_classes, result_image
from tests.seg.tiny import tiny_model

TINY = ["clip.name=clip_tiny16", "clip.weights=none", "run.device=cpu", "model.grid=[6,6]", "model.hidden=16"]
TINY += ["model.heads=2", "model.window=3", "model.class_length=8", "model.decoder=[32,16]", "model.taps=[12,8]"]
TINY += ["model.decoder_guidance=[6,4]", "test.size=[64,64]", "test.window=48"]


def config(*more: str) -> SegmentConfig:
    return load_config(SegmentConfig, None, [*TINY, *more])


def put(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_names_between_commas_lose_their_blanks() -> None:
    assert parse_classes(" cat,  green  grass ,sky") == ["cat", "green grass", "sky"]
    assert parse_classes("cat") == ["cat"]
    assert parse_classes("cat, sky", "all  else") == ["cat", "sky", "all else"]
    assert parse_classes("cat, sky", "sky") == ["cat", "sky"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "--classes: no class name"),
        ("cat,,sky", "class 2 has an empty name"),
        ("cat, sky,", "class 3 has an empty name"),
        ("cat, sky, Cat", "classes 1 and 3 are both 'Cat'"),
        ("@nowhere.txt", r"nowhere\.txt: class names cannot be read"),
        ("nowhere.json", r"nowhere\.json: class names cannot be read"),
        ("ade20k_15", r"no set is called so.* Did you mean 'ade20k_150'\?"),
    ],
)
def test_names_that_do_not_serve(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        parse_classes(text)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--background"):
        parse_classes("cat, sky", " ")
    with pytest.raises(UserError, match="--background: classes 1 and 3 are both"):
        parse_classes("cat, sky", "CAT")


def test_names_from_files_and_from_sets(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\nsky, heaven\n")
    (tmp_path / "names.json").write_text('["cat", "sky"]')
    (tmp_path / "plain").write_text("cat\ndog\n")
    assert parse_classes(f"@{tmp_path / 'names.txt'}") == parse_classes(str(tmp_path / "names.txt"))
    assert parse_classes(str(tmp_path / "names.txt")) == ["cat", "sky, heaven"]
    assert parse_classes(str(tmp_path / "names.json")) == ["cat", "sky"]
    assert parse_classes(f"@{tmp_path / 'plain'}") == ["cat", "dog"]
    assert len(parse_classes("ade20k_150")) == 150 and parse_classes("ade20k_150")[89] == "television receiver"
    assert len(parse_classes("ade20k_847")) == 847 and len(parse_classes("pascal_voc_21")) == 21


def test_pictures_come_from_files_and_folders_once(tmp_path: Path) -> None:
    a, b = put(tmp_path / "in" / "a.png"), put(tmp_path / "in" / "deep" / "b.jpg")
    put(tmp_path / "in" / "out" / "c.png")
    (tmp_path / "in" / "notes.txt").write_text("x")
    assert find_pictures([b, tmp_path / "in"], tmp_path / "in" / "out") == [b, a]
    (tmp_path / "in" / "a.json").write_text(json.dumps({"kind": KIND, "image": str(a)}))
    put(tmp_path / "in" / "a_overlay.png")
    put(tmp_path / "in" / "b_overlay.png")  # of no result: a picture like any other
    found = find_pictures([tmp_path / "in"], tmp_path / "in" / "out")
    assert [p.name for p in found] == ["a.png", "b_overlay.png", "b.jpg"]
    (tmp_path / "empty").mkdir()
    for given, said in (([], "no picture"), ([tmp_path / "no.png"], "no such file"), ([tmp_path / "empty"], "no pic")):
        with pytest.raises(UserError, match=said):
            find_pictures(given, tmp_path / "out")


def test_equal_names_of_different_pictures_are_numbered_for_good(tmp_path: Path) -> None:
    a, b, c = (put(tmp_path / place) for place in ("a/cat.png", "b/cat.png", "b/CAT.jpg"))
    out = tmp_path / "out"
    assert output_names([a, b, c], out) == ["cat", "cat-2", "CAT-3"]
    out.mkdir()
    (out / "cat.json").write_text(json.dumps({"kind": KIND, "image": str(b.resolve())}))
    assert result_image(out / "cat.json") == str(b.resolve())
    assert output_names([a, b], out) == ["cat-2", "cat"]
    (out / "cat.json").write_text("{}")  # somebody else's file
    assert result_image(out / "cat.json") is None
    assert output_names([b], out) == ["cat-2"]
    put(out / "cat-2_labels.png")
    assert output_names([b], out) == ["cat-3"]


@pytest.mark.parametrize("protocol", ["sliding", "whole"])
def test_files_say_the_same_as_the_model(tmp_path: Path, protocol: str) -> None:
    image = put(tmp_path / "a.png", (50, 30))
    names = ["cat", "green grass", "sky"]
    request = Request([image], names, tmp_path / "out", background="sky")
    (result,) = segment_pictures(config(f"test.protocol={protocol}", "run.seed=3"), request)
    facts = json.loads(result.files["facts"].read_text())
    with Image.open(result.files["labels"]) as file:
        labels = np.asarray(file)
        assert file.mode == "P" and file.size == (50, 30)
        assert json.loads(file.text["Classes"]) == names == facts["names"]  # type: ignore[attr-defined]
    shares = np.bincount(labels.ravel(), minlength=3) / labels.size
    assert [row["share"] for row in facts["classes"]] == pytest.approx(shares.tolist(), abs=1e-6)
    assert sum(row["pixels"] for row in facts["classes"]) == labels.size
    assert 0 < facts["mean_score"] < 1 and facts["background"] == "sky"
    assert facts["image"] == str(image.resolve()) and facts["size"] == {"height": 30, "width": 50}
    assert facts["weights"]["note"].startswith("RANDOM WEIGHTS")
    assert ("4 tiles of 48" in facts["protocol"][0]) is (protocol == "sliding")
    with Image.open(result.files["overlay"]) as file:
        assert file.width >= 384 and json.loads(file.text["Classes"]) == names  # type: ignore[attr-defined]
    assert result.line.startswith(f"{image}: ") and result.line.endswith(f" -> {result.files['overlay']}")
    assert all(text in result.line for text in (names[int(shares.argmax())], f"{100 * shares.max():.1f} %"))


@pytest.mark.parametrize(
    ("size", "wanted"),
    [((640, 640), (640, 640)), ((60, 44), (873, 640)), ((5000, 20), (2560, 10)), ((1, 9000), (1, 2560))],
)
def test_the_short_side_is_brought_to_one_length(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert fit_short_side(Image.new("RGB", size), 640, 2560).size == wanted


def test_large_pictures_hold_fewer_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(class_chunk=32)
    for pixels, chunk in ((1, 32), (2**22, 32), (2**24, 8), (2**30, 1)):
        before = model.options
        segment._bounded(model, pixels)
        assert model.options.class_chunk == chunk
        model.options = before


def test_many_classes_make_a_label_file_of_16_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = put(tmp_path / "a.png", (30, 20))
    request = Request([image], [f"thing {k}" for k in range(300)], tmp_path / "out")
    labels = torch.arange(600).reshape(20, 30) % 300

    def found(*_: object) -> segment.Segmentation:
        return segment.Segmentation(labels, torch.full((20, 30), 0.5), ())

    monkeypatch.setattr(segment, "_predict", found)
    (result,) = segment_pictures(config("model.class_length=0", "test.protocol=whole"), request)
    with Image.open(result.files["labels"]) as file:
        assert file.mode.startswith("I;16") and np.array_equal(np.asarray(file), labels.numpy())
    assert result.line.count(",") == 5 and "295 more 98.3 %" in result.line


def test_bf16_runs(tmp_path: Path) -> None:
    image = put(tmp_path / "a.png", (30, 20))
    request = Request([image], ["cat", "sky"], tmp_path / "out")
    (result,) = segment_pictures(config("run.precision=bf16-mixed"), request)
    assert result.files["overlay"].is_file()
