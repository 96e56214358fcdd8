"""Image sources: what is found, how it is decoded, and what is said when it cannot be."""

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from rsc_seg.data.images import ImageError, open_images
from rsc_seg.data.scenes import SceneSet, write_scenes
from rsc_seg.data.segmentation import open_labelled
from rsc_seg.data.source import decode_image
from rsc_seg.errors import UserError

SMALL_SCENE = (160, 120)


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def test_folder_is_recursive_sorted_and_blind_to_case(tmp_path):
    for i, name in enumerate(["b.JPG", "a/z.png", "a/y.jpeg", "c.WebP", "d.bmp"]):
        kind = {"jpg": "JPEG", "jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}[name.lower().split(".")[1]]
        put(tmp_path / name, encoded(picture(i), kind))
    put(tmp_path / "notes.txt", b"no image")
    put(tmp_path / "a/._y.jpeg", b"resource fork")
    source = open_images("folder", str(tmp_path), "train")
    assert names(source) == ["a/y.jpeg", "a/z.png", "b.JPG", "c.WebP", "d.bmp"]
    assert np.array_equal(np.asarray(source.load(1)), np.asarray(picture(1)))
    assert names(open_images("auto", str(tmp_path), "train", limit=2, every=2)) == ["a/y.jpeg", "b.JPG"]


def test_links_to_folders_are_followed_once(tmp_path):
    put(tmp_path / "far/1.png", encoded(picture()))
    (tmp_path / "root").mkdir()
    (tmp_path / "root/near").symlink_to(tmp_path / "far")
    (tmp_path / "far/loop").symlink_to(tmp_path / "far")
    assert names(open_images("folder", str(tmp_path / "root"), "train")) == ["near/1.png"]


def test_zip_is_read_in_place_and_pickles(tmp_path):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"x/{2 - i}.png", encoded(picture(2 - i)))
        archive.writestr("__MACOSX/x/0.png", b"resource fork")
    source = open_images("auto", str(path), "train")
    source.load(0)
    copy = pickle.loads(pickle.dumps(source))
    assert names(copy) == ["x/0.png", "x/1.png", "x/2.png"]
    assert np.array_equal(np.asarray(copy.load(2)), np.asarray(picture(2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set.zip"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation):
    upright = Image.fromarray(np.arange(6 * 4 * 3, dtype=np.uint8).reshape(4, 6, 3))
    stored = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),  # shown after a turn to the right
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }[orientation](np.asarray(upright))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(decode_image(data, "x")), np.asarray(upright))


def test_every_mode_becomes_rgb():
    ramp = (np.arange(12, dtype=np.uint16).reshape(3, 4) * 5957).astype(np.uint16)
    wide = np.asarray(decode_image(encoded(Image.fromarray(ramp)), "x"))
    assert wide.shape == (3, 4, 3) and abs(wide[..., 0].astype(int) - ramp / 257).max() <= 0.5
    rgb = picture()
    alpha = rgb.copy()
    alpha.putalpha(128)
    assert np.array_equal(np.asarray(decode_image(encoded(alpha), "x")), np.asarray(rgb))
    grey = rgb.convert("L")
    assert np.array_equal(np.asarray(decode_image(encoded(grey), "x"))[..., 2], np.asarray(grey))
    flat = Image.new("RGB", (16, 16), (200, 40, 90))
    cmyk = np.asarray(decode_image(encoded(flat.convert("CMYK"), "JPEG", quality=95), "x")).astype(int)
    assert abs(cmyk - [200, 40, 90]).max() < 8
    palette = flat.convert("P")
    assert decode_image(encoded(palette, transparency=b"\x00\x80"), "x").mode == "RGB"


@pytest.mark.parametrize("cut", [2, 50, 600])
@pytest.mark.parametrize("tolerant", [False, True])
def test_truncated_jpeg_is_an_error_that_names_the_file(tmp_path, monkeypatch, cut, tolerant):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", tolerant)
    put(tmp_path / "whole.jpg", encoded(picture(), "JPEG"))
    put(tmp_path / "short.jpg", encoded(picture(), "JPEG")[:-cut])
    put(tmp_path / "text.jpg", b"not an image")
    put(tmp_path / "void.jpg", b"")
    source = open_images("folder", str(tmp_path), "train")
    with pytest.raises(ImageError, match=r"short\.jpg: not readable as an image: .*[Tt]runcated"):
        source.load(0)
    with pytest.raises(ImageError, match=r"text\.jpg: not readable as an image: no known image format"):
        source.load(1)
    with pytest.raises(ImageError, match=r"void\.jpg: .*the file is empty"):
        source.load(2)
    assert source.load(3).size == (40, 30)
    assert tolerant == ImageFile.LOAD_TRUNCATED_IMAGES


def test_broken_zip_member_is_an_image_error(tmp_path):
    path = tmp_path / "set.zip"
    data = encoded(picture())
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("0.png", data)
    whole = bytearray(path.read_bytes())
    whole[whole.find(data) + 100] ^= 255
    path.write_bytes(whole)
    with pytest.raises(ImageError, match=r"set\.zip/0\.png: cannot be read: Bad CRC"):
        open_images("zip", str(path), "train").load(0)
    path.write_bytes(b"PK no more")
    with pytest.raises(UserError, match=r"set\.zip: not readable as a zip file \(data\.root\)"):
        open_images("auto", str(path), "train")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such file or folder \(data\.root\)"):
        open_images("auto", str(tmp_path / "nowhere"), "train")
    with pytest.raises(UserError, match=r"data\.root is not set"):
        open_images("folder", None, "train")
    put(tmp_path / "a/readme.txt", b"x")
    with pytest.raises(UserError, match=r"no images \(data\.root\); looked at any depth for \.jpg"):
        open_images("auto", str(tmp_path), "train")
    with pytest.raises(UserError, match="Did you mean 'folder'"):
        open_images("foldr", str(tmp_path), "train")
    with pytest.raises(UserError, match=r"data\.every=0"):
        open_images("folder", str(tmp_path), "train", every=0)
    with pytest.raises(UserError, match=r"data\.limit=0"):
        open_images("folder", str(tmp_path), "train", limit=0)
    with pytest.raises(UserError, match="not a zip file"):
        open_images("zip", str(tmp_path), "train")


@pytest.mark.parametrize("layout", [("train", "trainannot"), ("train/images", "train/labels")])
def test_camvid_gives_images_without_labels(tmp_path, layout):
    put(tmp_path / layout[0] / "1.png", encoded(picture(1)))
    put(tmp_path / layout[1] / "1.png", encoded(picture(1).convert("L")))
    for kind in ("auto", "camvid"):
        assert names(open_images(kind, str(tmp_path), "train")) == [f"{layout[0]}/1.png"]
    for kind in ("auto", "camvid"):
        with pytest.raises(
            UserError, match=r"no split 'trian' \(data\.split\); there are: train\. Did you mean 'train'"
        ):
            open_images(kind, str(tmp_path), "trian")
    put(tmp_path / "test/9.png", encoded(picture(1)))
    assert names(open_images("camvid", str(tmp_path), "test")) == ["test/9.png"]


def test_auto_never_takes_label_files_for_images(tmp_path):
    base = "ADEChallengeData2016"
    for part in ("images", "annotations"):
        put(tmp_path / f"ade/{base}/{part}/training/1.png", encoded(picture().convert("L")))
    assert names(open_images("auto", str(tmp_path / "ade"), "train")) == [f"{base}/images/training/1.png"]
    put(tmp_path / "c/leftImg8bit/val/ulm/u_leftImg8bit.png", encoded(picture()))
    put(tmp_path / "c/gtFine/val/ulm/u_gtFine_labelIds.png", encoded(picture().convert("L")))
    assert names(open_images("auto", str(tmp_path / "c"), "val")) == ["leftImg8bit/val/ulm/u_leftImg8bit.png"]


def test_the_embedded_set(tmp_path: Path) -> None:
    write_scenes(tmp_path / "set", SceneSet(train=2, val=1, size=SMALL_SCENE))
    for kind in ("scenes", "auto"):
        train = open_images(kind, str(tmp_path / "set"), "train")
        photographs = [n for n in names(train) if n.startswith("photographs/")]
        assert len(photographs) == 10 and "photographs/chelsea" in photographs
        assert names(train) == [*photographs, "train/images/000000.jpg", "train/images/000001.jpg"]
        assert names(open_images(kind, str(tmp_path / "set"), "val")) == ["val/images/000000.jpg"]
    assert train.load(0).mode == train.load(11).mode == "RGB" and train.load(11).size == SMALL_SCENE
    labelled = open_labelled("auto", str(tmp_path / "set"), "val")
    assert set(np.unique(labelled.labels(0)).tolist()) <= {*range(len(labelled.classes)), 255}
    assert labelled.labels(0).shape == SMALL_SCENE[::-1]
    assert names(pickle.loads(pickle.dumps(train))) == names(train)


def test_auto_finds_shards(tmp_path):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        info = tarfile.TarInfo("5.png")
        data = encoded(picture(5))
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
    assert names(open_images("auto", str(tmp_path), "train")) == ["0.tar/5.png"]
