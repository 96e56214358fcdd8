"""The numbers that the paper prints, by table; none of them was measured here."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Optional

UNTUNED = "untuned"
# where a table's numbers come from, for tables that no measure of this project fills
NOT_MEASURED = {
    "detection": "a detector (F-ViT) is trained for it, and this project has none",
    "catseg": "needs whole Cat-Seg models, not encoders: tools/train_catseg.py --eval-only --weights MODEL on each set",
    "ablation": "needs a training run a row: tools/ablate.py configs/ablation/*.yaml (and a detector for AP50)",
}


@dataclass(frozen=True)
class PaperRow:
    """A printed row: method, our name of its backbone, numbers by metric.

    `boxes` (grid | proposals) of region-language alignment and the training set `trained` where the paper has both
    kinds.
    """

    method: str
    backbone: str
    numbers: Mapping[str, float]
    boxes: Optional[str] = None
    trained: Optional[str] = None


@dataclass(frozen=True)
class PaperTable:
    """A printed table: what it measures, on which data, and what the paper leaves open.

    `set` names our set where a measure has several; `pictures` is the size of the official split.
    """

    id: str
    title: str
    measure: str
    metrics: Sequence[str]
    rows: Sequence[PaperRow]
    data: str
    set: Optional[str] = None
    pictures: Optional[int] = None
    digits: int = 1
    unstated: Sequence[str] = ()
    note: str = ""

    @property
    def name(self) -> str:
        """As a reader knows it: Table 1, Figure 6 (a)."""
        return self.id if self.id.startswith("Figure") else f"Table {self.id}"

    @property
    def methods(self) -> list[str]:
        """Methods of its rows."""
        return list(dict.fromkeys(row.method for row in self.rows))


def _size(backbone: str) -> str:
    return backbone.partition("_")[2][:5]  # vitb1, vitl1


def nearest_rows(table: PaperTable, method: str, backbone: str) -> list[PaperRow]:
    """Rows of a method: of this backbone, else of one of its size, else of the first backbone that the table has.

    A CLIP stands beside CLIPs alone, and DINOv2 beside DINOv2.
    """
    dinov2 = backbone.startswith("dinov2")
    own = [row for row in table.rows if row.method == method and row.backbone.startswith("dinov2") == dinov2]
    for wanted in (
        lambda row: row.backbone == backbone,
        lambda row: _size(row.backbone) == _size(backbone),
        lambda row: row.backbone == own[0].backbone,
    ):
        found = [row for row in own if wanted(row)]
        if found:
            return [row for row in found if row.backbone == found[0].backbone]
    return []


@functools.cache
def paper_tables() -> tuple[PaperTable, ...]:
    """Every table with numbers, in the paper's order of their names' first appearance."""
    text = resources.files("rsc_seg.data").joinpath("paper/numbers.json").read_text(encoding="utf-8")
    found = []
    for table in json.loads(text)["tables"]:
        rows = [
            PaperRow(
                row["method"],
                row["backbone"],
                dict(zip(table["metrics"], row["numbers"], strict=True)),
                row.get("boxes"),
                row.get("trained"),
            )
            for row in table["rows"]
        ]
        found.append(PaperTable(**{**table, "rows": rows}))
    return tuple(found)


def paper_source() -> str:
    """Which paper the numbers stand in."""
    text = resources.files("rsc_seg.data").joinpath("paper/numbers.json").read_text(encoding="utf-8")
    return str(json.loads(text)["paper"])
