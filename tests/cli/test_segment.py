"""segment.py as a user types it: files of every kind of picture, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.cli.segment import main
from rsc_seg.config import load_config
from rsc_seg.config_catseg import ClipConfig, SegmentConfig
from rsc_seg.pipelines.catseg_plan import catseg_plan, sliding_options
from rsc_seg.seg.build import build_catseg
from rsc_seg.seg.inference import predict_labels
from tests.pipelines.test_segment import TINY, put
from tests.seg.tiny import save_model

NAMES = ["--classes", "cat, green grass, sky"]


def run(*argv: object) -> int:
    try:
        return main([str(word) for word in argv])
    except SystemExit as stop:
        return int(stop.code or 0)


def refused(capsys: pytest.CaptureFixture[str], argv: list[object], *parts: str) -> None:
    """Exit code 2 and one last line with all `parts`."""
    code = run(*argv)
    err = capsys.readouterr().err
    assert code == 2 and "Traceback" not in err
    line = err.rstrip().splitlines()[-1]
    assert line.startswith("segment.py: error: ")
    for part in parts:
        assert part in line, line


def labels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Cat-Seg as released ones are kept."""
    config = load_config(SegmentConfig, None, [*TINY, "run.seed=7"])
    model, _ = build_catseg(catseg_plan(config.clip, config.model, seed=7))
    path = tmp_path_factory.mktemp("weights") / "model_tiny.pth"
    save_model(model, path)
    return path


def test_pictures_of_every_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    base = Image.open(put(tmp_path / "base.png", (48, 32))).convert("RGB")
    upright = Image.Exif()
    upright[0x0112] = 6  # lies on its side
    base.save(source / "turned.jpg", exif=upright, quality=95)
    base.convert("L").save(source / "grey.png")
    base.convert("RGBA").save(source / "clear.png")
    base.convert("CMYK").save(source / "print.jpg")
    base.convert("P").save(source / "indexed.png")
    Image.fromarray(np.asarray(base.convert("L")).astype(np.uint16) * 257).save(source / "wide.png")
    base.resize((8, 8)).save(source / "tiny.bmp")
    base.resize((900, 3)).save(source / "strip.webp")
    assert run(source, *NAMES, *TINY, "--output-dir", out) == 0
    done = capsys.readouterr()
    assert len(done.out.splitlines()) == 8 and "the labels mean nothing" in done.err
    sizes = {p.name.removesuffix("_labels.png"): labels(p).shape for p in out.glob("*_labels.png")}
    assert sizes.pop("tiny") == (8, 8) and sizes.pop("strip") == (3, 900) and sizes.pop("turned") == (48, 32)
    assert sizes == dict.fromkeys(["grey", "clear", "print", "indexed", "wide"], (32, 48))
    assert {p.name for p in out.iterdir()} >= {"grey_overlay.png", "grey_labels.png", "grey.json"}
    assert len(list(out.iterdir())) == 24
    assert np.array_equal(labels(out / "grey_labels.png"), labels(out / "wide_labels.png"))


def test_an_unreadable_picture_is_named_and_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, last, out = put(tmp_path / "a.png"), put(tmp_path / "c.png"), tmp_path / "out"
    broken = tmp_path / "b.png"
    broken.write_bytes(first.read_bytes()[:300])
    assert run(first, broken, last, *NAMES, *TINY, "--output-dir", out) == 2
    done = capsys.readouterr()
    assert [line.split(":")[0] for line in done.out.splitlines()] == [str(first), str(last)]
    assert f"segment.py: {broken}: not readable as an image" in done.err
    assert (
        done.err.rstrip().splitlines()[-1]
        == f"segment.py: error: 1 of 3 pictures could not be read: {broken}; the others are done."
    )
    assert sorted(p.name for p in out.iterdir() if p.suffix == ".json") == ["a.json", "c.json"]


def test_another_vocabulary_replaces_all_files_of_a_picture(tmp_path: Path) -> None:
    one, two, out = put(tmp_path / "a" / "x.png", seed=1), put(tmp_path / "b" / "x.png", (20, 20)), tmp_path / "out"
    assert run(one, two, *NAMES, *TINY, "--output-dir", out) == 0
    assert run(two, "--classes", "dog, tree", *TINY, "--output-dir", out) == 0
    held = {name: json.loads((out / f"{name}.json").read_text()) for name in ("x", "x-2")}
    assert [held[name]["image"] for name in held] == [str(one.resolve()), str(two.resolve())]
    assert held["x"]["names"] == ["cat", "green grass", "sky"] and held["x-2"]["names"] == ["dog", "tree"]
    for kind in ("labels", "overlay"):
        with Image.open(out / f"x-2_{kind}.png") as file:
            assert json.loads(file.text["Classes"]) == ["dog", "tree"]  # type: ignore[attr-defined]
    assert len(list(out.iterdir())) == 6


def test_a_trained_model_gives_its_labels(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    image, out = put(tmp_path / "a.png", (60, 44)), tmp_path / "out"
    yaml = tmp_path / "train.yaml"
    yaml.write_text("solver: {lr: 1e-3}\ndata: {train: ade20k_150_train, min_size_test: 96}\nmodel: {grid: [6, 6]}\n")
    clip = [word for word in TINY if word != "clip.weights=none"]
    argv = [image, *NAMES, *clip, "--weights", weights, "--config", yaml, "--output-dir", out]
    monkeypatch.setattr("sys.argv", ["/x/tools/segment.py", *map(str, argv)])
    assert run(*argv) == 0
    assert "the labels mean nothing" not in capsys.readouterr().err
    config = load_config(SegmentConfig, None, TINY)
    plan = catseg_plan(ClipConfig("clip_tiny16", "none"), config.model, seed=0, checkpoint=weights)
    model, _ = build_catseg(plan)
    fitted = Image.open(image).resize((131, 96), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
    names, sliding = ["cat", "green grass", "sky"], sliding_options(config.test)
    wanted = predict_labels(model.eval(), [pixels], names, sizes=[(44, 60)], sliding=sliding)
    assert np.array_equal(labels(out / "a_labels.png"), wanted[0].labels.numpy())
    facts = json.loads((out / "a.json").read_text())
    assert facts["weights"]["source"].startswith("model_tiny.pth sha256 ") and facts["weights"]["note"] == ""
    assert "--classes 'cat, green grass, sky'" in facts["command"]


def test_what_a_run_says_about_its_weights_travels_on(tmp_path: Path, weights: Path) -> None:
    run_folder, image = tmp_path / "run", put(tmp_path / "a.png")
    run_folder.mkdir()
    config = load_config(SegmentConfig, None, [*TINY, "run.seed=7"])
    model, _ = build_catseg(catseg_plan(config.clip, config.model, seed=7))
    save_model(model, run_folder / "catseg.safetensors")
    beside = run_folder / "catseg_weights.json"
    argv = [image, *NAMES, *TINY, "--weights", run_folder / "catseg.safetensors", "--output-dir", tmp_path / "out"]
    for text, licence, note in (
        ('{"licence": "MIT", "note": "RANDOM"}', "MIT", "The training of this model began with: RANDOM"),
        ('{"licence": "MIT", "note": ""}', "MIT", ""),
        ("{", "unknown", ""),
    ):
        beside.write_text(text)
        assert run(*argv) == 0
        found = json.loads((tmp_path / "out" / "a.json").read_text())["weights"]
        assert (found["licence"], found["note"]) == (licence, note)


def test_print_config_takes_training_files(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("solver: {lr: 1e-3}\nclip: {name: clip_vitl14_336}\ntest: {protocol: whole}\n")
    assert run("--config", tmp_path / "c.yaml", "--print-config", "--device", "cpu", "test.view_batch=2") == 0
    out = capsys.readouterr().out
    assert "name: clip_vitl14_336" in out and "protocol: whole" in out and "view_batch: 2" in out
    assert "device: cpu" in out and "solver" not in out


def test_bad_input_is_one_line(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = put(tmp_path / "a.png")
    out: list[object] = ["--output-dir", tmp_path / "none"]
    random: list[object] = [image, *TINY, *out]
    refused(capsys, [image, *TINY, *out], "--classes: name what to look for")
    refused(capsys, [*random, "--classes", "cat,,sky"], "--classes: class 2 has an empty name")
    refused(capsys, [*random, "--classes", "cat,sky,cat"], "classes 1 and 3 are both 'cat'")
    refused(capsys, [*random, "--classes", "@no.txt"], "no.txt: class names cannot be read")
    refused(capsys, [*random, "--classes", "voc_20c"], "Did you mean 'voc_20")
    refused(capsys, [*TINY, *NAMES, *out], "no picture given")
    refused(capsys, [tmp_path / "b.png", *TINY, *NAMES, *out], "b.png: no such file or folder")
    refused(capsys, [*random, *NAMES, "--alpha", "2"], "--alpha 2.0: must be from 0")
    refused(capsys, [*random, *NAMES, "--alpha", "x"], "--alpha")
    refused(capsys, [*random, *NAMES, "--output-dir", image], "a.png: --output-dir is a file")
    refused(capsys, [*random, *NAMES, "--config", tmp_path / "no.yaml"], "no.yaml: no such config file")
    refused(capsys, [*random, *NAMES, "test.protocol=slide"], "test.protocol=slide", "sliding")
    refused(capsys, [*random, *NAMES, "data.root=x"], "no option 'data'")
    refused(capsys, [*random, *NAMES, "max_size_test=600"], "min_size_test=640: must be from 1 to max_size_test=600")
    refused(capsys, [*random, *NAMES, "run.precision=16-mixed"], "run.precision=16-mixed")
    if not torch.cuda.is_available():
        refused(capsys, [*random, *NAMES, "run.device=cuda"], "no usable CUDA device")
    refused(capsys, [*random, *NAMES, "clip.weights=official"], "--weights: no trained Cat-Seg given", "clip.weights=")
    refused(capsys, [*random, *NAMES, "--weights", tmp_path / "no.pth"], "no.pth")
    sized = [*random, *NAMES, "--weights", weights, "model.hidden=32"]
    refused(capsys, sized, "model_tiny.pth: not a checkpoint of Cat-Seg", "must be (32", "give clip.name and model.*")
    assert not (tmp_path / "none").exists()
