"""Text weights by name and file: fits, refusals, and what happens without a network."""

import json
import logging
import time
from pathlib import Path

import huggingface_hub
import open_clip
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from torch import Tensor, nn

from rsc_seg.errors import UserError
from rsc_seg.models import official_weights
from rsc_seg.models.checkpoint_files import OPEN_CLIP_FILES
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.text import TextTower, text_shape
from rsc_seg.models.text_weights import build_text_tower, find_official_text, fit_text_state
from rsc_seg.models.weights import random_state
from rsc_seg.models.weights_info import info_of_row

TINY = text_shape(REGISTRY["clip_tiny16"])
OFFICIAL = [row for row in REGISTRY.values() if row.text_id]


def plain_state(seed: int = 1) -> dict[str, Tensor]:
    """A tiny tower's weights in open_clip's names."""
    state = build_text_tower("clip_tiny16", "none", seed=seed).state_dict()
    return {key.removeprefix("text."): value.clone() for key, value in state.items()}


def test_random_weights_repeat_and_warn(caplog: pytest.LogCaptureFixture) -> None:
    before = torch.random.get_rng_state()
    with caplog.at_level(logging.WARNING):
        a = build_text_tower("clip_tiny16", "none")
    assert "RANDOM TEXT WEIGHTS in clip_tiny16" in caplog.text
    assert torch.equal(before, torch.random.get_rng_state())
    b, c = build_text_tower("clip_tiny16", "none"), build_text_tower("clip_tiny16", "none", seed=1)
    assert torch.equal(a.text.positional_embedding, b.text.positional_embedding)
    assert not torch.equal(a.text.positional_embedding, c.text.positional_embedding)


def test_a_state_in_open_clips_names_fits() -> None:
    state = plain_state()
    fitted = fit_text_state({key: value.half() for key, value in state.items()}, TINY, "clip.pt")
    made = TextTower(TINY)
    made.load_state_dict(fitted, strict=True)
    assert {value.dtype for value in fitted.values()} == {torch.float32}
    assert torch.equal(made.text.text_projection, state["text_projection"].half().float())


def test_logit_scale_may_be_absent_or_have_a_dimension(caplog: pytest.LogCaptureFixture) -> None:
    state = plain_state()
    state["logit_scale"] = torch.tensor([4.5])
    fitted = fit_text_state(state, TINY, "clip.pt")
    assert fitted["logit_scale"].shape == () and fitted["logit_scale"] == 4.5
    del state["logit_scale"]
    with caplog.at_level(logging.WARNING):
        fitted = fit_text_state(state, TINY, "clip.pt")
    assert "clip.pt: holds no logit_scale" in caplog.text
    assert fitted["logit_scale"].item() == pytest.approx(2.6593, abs=1e-4)


def test_states_that_do_not_fit_are_named() -> None:
    state = plain_state()
    del state["ln_final.bias"]
    state["extra"] = torch.zeros(1)
    state["text_projection"] = torch.zeros(32, 16)
    with pytest.raises(UserError) as caught:
        fit_text_state(state, TINY, "clip.pt")
    message = str(caught.value)
    assert message.startswith("clip.pt: not the text tower of clip_tiny16: lacks ln_final.bias; has unknown extra;")
    assert "text_projection is (32, 16), must be (32, 32)" in message and "\n" not in message


def test_values_that_are_not_finite_are_refused() -> None:
    state = plain_state()
    state["ln_final.weight"][3] = float("nan")
    with pytest.raises(UserError, match=r"^clip\.pt: values of the text tower are not finite in ln_final\.weight"):
        fit_text_state(state, TINY, "clip.pt")


def whole_clip(custom: bool, quick_gelu: bool = True) -> nn.Module:
    """A tiny CLIP of open_clip that has the text tower of the tiny rows, its weights at random."""
    torch.manual_seed(3)
    model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(
        embed_dim=32,
        vision_cfg={"image_size": 64, "layers": 4, "width": 64, "patch_size": 16, "head_width": 16},
        text_cfg={"width": 32, "layers": 2, "heads": 4},
        quick_gelu=quick_gelu,
    )
    return model.eval()


@pytest.mark.parametrize("container", ["", "state_dict", "module."])
@pytest.mark.parametrize("custom", [False, True], ids=["CLIP", "CustomTextCLIP"])
def test_the_text_part_of_a_checkpoint_is_loaded(custom: bool, container: str, tmp_path: Path) -> None:
    clip = whole_clip(custom)
    content = clip.state_dict()
    if container == "state_dict":
        content = {"state_dict": content, "epoch": 6}
    elif container:
        content = {container + key: value for key, value in content.items()}
    torch.save(content, tmp_path / "clip.pt")
    made = build_text_tower("clip_tiny16", tmp_path / "clip.pt")
    tokens = made.tokenize(["a photo of a cat.", "sky"])
    with torch.no_grad():
        found, wanted = made.encode(tokens), clip.encode_text(tokens)
    torch.testing.assert_close(found, wanted, atol=5e-6, rtol=0)
    assert made.logit_scale.shape == () and torch.equal(made.logit_scale, clip.logit_scale)
    assert not any(p.requires_grad for p in made.parameters())


def test_a_hub_folder_is_loaded_and_its_activation_kept(tmp_path: Path) -> None:
    clip = whole_clip(custom=False)
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, tmp_path / OPEN_CLIP_FILES[0])
    config = {"model_cfg": {"quick_gelu": True, "vision_cfg": {"width": 64}}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    made = build_text_tower("clip_tiny16", tmp_path)
    assert torch.equal(made.text.text_projection, clip.text_projection)
    with pytest.raises(UserError, match=r"activation 'quick_gelu'.*'laion_tiny16' runs 'gelu': choose clip_tiny16\."):
        build_text_tower("laion_tiny16", tmp_path)


def test_the_sidecar_beside_a_whole_clip_is_heeded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(whole_clip(custom=False).state_dict(), tmp_path / "clip.pt")
    info = info_of_row(REGISTRY["clip_tiny16"], depth=4, source="none", licence="none")
    (tmp_path / "clip.json").write_text(info.to_json(), encoding="utf-8")
    for name in ("laion_tiny16", "evaclip_tiny16"):
        with pytest.raises(UserError, match=f"weights of backbone 'clip_tiny16', not of '{name}'"):
            build_text_tower(name, tmp_path / "clip.pt")
    with caplog.at_level(logging.WARNING):
        build_text_tower("clip_tiny16", tmp_path / "clip.pt")
    assert not caplog.records
    (tmp_path / "clip.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"clip\.json: the sidecar of clip\.pt cannot be read"):
        build_text_tower("clip_tiny16", tmp_path / "clip.pt")


def test_an_image_tower_in_the_file_must_be_the_rows(tmp_path: Path) -> None:
    state = whole_clip(custom=False).state_dict()
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"clip\.pt: not weights of evaclip_tiny16: .*clip_tiny16 or laion_tiny16"):
        build_text_tower("evaclip_tiny16", tmp_path / "clip.pt")
    grown = torch.cat([state["visual.positional_embedding"], torch.zeros(20, 64)])
    torch.save({**state, "visual.positional_embedding": grown}, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"other\.pt: its position embeddings are those of a grid of 6x6 patches"):
        build_text_tower("clip_tiny16", tmp_path / "other.pt")
    fewer = {key: value for key, value in state.items() if "visual.transformer.resblocks.3" not in key}
    torch.save(fewer, tmp_path / "fewer.pt")  # a tower exported with its first blocks only is the row's
    build_text_tower("clip_tiny16", tmp_path / "fewer.pt")


def test_an_activation_that_nothing_tells_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(whole_clip(custom=False).state_dict(), tmp_path / "clip.pt")
    torch.save({key: value for key, value in plain_state().items()}, tmp_path / "text.pt")
    for name, file in (("clip_tiny16", "clip.pt"), ("laion_tiny16", "clip.pt"), ("evaclip_tiny16", "text.pt")):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            activation = build_text_tower(name, tmp_path / file).shape.activation
        said = f"{tmp_path / file}: nothing tells the activation of its text tower (which shapes cannot show); "
        assert [r.getMessage() for r in caplog.records if "activation" in r.getMessage()] == [
            f"{said}'{activation}' is taken, as {name} has"
        ]


def test_eva_shows_its_kind_by_its_image_tower(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image = {f"visual.{key}": value for key, value in random_state(REGISTRY["evaclip_tiny16"]).items()}
    text = {f"text.{key}": value for key, value in plain_state().items() if key != "logit_scale"}
    torch.save({**image, **text, "logit_scale": torch.tensor(4.6)}, tmp_path / "eva.pt")
    with caplog.at_level(logging.WARNING):
        made = build_text_tower("evaclip_tiny16", tmp_path / "eva.pt")
    assert not [r for r in caplog.records if "activation" in r.getMessage()] and made.shape.activation == "gelu"
    with pytest.raises(UserError, match="not weights of clip_tiny16: .*it fits --backbone evaclip_tiny16"):
        build_text_tower("clip_tiny16", tmp_path / "eva.pt")


def test_a_file_without_text_is_refused(tmp_path: Path) -> None:
    torch.save({"visual.class_embedding": torch.zeros(4)}, tmp_path / "image.pt")
    with pytest.raises(UserError, match=r"image\.pt: holds no text tower: give the file of the whole CLIP"):
        build_text_tower("clip_tiny16", tmp_path / "image.pt")


def test_text_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(whole_clip(custom=False).state_dict(), tmp_path / "clip.pt")
    with pytest.raises(UserError, match=r"not the text tower of clip_vitb16: lacks transformer\.resblocks\.2\."):
        build_text_tower("clip_vitb16", tmp_path / "clip.pt")


def test_the_releases_own_file_in_torch_hubs_folder_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    row = REGISTRY["evaclip_vitb16"]
    file = tmp_path / "hub" / "checkpoints" / row.official_file
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    assert find_official_text(row) == file


def test_unknown_names_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="text weights 'offical': neither official, none nor a file. Did you mean"):
        build_text_tower("clip_tiny16", "offical")
    with pytest.raises(UserError, match=r"none\.pt: no such weights file"):
        build_text_tower("clip_tiny16", tmp_path / "none.pt")
    with pytest.raises(UserError, match="'clip_tiny16' has no official text weights"):
        build_text_tower("clip_tiny16", "official")
    with pytest.raises(UserError, match="'dinov2_tiny14' has no text tower"):
        build_text_tower("dinov2_tiny14", "none")
    with pytest.raises(UserError, match="unknown backbone"):
        build_text_tower("clip_vitb61", "none")


@pytest.mark.parametrize("row", OFFICIAL, ids=lambda row: row.name)
def test_every_row_has_a_release_that_open_clip_knows(row: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def not_found(repository: str, file: str, **options: object) -> str:
        asked.append(f"{repository}/{file}")
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_found)
    with pytest.raises(UserError) as caught:
        find_official_text(row)  # type: ignore[arg-type]
    assert [name.rsplit("/", 1)[1] for name in asked] == list(OPEN_CLIP_FILES)
    assert asked[0].rsplit("/", 1)[0] in str(caught.value)


def test_without_a_network_it_ends_within_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    start = time.monotonic()
    with pytest.raises(UserError) as caught:
        build_text_tower("clip_vitb16", "official")
    assert time.monotonic() - start < 20
    message = str(caught.value)
    assert "text weights of clip_vitb16 are not on this machine" in message and "\n" not in message
    assert "timm/vit_base_patch16_clip_224.openai" in message and "ViT-B-16.pt" in message
    assert "open_clip_model.safetensors" in message


def test_offline_mode_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(official_weights, "unreachable", lambda address: pytest.fail("asked the network"))
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        find_official_text(REGISTRY["evaclip_vitb16"])


def test_a_hub_that_refuses_after_answering(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(official_weights, "unreachable", lambda address: "")

    def refuse(release: dict[str, object]) -> str:
        assert release["hf_hub"] == "apple/DFN2B-CLIP-ViT-B-16/"
        raise FileNotFoundError("no such repository\nsecond line")

    monkeypatch.setattr(open_clip, "download_pretrained", refuse)
    with pytest.raises(UserError, match=r"cannot be fetched \(no such repository\): download"):
        find_official_text(REGISTRY["dfn_vitb16"])
