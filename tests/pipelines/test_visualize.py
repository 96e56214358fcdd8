"""Figures of one's own pictures, on tiny encoders."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rsc_seg.config import EvaluateConfig, RefinerConfig, load_config
from rsc_seg.data.segmentation import read_ids
from rsc_seg.data.source import load_image_file
from rsc_seg.data.transforms import cut_crop, fit_image, normalize
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.refiner import Refiner
from rsc_seg.models.refiner_file import save_refiner
from rsc_seg.pipelines.candidates import Candidate
from rsc_seg.pipelines.pictures import picture
from rsc_seg.pipelines.visualize import MapOptions, visualize
from rsc_seg.pipelines.visualize_inputs import Request, picture_names
from rsc_seg.pipelines.visualize_maskclip import nearest_classes
from rsc_seg.pipelines.visualize_refiner import box_maps, checked_boxes, draw_refiner
from rsc_seg.pipelines.visualize_tsne import (
    TsneOptions,
    choose_classes,
    choose_instances,
    draw_tsne,
    open_source,
    pooled_objects,
)
from rsc_seg.viz.refiner_maps import ALONE
from tests.training.clip_helpers import tiny_clip
from tests.training.helpers import tiny_encoder, tiny_refiner, write_pictures
from tests.zeroshot.sample import write_sample

SIZE = (56, 84)


def config(*more: str, name: str = "dinov2_tiny14") -> EvaluateConfig:
    return load_config(
        EvaluateConfig,
        None,
        [f"backbone.name={name}", "backbone.weights=none", "run.device=cpu", "data.workers=0", *more],
    )


def request(images: list[Path], folder: Path, size: tuple[int, int] = SIZE) -> Request:
    return Request(images, [], size, folder)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    write_sample(tmp_path / "coco")
    return tmp_path / "coco"


def test_a_folder_gives_its_pictures_and_its_own_figures_are_passed_over(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "in", 3)
    out = folder / "figures"
    first = visualize(config("data.limit=2"), request([folder], out), MapOptions(["affinity"], queries=1))
    again = visualize(config("data.limit=2"), request([folder], out), MapOptions(["affinity"], queries=1))
    assert [p.name for p in first] == [p.name for p in again]
    stems = ["affinity-maps-00-png", "affinity-maps-01-png"]
    assert [p.name for p in first] == [f"{s}.{k}" for s in stems for k in ("png", "svg")] + ["maps.html"]


def test_a_query_by_hand_is_the_token_under_it(tmp_path: Path) -> None:
    (image,) = write_pictures(tmp_path / "in", 1).iterdir()
    options = MapOptions(["affinity"], points=[(0.99, 0.01)])
    svg = next(p for p in visualize(config(), request([image], tmp_path / "out"), options) if p.suffix == ".svg")
    assert "token row 1, column 6" in svg.read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"1\.5,0\.5"):
        visualize(config(), request([image], tmp_path / "out"), MapOptions(["affinity"], points=[(1.5, 0.5)]))


def test_names_that_repeat_get_their_folder() -> None:
    assert picture_names([Path("a/x.png"), Path("b/x.png"), Path("b/y.png")]) == ["a/x.png", "b/x.png", "y.png"]


def test_pooled_objects_equal_a_slow_mean(sample: Path) -> None:
    encoder, size = tiny_encoder(), (112, 112)
    source = open_source(config(f"data.root={sample}", "data.kind=coco", "data.split=val"))
    labels = choose_classes(source, None)
    instances = choose_instances(source, labels, TsneOptions(per_class=6, perplexity=2), seed=3)
    objects = pooled_objects(source, instances, [Candidate("e", encoder, None)], size, workers=0)  # type: ignore[arg-type]
    assert len(objects.instances) + objects.empty == len(instances) > 20
    for k in (0, len(objects.instances) // 2, len(objects.instances) - 1):
        one = objects.instances[k]
        image, ids = source.load(one.picture)
        frame = fit_image(image, size, "pad")[0]
        with torch.no_grad():
            tokens = F.normalize(encoder.dense(normalize(frame, encoder.mean, encoder.std)[None])[0], dim=0)
        height, width = ids.shape
        scale = min(8 / height, 8 / width)
        side = (max(1, round(height * scale)), max(1, round(width * scale)))
        mask = torch.from_numpy(ids == one.segment.id).float()[None, None]
        small = F.interpolate(mask, side, mode="bicubic", align_corners=False, antialias=False)[0, 0] > 0
        members = [tokens[:, r, c] for r in range(side[0]) for c in range(side[1]) if small[r, c]]
        mean = F.normalize(torch.stack(members).mean(0), dim=0)
        assert np.abs(mean.numpy() - objects.features["e"][k]).max() < 1e-5


def test_objects_are_drawn_by_seed_and_never_more_than_asked(sample: Path) -> None:
    source = open_source(config(f"data.root={sample}", "data.kind=coco", "data.split=val"))
    labels = choose_classes(source, None)
    assert all(source.categories[label].thing for label in labels) and 2 <= len(labels) <= 7
    one, same, other = (
        choose_instances(source, labels, TsneOptions(per_class=3, perplexity=1), seed) for seed in (0, 0, 1)
    )
    assert one == same != other
    assert max(np.bincount([i.label for i in one])) <= 3
    by_name = choose_classes(source, [source.categories[labels[1]].name, source.categories[labels[0]].name])
    assert by_name == [labels[1], labels[0]]


def test_tsne_writes_figures_and_every_place(sample: Path, tmp_path: Path) -> None:
    options = TsneOptions(per_class=8, perplexity=3)
    size = (112, 112)
    data = config(f"data.root={sample}", "data.kind=coco", "data.split=val")
    paths = draw_tsne(data, request([], tmp_path / "out", size), options)
    names = [p.name for p in paths]
    assert names == ["object-features-t-sne.png", "object-features-t-sne.svg", "tsne.csv", "tsne.html"]
    with open(paths[2], newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["picture", "segment", "class", "untuned, last layer: x", "untuned, last layer: y"]
    for row in rows[1:4]:
        png = sample / "annotations" / "panoptic_val2017" / Path(row[0]).name
        assert int(row[1]) in read_ids(png.read_bytes(), str(png))
        assert all(np.isfinite(float(value)) for value in row[3:])
    points = paths[1].read_text(encoding="utf-8")
    known = (points.count("<circle") + points.count("<polygon"), len(set(row[2] for row in rows[1:])))
    assert known[0] == len(rows) - 1 + known[1]  # every object, and every class once in the legend


def test_tsne_refuses_what_it_cannot_draw(sample: Path, tmp_path: Path) -> None:
    data = config(f"data.root={sample}", "data.kind=coco", "data.split=val")
    out = request([], tmp_path / "none", (56, 56))
    with pytest.raises(UserError, match="--perplexity 500: too large for"):
        draw_tsne(data, out, TsneOptions(perplexity=500))
    with pytest.raises(UserError, match="no class 'persom'. Did you mean 'person'"):
        draw_tsne(data, out, TsneOptions(["persom", "cat"]))
    with pytest.raises(UserError, match="2 to 7"):
        draw_tsne(data, out, TsneOptions(["person"]))
    with pytest.raises(UserError, match="'cat' stands there twice"):
        draw_tsne(data, out, TsneOptions(["cat", "cat"]))
    with pytest.raises(UserError, match="data.kind=camvid: t-SNE needs masks of single objects"):
        draw_tsne(config(f"data.root={sample}", "data.kind=camvid"), out, TsneOptions())
    with pytest.raises(UserError, match="data.root: not set; t-SNE needs panoptic labels"):
        draw_tsne(config(), out, TsneOptions())
    pictures = write_pictures(tmp_path / "plain" / "val2017", 2).parent
    with pytest.raises(UserError, match="panoptic"):
        draw_tsne(config(f"data.root={pictures}", "data.kind=coco", "data.split=val"), out, TsneOptions())
    source = open_source(data)
    counts = np.bincount([s.label for segments in source.segments for s in segments], minlength=133)
    rare = source.categories[int(np.flatnonzero(counts == 0)[0])].name
    with pytest.raises(UserError, match=f"0 objects of class '{rare}'"):
        draw_tsne(data, out, TsneOptions([rare, source.categories[int(counts.argmax())].name]))
    assert not (tmp_path / "none").exists()


def test_nearest_classes_equal_a_slow_choice() -> None:
    encoder = tiny_clip()
    x = F.interpolate(torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0)), size=(64, 96))[0]
    vectors = F.normalize(torch.randn(20, 32, generator=torch.Generator().manual_seed(1)), dim=1)
    found = nearest_classes(encoder, x, vectors, (30, 20))
    with torch.no_grad():
        tokens = F.normalize(encoder.dense(x[None]), dim=1)[0]
    cosines = torch.stack([(tokens * v[:, None, None]).sum(0) for v in vectors])
    full = F.interpolate(cosines[None], (20, 30), mode="bilinear", align_corners=False)[0]
    assert found.shape == (20, 30) and len(np.unique(found)) > 3
    for row, column in ((0, 0), (10, 17), (19, 29), (5, 22)):
        assert found[row, column] == int(full[:, row, column].argmax())


def test_box_maps_are_the_encoders_the_refiners_and_the_crops(tmp_path: Path) -> None:
    encoder = tiny_encoder()
    refiner = tiny_refiner(encoder, noise=0.1)
    (file,) = write_pictures(tmp_path, 1).iterdir()
    seen = picture("p", load_image_file(file), SIZE, encoder)
    whole = (0.0, 0.0, 1.0, 1.0)
    encoders = [Candidate("e", encoder, None)]  # type: ignore[arg-type]
    maps = box_maps(seen, whole, encoders, {"refiner": refiner}, SIZE)
    assert list(maps) == ["e, in the picture", "Refiner", ALONE]
    with torch.no_grad():
        dense = encoder.dense(seen.x[None])[0]
        refined = refiner.whole_image(refiner.early(encoder, seen.x[None]))[0]
    # a box of the whole picture at the picture's own grid changes nothing
    assert torch.allclose(maps["e, in the picture"], dense, atol=1e-5)
    assert torch.allclose(maps[ALONE], dense, atol=1e-4)
    assert torch.allclose(maps["Refiner"], refined, atol=1e-5)
    part = box_maps(seen, (0.5, 0.0, 1.0, 1.0), encoders, {}, (28, 28))
    pixels = cut_crop(seen.image, (45.0, 0.0, 90.0, 60.0), (28, 28))
    with torch.no_grad():
        alone = encoder.dense(normalize(pixels, encoder.mean, encoder.std)[None])[0]
    assert torch.allclose(part[ALONE], alone) and part["e, in the picture"].shape == alone.shape


def test_a_refiner_of_another_encoder_and_a_box_that_is_none_are_refused(tmp_path: Path) -> None:
    (file,) = write_pictures(tmp_path / "in", 1).iterdir()
    own, _ = build_backbone(config().backbone, torch.device("cpu"))
    other, _ = build_backbone(config(name="dinov2_tiny14_reg").backbone, torch.device("cpu"))
    options = RefinerConfig(hidden=16)
    for name, encoder in (("own", own), ("other", other), ("moved", tiny_encoder())):
        save_refiner(tmp_path / name / "refiner.safetensors", Refiner(encoder, options), options, encoder, {})
    out = request([file], tmp_path / "out")
    # at its start a Refiner equals its encoder
    assert draw_refiner(config(), out, [tmp_path / "own"], [(0.2, 0.2, 0.8, 0.8)])[-1].name == "refiner.html"
    for folder, part in (("other", "trained with backbone=dinov2_tiny14_reg"), ("moved", "other encoder weights")):
        with pytest.raises(UserError, match=part):
            draw_refiner(config(), out, [tmp_path / folder / "refiner.safetensors"], [])
    with pytest.raises(UserError, match="--refiner: name a Refiner"):
        draw_refiner(config(), out, [], [])
    for box in ((0.5, 0.1, 0.5, 0.9), (0.0, 0.0, 1.2, 1.0)):
        with pytest.raises(UserError, match="--box .*expected left,top,right,bottom"):
            checked_boxes([box])
    with pytest.raises(UserError, match="smaller than one of the picture's 4 x 6 tokens"):
        draw_refiner(config(), out, [tmp_path / "own"], [(0.0, 0.0, 0.1, 0.1)])
    assert checked_boxes([]) == [(0.25, 0.25, 0.75, 0.75)]
