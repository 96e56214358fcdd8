"""What a report is made of: tables, charts and groups of pictures, as plain dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Optional

from PIL import Image

from rsc_seg.viz.colors import ColorScale
from rsc_seg.viz.drawing import Drawing

SECTIONS = ("Results", "Training curves", "Affinity maps", "Joint PCA", "Token norms", "Coupling")


@dataclass(frozen=True)
class Column:
    """A column of numbers: its key in the rows, heading, unit, decimals, and which direction is better, if any."""

    key: str
    title: str
    unit: str = ""
    digits: int = 1
    better: Literal["higher", "lower", "one", ""] = ""  # one: nearer to 1


@dataclass(frozen=True)
class Cell:
    """A measured number, its spread (of what: the table's caption says) and a remark in words."""

    value: float | None
    spread: float | None = None
    text: str = ""


@dataclass
class Row:
    """A row: name, cells by column key, and a note that is printed below the table under the row's name.

    At most one row of a table is the `reference` whose differences the others show.
    """

    name: str
    cells: Mapping[str, Cell | float | None]
    note: str = ""
    reference: bool = False


@dataclass
class Table:
    """Rows of numbers; `caption` says what was measured on what, and over what the spread was taken.

    `folded`: the page shows it when its heading is opened.
    """

    title: str
    columns: list[Column]
    rows: list[Row]
    caption: str = ""
    section: str = "Results"
    first: str = "encoder"  # heading of the names' column
    folded: bool = False


@dataclass
class Chart:
    """An SVG string from `rsc_seg.viz.charts` with its heading and a remark."""

    title: str
    svg: str
    caption: str = ""
    section: str = "Training curves"


@dataclass
class Figure:
    """One picture: alt text, label above, small remark below.

    `tokens`: a map at token or upsampled resolution (stored as PNG, never smoothed); otherwise a photograph (JPEG).
    `span`: columns of the strip that it takes, 1 or 2. `drawing`: what `image` was painted from, where it is letters
    and shapes; a page then stores the image without loss.
    """

    image: Image.Image
    alt: str
    label: str = ""
    note: str = ""
    tokens: bool = True
    span: int = 1
    drawing: Optional[Drawing] = None


@dataclass
class FigureGroup:
    """Strips of pictures to compare, with the one colour scale (or none) that holds for all its maps.

    `about` says how to read such maps; groups of a section share it and the report prints it once above them.
    """

    title: str
    rows: list[list[Figure]]
    caption: str = ""
    scale: ColorScale | None = None
    about: str = ""
    section: str = "Affinity maps"


@dataclass
class Report:
    """Everything that a report shows. What is empty is left out.

    `provenance` (where the weights come from, under what licence) stands in a box at the top; `summary` says what was
    found, `limits` what the numbers do not show. `intros` and `outros` hold a text above and below
    a section by its name. Sections with tables,
    charts or figures stand in the order of `sections`, others follow in the order in which they first appear.
    """

    title: str
    subtitle: str = ""
    provenance: str = ""
    summary: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    figures: list[FigureGroup] = field(default_factory=list)
    intros: dict[str, str] = field(default_factory=dict)
    outros: dict[str, str] = field(default_factory=dict)
    sections: list[str] = field(default_factory=lambda: list(SECTIONS))
    config_yaml: str = ""
    command: str = ""
    environment: dict[str, str] = field(default_factory=dict)
