"""Class embeddings: sentences through a text tower, pooled over synonyms and templates, kept on disk."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from rsc_seg.cache_dir import cache_dir
from rsc_seg.errors import UserError
from rsc_seg.files import atomic_write
from rsc_seg.models.digest import module_digest
from rsc_seg.models.text import TextTower

log = logging.getLogger(__name__)

Sentences = Sequence[Sequence[Sequence[str]]]  # by class, template and synonym
BATCH = 256
_FORMAT = "1"  # of the key and the files
_TENSOR, _CHECK = "embeddings", "sha256"


def _encode_all(tower: TextTower, tokens: Int[Tensor, "T N"], batch_size: int) -> Float[Tensor, "T D"]:
    # neighbours in length share a batch, so that few texts are padded
    order = tokens.argmax(dim=1).argsort(stable=True)
    parts = [tower.encode(tokens[rows]) for rows in order.split(batch_size)]
    return torch.cat(parts)[order.argsort().to(tower.device)]


def embed_sentences(tower: TextTower, sentences: Sentences, batch_size: int = BATCH) -> Float[Tensor, "T P D"]:
    """One unit vector for every class and template: the mean over the synonyms' unit vectors, normalised again.

    Gradients flow where the tower's parameters ask for them; nothing is kept on disk. A sentence that occurs twice is
    encoded once. The per-template rule of Cat-Seg's first version, CLIPSelf and ViLD, of which the latter two have no
    synonyms. Raises ValueError when classes have different numbers of templates, or a template no sentence.
    """
    prompts = len(sentences[0]) if sentences else 0
    if any(len(row) != prompts or not all(row) for row in sentences):
        raise ValueError("every class needs the same number of templates, and every template a sentence")
    if not sentences:
        return torch.zeros(0, 0, tower.joint_dim, device=tower.device)
    flat = [text for row in sentences for cell in row for text in cell]
    cells = [len(cell) for row in sentences for cell in row]
    place = {text: i for i, text in enumerate(dict.fromkeys(flat))}
    unit = F.normalize(_encode_all(tower, tower.tokenize(list(place)), batch_size).float(), dim=-1)
    pick = torch.tensor([place[text] for text in flat], device=unit.device)
    owner = torch.arange(len(cells), device=unit.device).repeat_interleave(torch.tensor(cells, device=unit.device))
    total = unit.new_zeros(len(cells), unit.shape[1]).index_add(0, owner, unit[pick])  # (T * P, D)
    return F.normalize(total, dim=-1).unflatten(0, (len(sentences), prompts))


def pool_prompts(embeddings: Float[Tensor, "T P D"], l2: bool = True) -> Float[Tensor, "T D"]:
    """Mean over templates, then a unit vector unless `l2` is off."""
    mean = embeddings.mean(dim=1)
    return F.normalize(mean, dim=-1) if l2 else mean


def embeddings_key(tower: TextTower, sentences: Sentences, pooling: str) -> str:
    """Hash over all that class embeddings depend on.

    That is the sentences (hence vocabulary, templates and the rules that joined them), the pooling, the tower's weights
    and architecture, and the version of open_clip, whose tokenizer reads the sentences.
    """
    shape = [str(part) for part in astuple(tower.shape)]
    content = [_FORMAT, open_clip.__version__, pooling, shape, module_digest(tower), sentences]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _checksum(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def _read(path: Path) -> Tensor | None:
    """The tensor of a cache file; None when there is none or, with a warning, when it is damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensor, known = file.get_tensor(_TENSOR), (file.metadata() or {}).get(_CHECK)
    except (SafetensorError, OSError) as e:
        log.warning("%s: damaged class embeddings (%s); they are computed again", path, e)
        return None
    if _checksum(tensor) != known:
        log.warning("%s: damaged class embeddings (its checksum does not fit); they are computed again", path)
        return None
    return tensor


def _write(path: Path, tensor: Tensor) -> None:
    data = save({_TENSOR: tensor.contiguous()}, metadata={_CHECK: _checksum(tensor)})
    try:
        atomic_write(path, lambda file: file.write_bytes(data))
    except UserError as e:
        log.warning("class embeddings are not kept: %s", e)  # what was asked for can be had without the file


def _kept(tower: TextTower, sentences: Sentences, pooling: str, cached: bool, make: Callable[[], Tensor]) -> Tensor:
    def compute() -> Tensor:
        with torch.no_grad(), torch.autocast(tower.device.type, enabled=False):
            return make().cpu()

    if not cached:
        return compute().to(tower.device)
    path = cache_dir() / "text" / f"{embeddings_key(tower, sentences, pooling)}.safetensors"
    found = _read(path)
    if found is None:
        found = compute()
        _write(path, found)
    return found.to(tower.device)


def prompt_embeddings(
    tower: TextTower, sentences: Sentences, *, batch_size: int = BATCH, cached: bool = True
) -> Float[Tensor, "T P D"]:
    """`embed_sentences` without gradients, in float32, read from the cache folder where it was computed before.

    The weights are part of the cache's key, so that a tuned tower never meets embeddings of its earlier self; a damaged
    file is computed again, with a warning. Switch `cached` off where the weights change often.
    """
    return _kept(tower, sentences, "prompts", cached, lambda: embed_sentences(tower, sentences, batch_size))


def class_embeddings(
    tower: TextTower, sentences: Sentences, *, l2: bool = True, batch_size: int = BATCH, cached: bool = True
) -> Float[Tensor, "T D"]:
    """One vector for every class: mean of `prompt_embeddings` over templates, a unit vector unless `l2` is off.

    Float32, without gradients, cached as there. With the sentences of the prompt set `clipself` this is the rule of
    CLIPSelf's region classification, with `catseg` that of Cat-Seg's CVPR version, whose one template is the mean.
    """

    def make() -> Tensor:
        return pool_prompts(embed_sentences(tower, sentences, batch_size), l2)

    return _kept(tower, sentences, "mean_l2" if l2 else "mean", cached, make)
