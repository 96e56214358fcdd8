"""Which pictures a run's report shows, whether the run was trained on them, and who made them."""

from dataclasses import dataclass
from pathlib import Path

from rsc_seg.config import EvaluateConfig
from rsc_seg.data.images import open_images
from rsc_seg.data.photos import PHOTOS, TEXTURES, load_photo
from rsc_seg.data.segmentation import open_labelled
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.folder import read_config
from rsc_seg.pipelines.pictures import Picture, picture, spread_pictures

PHOTOGRAPHS = ("chelsea", "astronaut", "china", "coffee")  # of the embedded set
SCENES = 2  # composed validation scenes beside them


@dataclass(frozen=True)
class ReportPictures:
    """The pictures, the sentence that says how they relate to the training images, and their credits."""

    pictures: list[Picture]
    relation: str
    credits: str = ""

    def outros(self, sections: list[str]) -> dict[str, str]:
        """The text below each section with maps: the relation everywhere, the credits below the last one."""
        texts = dict.fromkeys(sections, self.relation)
        if sections and self.credits:
            texts[sections[-1]] = f"{self.relation} {self.credits}"
        return texts


def _trained_names(folder: Path, config: EvaluateConfig) -> set[str]:
    """Names of the run's training images, where they come from the set that is measured (kinds may differ: one folder
    may be read as several)."""
    data = read_config(folder).data
    if data.root != config.data.root or data.root is None and data.kind != config.data.kind:
        return set()
    source = open_images(data.kind, data.root, data.split, data.limit, data.every)
    return {source.name(i) for i in range(len(source))}


def _relation(shown: dict[str, str], trained: set[str], split: str) -> str:
    """`shown`: the name in the page by the name in the set."""
    seen = [name for key, name in shown.items() if key in trained]
    if not seen:
        return f"None of these pictures is one of the run's training images; they come from “{split}”."
    if len(seen) == len(shown):
        return "All of these pictures are training images of the run: the maps show no generalisation."
    return (
        f"{', '.join(seen)}: training images of the run, so their maps show no generalisation. The others are not; "
        f"they come from “{split}”."
    )


def _credits(names: tuple[str, ...]) -> str:
    def credit(name: str) -> str:
        photo = (PHOTOS | TEXTURES)[name]
        return f"{name} by {photo.credit} ({photo.licence}, from {photo.package})"

    others = [name for name in PHOTOS | TEXTURES if name not in names]
    return (
        f"Photographs, squashed to one size: {'; '.join(map(credit, names))}. The scenes are drawn and composed of cut "
        f"and recoloured parts of these and of {'; '.join(map(credit, others))}. CC BY 2.0: "
        "https://creativecommons.org/licenses/by/2.0/."
    )


def choose_pictures(folder: Path, config: EvaluateConfig, encoder: DenseEncoder) -> ReportPictures:
    """Four validation images at even distances; of the embedded set four photographs and two validation scenes."""
    size, split = config.data.image_size, config.probe.val_split
    trained = _trained_names(folder, config)
    source = open_labelled(config.data.kind, config.data.root, split)
    if config.data.kind != "scenes":
        pictures = spread_pictures(source, 4, size, encoder)
        return ReportPictures(pictures, _relation({p.name: p.name for p in pictures}, trained, split))
    photographs = [picture(name, load_photo(name), size, encoder) for name in PHOTOGRAPHS]
    scenes = spread_pictures(source, SCENES, size, encoder)
    shown = {f"photographs/{p.name}": p.name for p in photographs} | {p.name: p.name for p in scenes}
    relation = _relation(shown, trained, split)
    if any(name.startswith("photographs/") for name in trained):
        relation += " The composed scenes hold parts of photographs that the run was trained on."
    return ReportPictures([*photographs, *scenes], relation, _credits(PHOTOGRAPHS))
