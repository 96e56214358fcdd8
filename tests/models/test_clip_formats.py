"""CLIP checkpoints of every layout give timm's state dict and open_clip's text tower, and the features of open_clip."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm.models.eva
import timm.models.vision_transformer
import torch
from open_clip.model import CLIP
from torch import Tensor, nn

from rsc_seg.config import BackboneConfig
from rsc_seg.errors import UserError
from rsc_seg.models.build import build_backbone
from rsc_seg.models.clip_formats import text_state
from rsc_seg.models.registry import REGISTRY
from rsc_seg.models.safetensors_file import save_tensors
from rsc_seg.models.trunk import create_trunk
from rsc_seg.models.weight_formats import read_checkpoint, to_timm_names
from rsc_seg.models.weights import random_state, resolve_weights

torch.set_num_threads(1)
State = dict[str, Tensor]
TINY, EVA = REGISTRY["clip_tiny16"], REGISTRY["evaclip_tiny16"]
VISION = {"image_size": 64, "layers": 4, "width": 64, "head_width": 16, "patch_size": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
CONFIG = {"quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT}


def tiny_clip(quick_gelu: bool = True) -> CLIP:
    """open_clip's CLIP of the sizes of `clip_tiny16`, no parameter at zero or one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIP(32, VISION, TEXT, quick_gelu=quick_gelu)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip() -> CLIP:
    return tiny_clip()


@pytest.fixture(scope="module")
def native(clip: CLIP) -> State:
    return {key: value.clone() for key, value in clip.state_dict().items()}


@pytest.fixture(scope="module")
def image_state(native: State) -> State:
    """What timm's own filter makes of the checkpoint."""
    trunk = create_trunk(TINY)
    assert isinstance(trunk, timm.models.vision_transformer.VisionTransformer)
    return timm.models.vision_transformer.checkpoint_filter_fn(dict(native), trunk)


def split_attention(state: State, key: str, value: Tensor, block: str, end: str) -> None:
    for letter, part in zip("qkv", value.chunk(3), strict=True):
        state[f"{block}self_attn.{letter}_proj.{end}"] = part.clone()


def transformers_names(native: State) -> State:
    """The checkpoint as transformers' CLIPModel names it."""
    out: State = {"logit_scale": native["logit_scale"], "text_projection.weight": native["text_projection"].T.clone()}
    out["visual_projection.weight"] = native["visual.proj"].T.clone()
    singles = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    }
    norms = {
        "visual.ln_pre.": "vision_model.pre_layrnorm.",
        "visual.ln_post.": "vision_model.post_layernorm.",
        "ln_final.": "text_model.final_layer_norm.",
    }
    layers = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
    for key, value in native.items():
        if key in singles:
            out[singles[key]] = value
        for ours, theirs in norms.items():
            if key.startswith(ours):
                out[theirs + key.removeprefix(ours)] = value
        if "resblocks." in key:
            number, _, rest = key.split("resblocks.")[1].partition(".")
            tower = "vision_model" if key.startswith("visual.") else "text_model"
            block = f"{tower}.encoder.layers.{number}."
            if "in_proj_" in rest:
                split_attention(out, key, value, block, rest.removeprefix("attn.in_proj_"))
            else:
                for ours, theirs in {**layers, "attn.out_proj": "self_attn.out_proj"}.items():
                    if rest.startswith(ours):
                        out[block + rest.replace(ours, theirs, 1)] = value
    out["vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    out["text_model.embeddings.position_ids"] = torch.arange(8)[None]
    return out


def custom_text(state: State) -> State:
    """The text tower as a module of its own (open_clip's CustomTextCLIP)."""
    return {k if k.startswith("visual.") or k == "logit_scale" else f"text.{k}": v for k, v in state.items()}


def prefixed(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def with_timm_tower(native: State, image: State) -> State:
    """open_clip around timm's ViT, with the projection outside of it and without a bias."""
    out = {k: v for k, v in native.items() if not k.startswith("visual.")}
    out |= {f"visual.trunk.{k}": v for k, v in image.items() if not k.startswith("head.")}
    return custom_text({**out, "visual.head.proj.weight": image["head.weight"]})


def torch_file(name: str, build: Callable[[State, State], Any]) -> Callable[[Path, State, State], Path]:
    def write(folder: Path, native: State, image: State) -> Path:
        torch.save(build(native, image), folder / name)
        return folder / name

    return write


def safetensors_file(folder: Path, native: State, image: State) -> Path:
    save_tensors(folder / "x.safetensors", native)
    return folder / "x.safetensors"


def open_clip_folder(folder: Path, native: State, image: State) -> Path:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    save_tensors(folder / "open_clip_model.safetensors", native)
    save_tensors(folder / "model.safetensors", image)
    return folder


def transformers_folder(folder: Path, native: State, image: State) -> Path:
    config = {"model_type": "clip", "vision_config": {"hidden_act": "quick_gelu"}}
    (folder / "config.json").write_text(json.dumps(config))
    save_tensors(folder / "model.safetensors", transformers_names(native))
    return folder


FORMATS: dict[str, Callable[[Path, State, State], Path]] = {
    "open_clip": torch_file("x.pt", lambda n, i: n),
    "open_clip-training": torch_file("x.pt", lambda n, i: {"epoch": 3, "state_dict": prefixed("module.", n)}),
    "open_clip-safetensors": safetensors_file,
    "open_clip-folder": open_clip_folder,
    "custom-text": torch_file("x.bin", lambda n, i: custom_text(n)),
    "timm-in-open_clip": torch_file("x.bin", with_timm_tower),
    "clipself-openai": torch_file("x.pt", lambda n, i: {"state_dict": n, "name": "x"}),
    "transformers": torch_file("x.bin", lambda n, i: transformers_names(n)),
    "transformers-folder": transformers_folder,
}


@pytest.mark.parametrize("layout", FORMATS)
def test_layout_gives_timms_state_and_the_text_tower(
    layout: str, native: State, image_state: State, tmp_path: Path
) -> None:
    path = FORMATS[layout](tmp_path, native, image_state)
    state, info = resolve_weights(TINY, str(path))
    assert list(state) == list(create_trunk(TINY, device="meta").state_dict())
    assert all(torch.equal(state[key], image_state[key]) for key in state)
    assert info.activation == "quick_gelu" and info.last_block == "value" and info.mean == TINY.mean
    text = text_state(read_checkpoint(path), str(path))
    wanted = {key: value for key, value in native.items() if not key.startswith("visual.")}
    assert text is not None and text.keys() == wanted.keys()
    assert all(torch.equal(text[key], wanted[key]) for key in wanted)


@pytest.mark.filterwarnings("ignore")
def test_openais_archive(clip: CLIP, native: State, image_state: State, tmp_path: Path) -> None:
    file = tmp_path / "ViT-tiny.pt"
    half = tiny_clip().half()
    half.register_buffer("input_resolution", torch.tensor(64))
    inputs = {"encode_image": (torch.zeros(1, 3, 64, 64, dtype=torch.float16),)}
    torch.jit.trace_module(half, inputs, check_trace=False).save(str(file))
    state, info = resolve_weights(TINY, str(file))
    assert all(torch.equal(state[key], image_state[key].half().float()) for key in state)
    assert info.source.startswith("ViT-tiny.pt sha256 ")
    text = text_state(read_checkpoint(file), "x")
    assert text is not None and "attn_mask" not in text and text["text_projection"].dtype == torch.float32
    assert torch.equal(text["token_embedding.weight"], native["token_embedding.weight"].half().float())


def test_features_are_those_of_open_clip(clip: CLIP, native: State, tmp_path: Path) -> None:
    save_tensors(tmp_path / "x.safetensors", native)
    encoder, info = build_backbone(BackboneConfig(name="clip_tiny16", weights=str(tmp_path / "x.safetensors")))
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(encoder.cls(x), clip.encode_image(x), atol=5e-5, rtol=0)
        assert encoder.dense(x).shape == (2, 32, 4, 4)
    assert encoder.mean == info.mean


def eva_release(state: State) -> State:
    """timm's EVA-02 tower as EVA-CLIP and CLIPSelf name it, with their constants."""
    names = {
        "attn.norm.": "attn.inner_attn_ln.",
        "attn.q_proj.bias": "attn.q_bias",
        "attn.v_proj.bias": "attn.v_bias",
        "mlp.fc1_g.": "mlp.w1.",
        "mlp.fc1_x.": "mlp.w2.",
        "mlp.fc2.": "mlp.w3.",
        "mlp.norm.": "mlp.ffn_ln.",
    }
    out = {"visual.rope.freqs_cos": torch.ones(16, 16), "visual.blocks.0.attn.rope.freqs_sin": torch.ones(16, 16)}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        out[f"visual.{key}"] = value
    return out


EVA_LAYOUTS: dict[str, Callable[[State], Any]] = {
    "release": lambda s: eva_release(s),
    "clipself": lambda s: {"state_dict": eva_release(s)},
    "deepspeed": lambda s: {"module": prefixed("module.", eva_release(s))},
    "open_clip": lambda s: prefixed("visual.trunk.", s),
    "timm": lambda s: s,
}


@pytest.mark.parametrize("layout", EVA_LAYOUTS)
def test_eva_layouts(layout: str, native: State, tmp_path: Path) -> None:
    wanted = random_state(EVA)
    wanted["head.bias"] = torch.arange(32.0)
    content = EVA_LAYOUTS[layout](wanted)
    text = {key: value for key, value in native.items() if not key.startswith("visual.")}
    if layout in ("release", "open_clip"):
        content |= custom_text(text)
    torch.save(content, tmp_path / "x.pt")
    state, info = resolve_weights(EVA, str(tmp_path / "x.pt"))
    assert all(torch.equal(state[key], wanted[key]) for key in wanted)
    assert info.activation == "swiglu"
    found = text_state(content, "x")
    assert (found is not None) == (layout in ("release", "open_clip"))
    assert found is None or all(torch.equal(found[key], text[key]) for key in text)


def test_eva_as_timms_filter() -> None:
    content = eva_release(random_state(EVA))
    ours = to_timm_names(dict(content), "x")
    trunk: nn.Module = create_trunk(EVA)
    theirs = timm.models.eva.checkpoint_filter_fn(dict(content), trunk)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_tower_alone_without_its_prefix(native: State, image_state: State) -> None:
    tower = {key.removeprefix("visual."): value for key, value in native.items() if key.startswith("visual.")}
    ours = to_timm_names(tower, "x")
    assert all(torch.equal(ours[key], image_state[key]) for key in image_state) and ours.keys() == image_state.keys()
    assert text_state(tower, "x") is None


def test_text_of_open_clips_own_tower_loads_strictly(native: State) -> None:
    tower = open_clip.transformer.TextTransformer(**TEXT, output_dim=32)
    text = text_state(transformers_names(native), "x")
    assert text is not None
    assert text.pop("logit_scale").shape == ()
    tower.load_state_dict(text, strict=True)


def test_text_of_nothing_and_of_two(native: State) -> None:
    assert text_state(random_state(TINY), "x") is None
    with pytest.raises(UserError, match="x: holds no tensors"):
        text_state({"epoch": 1}, "x")
    with pytest.raises(UserError, match=r"x: holds several encoders \(a\., b\.\)"):
        text_state({**prefixed("a.", native), **prefixed("b.", native)}, "x")


def refusal(content: Any, tmp_path: Path, name: str = "clip_tiny16") -> str:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError) as caught:
        resolve_weights(REGISTRY[name], str(tmp_path / "x.pt"))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'x.pt'}: ") and "\n" not in message
    return message


def test_positions_of_another_size(native: State, tmp_path: Path) -> None:
    grown = torch.cat([native["visual.positional_embedding"], torch.zeros(20, 64)])
    message = refusal({**native, "visual.positional_embedding": grown}, tmp_path)
    assert "position embeddings are those of a grid of 6x6 patches, clip_tiny16 keeps 4x4 (64 pixels)" in message


def test_misfits_are_named(native: State, tmp_path: Path) -> None:
    message = refusal({k: v for k, v in native.items() if k != "visual.proj"}, tmp_path)
    assert "lacks head.weight, head.bias" in message
    broken = transformers_names(native)
    del broken["vision_model.encoder.layers.2.self_attn.k_proj.bias"]
    message = refusal(broken, tmp_path)
    assert "lacks blocks.2.attn.qkv.bias" in message and "encoder.layers.2.self_attn.q_proj.bias" in message
    assert "several encoders" in refusal({**prefixed("a.", native), **prefixed("b.", native)}, tmp_path)
    message = refusal(native, tmp_path, "evaclip_tiny16")
    assert "it fits --backbone clip_tiny16 or laion_tiny16." in message
    assert "it fits --backbone evaclip_tiny16." in refusal(eva_release(random_state(EVA)), tmp_path)
    message = refusal(native, tmp_path, "dinov2_tiny14")
    assert "it fits --backbone clip_tiny16 or laion_tiny16." in message


def test_fewer_blocks(native: State, tmp_path: Path) -> None:
    cut = {k: v for k, v in native.items() if "visual.transformer.resblocks.3" not in k}
    assert "holds 3 of the 4 blocks of clip_tiny16: backbone.depth=3 loads them" in refusal(cut, tmp_path)
    assert "it fits --backbone clip_tiny16 or laion_tiny16 with backbone.depth=3" in refusal(
        cut, tmp_path, "evaclip_tiny16"
    )
    assert resolve_weights(TINY, str(tmp_path / "x.pt"), depth=3)[1].depth == 3
