"""Which measures of which runs stand in one table, why others do not, and the table itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rsc_seg.pipelines.compare_parts import Entry, Measured, Run
from rsc_seg.viz.bars import Bars, bar_chart
from rsc_seg.viz.parts import Cell, Chart, Column, Row, Table

MOST_REASONS = 6  # differences that a caption names
MOST_BARS = 4  # encoders beside each other in a chart
ENDS = 8  # classes at each end of a chart
_ABSENT = "not set"


@dataclass(frozen=True)
class Line:
    """An entry of a run in a group, under the name that its row has."""

    run: Run
    entry: Entry
    name: str
    note: str
    result: bool  # what its run comes to


@dataclass
class Group:
    """Measures under one protocol. `apart`: how it differs from the first group of its family."""

    family: str
    title: str
    members: list[tuple[Run, Measured]] = field(default_factory=list)
    apart: str = ""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """What all members share."""
        return self.members[0][1].protocol

    def columns(self) -> list[Column]:
        """The columns of all members."""
        found: dict[str, Column] = {}
        for _, measured in self.members:
            for column in measured.columns:
                found.setdefault(column.key, column)
        return list(found.values())


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 4:
        return f"{len(value)} entries"
    return _ABSENT if value is None else str(value)


def protocol_differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """`what: value here, value there` for everything in which two protocols differ."""
    found = []
    for key in dict.fromkeys([*other, *one]):
        here, there = one.get(key), other.get(key)
        if here == there:
            continue
        if isinstance(here, list) and isinstance(there, list) and len(here) == len(there) > 4:
            found.append(f"{key}: others")
        else:
            found.append(f"{key}: {_shown(here)} here, {_shown(there)} there")
    return found


def grouped(runs: Sequence[Run], reference: Run) -> list[Group]:
    """Groups of comparable measures, those of a family one after another, the reference run's own first."""
    groups: list[Group] = []
    ordered = [reference, *(run for run in runs if run is not reference)]
    for run in ordered:
        for measured in run.measures:
            same = [g for g in groups if g.family == measured.family and g.protocol == measured.protocol]
            group = same[0] if same else Group(measured.family, measured.title)
            if not same:
                groups.append(group)
            group.members.append((run, measured))
    families = list(dict.fromkeys(group.family for group in groups))
    groups.sort(key=lambda group: families.index(group.family))
    for group in groups:
        first = next(g for g in groups if g.family == group.family)
        if group is not first:
            reasons = protocol_differences(group.protocol, first.protocol)
            more = f"; and {len(reasons) - MOST_REASONS} more" if len(reasons) > MOST_REASONS else ""
            group.apart = (
                f"Not comparable with the table “{first.title}” of {', '.join(r.name for r, _ in first.members)}: "
                f"{'; '.join(reasons[:MOST_REASONS])}{more}."
            )
    return groups


def _plain(entry: Entry) -> tuple[Any, ...]:
    return entry.name, tuple((key, cell.value, cell.spread) for key, cell in sorted(entry.numbers.items()))


def lines_of(group: Group) -> list[Line]:
    """The rows of a group; a start that several runs share, with equal numbers, is one row."""
    found: list[Line] = []
    starts: dict[tuple[Any, ...], int] = {}
    for run, measured in group.members:
        for place, entry in enumerate(measured.entries):
            result = measured.is_result(place)
            name = f"{run.name}: {entry.name}" if len(group.members) > 1 else entry.name
            if place == 0 and not result:
                known = starts.get(_plain(entry))
                if known is not None:
                    line = found[known]
                    also = f"the same numbers in {run.name}"
                    note = f"{line.note}; {also}" if line.note else also
                    found[known] = Line(line.run, line.entry, line.entry.name, note, line.result)
                    continue
                starts[_plain(entry)] = len(found)
            found.append(Line(run, entry, name, entry.note, result))
    names = [line.name for line in found]
    # a start whose name is its own alone again must still be told from another run's start
    return [
        line if names.count(line.name) == 1 else Line(line.run, line.entry, f"{line.run.name}: {line.name}", *rest)
        for line, rest in ((line, (line.note, line.result)) for line in found)
    ]


def reference_line(lines: Sequence[Line]) -> int:
    """The row that others are compared with: what the first run comes to, or of a run alone its first row."""
    if len({id(line.run) for line in lines}) == 1:
        return 0
    return next(k for k, line in enumerate(lines) if line.result and line.run is lines[0].run)


def group_table(group: Group, lines: Sequence[Line], heading: str) -> Table:
    """All rows with their differences from the reference row."""
    reference = reference_line(lines)
    rows = [
        Row(line.name, line.entry.numbers, line.note, reference=k == reference and len(lines) > 1)
        for k, line in enumerate(lines)
    ]
    about = [group.apart, group.members[0][1].about]
    return Table(heading, group.columns(), rows, " ".join(text for text in about if text), first="run, encoder")


def _with_classes(lines: Sequence[Line]) -> list[Line]:
    """What charts and tables of classes show: what each run comes to, or of one run all its rows."""
    known = [line for line in lines if line.entry.classes]
    if len({id(line.run) for line in known}) > 1:
        reference = known[0].run
        first = [line for line in known if line.run is reference and line.result] or known[:1]
        return [*first, *(line for line in known if line.result and line.run is not reference)]
    return known


def _changes(lines: Sequence[Line], k: int) -> list[float]:
    start = lines[0].entry.classes[k]
    found = [line.entry.classes[k] for line in lines[1:]]
    return [value - start for value in found if value is not None and start is not None]


def class_charts(group: Group, lines: Sequence[Line], section: str) -> list[Chart]:
    """Bars of the classes that gained and lost most against the reference, or of the best and the worst of one row."""
    held = _with_classes(lines)
    if not held:
        return []
    names, title = group.members[0][1].class_names, group.members[0][1].class_title
    shown = held[:MOST_BARS]
    sums: dict[int, float] = {}
    for k in range(len(names)):
        if len(shown) > 1:
            changes = _changes(shown, k)
            sums |= {k: sum(changes) / len(changes)} if changes else {}
        else:
            value = shown[0].entry.classes[k]
            sums |= {k: value} if value is not None else {}
    order = sorted(sums, key=lambda k: -sums[k])
    ends = min(ENDS, max(1, len(order) // 2))
    words = ("gained most", "lost most") if len(shown) > 1 else ("best", "worst")
    left_out = f" The first {MOST_BARS} of {len(held)} are shown." if len(held) > MOST_BARS else ""
    about = f"{title}; by the mean change from {shown[0].name}.{left_out}" if len(shown) > 1 else f"{title}."
    charts = []
    for word, places in zip(words, (order[:ends], order[::-1][:ends]), strict=True):
        if not places:
            continue
        heading = f"{group.title}: classes that {word}" if len(shown) > 1 else f"{group.title}: the {word} classes"
        series = [Bars(line.name, [line.entry.classes[k] for k in places]) for line in shown]
        svg = bar_chart(heading, [names[k] for k in places], series, x_label=title)
        charts.append(Chart(heading, svg, about, section))
    return charts


def class_table(group: Group, lines: Sequence[Line], section: str) -> list[Table]:
    """Every class of every shown row, with the change from the first of them, to be folded out."""
    held = _with_classes(lines)
    if not held:
        return []
    measured = group.members[0][1]
    columns: list[Column] = []
    for k, line in enumerate(held):
        columns.append(Column(f"value{k}", line.name, better="higher"))
        columns += [Column(f"change{k}", "change")] if k else []
    rows = []
    for t, name in enumerate(measured.class_names):
        start = held[0].entry.classes[t]
        cells: dict[str, Cell | float | None] = {}
        for k, line in enumerate(held):
            value = line.entry.classes[t]
            cells[f"value{k}"] = value
            cells[f"change{k}"] = None if value is None or start is None else value - start
        rows.append(Row(name, cells))
    caption = f"{measured.class_title}; – is a class without a number; change: from {held[0].name}."
    heading = f"All {len(rows)} classes: {group.title}"
    return [Table(heading, columns, rows, caption, section, "class", folded=True)]
