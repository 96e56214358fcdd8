"""Webdataset shards: the index, random access, and damage."""

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsc_seg.data.images import open_images
from rsc_seg.data.webdata import expand_braces, open_shards
from rsc_seg.errors import UserError


def png(value: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.fixture
def shards(tmp_path):
    for s in range(3):
        members = {}
        for k in range(4):
            members[f"{s}{k}.txt"] = b"a caption"
            members[f"{s}{k}.PNG" if k == 1 else f"{s}{k}.png"] = png(10 * s + k)
            members[f"{s}{k}.mask.png"] = png(255)
        shard(tmp_path / f"part-{s:03d}.tar", members)
    return tmp_path


def test_random_access_in_stored_order(shards):
    source = open_images("webdataset", str(shards), "train")
    assert len(source) == 12
    assert source.name(5) == "part-001.tar/11.PNG"
    values = [int(np.asarray(source.load(i))[0, 0, 0]) for i in (11, 0, 5, 4)]
    assert values == [23, 0, 11, 10]
    assert np.array_equal(np.asarray(pickle.loads(pickle.dumps(source)).load(7)), np.asarray(source.load(7)))


def test_patterns_and_limits(shards):
    assert expand_braces("a-{08..10}-{x,y}.tar")[:3] == ["a-08-x.tar", "a-08-y.tar", "a-09-x.tar"]
    pattern = str(shards / "part-{001..002}.tar")
    assert len(open_images("auto", pattern, "train")) == 8
    (shards / "part-002.tar").write_bytes(b"broken")
    few = open_images("auto", pattern, "train", limit=2, every=2)  # the first shard is enough: the second is not read
    assert [few.name(i) for i in range(2)] == ["part-001.tar/10.png", "part-001.tar/12.png"]


def test_errors_name_the_shard(shards):
    with pytest.raises(UserError, match=r"part-003\.tar: no such shard .*2 of 5 are missing"):
        open_shards(str(shards / "part-{000..004}.tar"))
    with pytest.raises(UserError, match="only local shards"):
        open_shards("https://host/x.tar")
    whole = (shards / "part-001.tar").read_bytes()
    (shards / "part-001.tar").write_bytes(whole[:1500])
    with pytest.raises(UserError, match=r"part-001\.tar: broken shard: no readable member at byte 1024 of 1500"):
        open_shards(str(shards))
    (shards / "part-001.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(UserError, match=r"part-001\.tar: not readable as an uncompressed tar file"):
        open_shards(str(shards))
    empty = shards / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"no shards .*looked for \*\.tar"):
        open_shards(str(empty))
    shard(empty / "0.tar", {"1.txt": b"x"})
    with pytest.raises(UserError, match="no images in 1 shards"):
        open_shards(str(empty))


def test_a_shard_cut_inside_an_image_is_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    shard(tmp_path / "0.tar", {"1.png": out.getvalue()})
    data = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(data[:4000])
    with pytest.raises(UserError, match=r"0\.tar: (truncated shard: '1\.png'|not readable)"):
        open_shards(str(tmp_path))
