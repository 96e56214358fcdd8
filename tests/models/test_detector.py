"""A detector's region proposals."""

from pathlib import Path

import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from rsc_seg.errors import UserError
from rsc_seg.models import detector
from rsc_seg.models.detector import build_detector, rpn_boxes

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"


def test_proposals_are_those_of_the_detector_in_pixels_of_the_image() -> None:
    torch.manual_seed(0)
    model = build_detector(NAME, "none", count=20, overlap=0.6)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    image = torch.rand(3, 90, 160)
    boxes, scores = rpn_boxes(model, image)
    assert 0 < len(boxes) <= 20 and (scores[:-1] >= scores[1:]).all() and (boxes >= 0).all()
    assert (boxes[:, 2] <= 160.01).all() and (boxes[:, 3] <= 90.01).all()
    images, _ = model.transform([image])
    official, _ = model.rpn(images, model.backbone(images.tensors))
    height, width = images.image_sizes[0]
    scaled = official[0] * torch.tensor([160 / width, 90 / height] * 2)
    assert torch.allclose(boxes.sort(dim=0).values, scaled.sort(dim=0).values, atol=1e-4)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "d.pth")
    loaded = build_detector(NAME, str(tmp_path / "d.pth"), count=5, overlap=0.7)
    assert torch.equal(loaded.rpn.head.cls_logits.weight, model.rpn.head.cls_logits.weight)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=rf"bad\.pth: no state dict of torchvision's {NAME}"):
        build_detector(NAME, str(tmp_path / "bad.pth"), count=5, overlap=0.7)
    with pytest.raises(UserError, match=r"gone\.pth: no such file \(--detector-weights\)"):
        build_detector(NAME, str(tmp_path / "gone.pth"), count=5, overlap=0.7)


def test_official_weights_are_found_or_the_way_to_them_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(detector, "unreachable", lambda address: "no network")
    with pytest.raises(UserError, match=r"cannot be had \(no network\): put torchvision's .*\.pth into .*checkpoints"):
        build_detector(NAME, "official", count=5, overlap=0.7)
    file = detector.torchvision.models.get_model_weights(NAME).DEFAULT.url.rpartition("/")[2]
    (tmp_path / "checkpoints").mkdir()
    model = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None)
    torch.save(model.state_dict(), tmp_path / "checkpoints" / file)
    loaded = build_detector(NAME, "official", count=5, overlap=0.7)
    assert torch.equal(loaded.rpn.head.conv[0][0].weight, model.rpn.head.conv[0][0].weight)
    with pytest.raises(UserError, match=r"--detector=yolo"):
        build_detector("yolo", "none", count=5, overlap=0.7)
