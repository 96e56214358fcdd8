"""A result of CAUSE in words and plain text: what was done, the table, what may be read out of it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from rsc_seg.cause.stages import whole_patches
from rsc_seg.models.encoder import DenseEncoder
from rsc_seg.pipelines.cause_plan import Plan

# in the order of every table; the row with flip and CRF is the officially reported one
ROWS = {
    "cluster": "clusters",
    "cluster flip": "clusters, flip",
    "cluster crf": "clusters, CRF",
    "cluster flip crf": "clusters, flip + CRF",
    "linear": "linear probe (uses labels)",
    "linear flip": "linear probe, flip (uses labels)",
}
SCORES = {"miou": "mIoU", "pacc": "pAcc", "macc": "mAcc"}
DEFINITIONS = (
    "mIoU: mean over classes that occur in labels or predictions; pAcc: share of right pixels; mAcc: mean recall of "
    "the classes in the labels; all in percent, from all pixels of the set together."
)
_HEADS = {"tr": "CAUSE-TR", "mlp": "CAUSE-MLP"}
_GRADS = {
    "detached": "labels train the linear probe alone and never reach the head or the clusters",
    "released": "the linear probe's gradient trains the head in step 3, as in the released code: the clusters have "
    "seen labels, and this is not an unsupervised result",
}


def ordered(rows: Collection[str]) -> list[str]:
    """The rows of an evaluation in the order of the tables."""
    return [row for row in ROWS if row in rows]


def headline_row(rows: Collection[str]) -> str:
    """The cluster row that stands for a result: with flip and CRF where they were made."""
    return next(row for row in ("cluster flip crf", "cluster crf", "cluster flip", "cluster") if row in rows)


def _frame(plan: Plan, encoder: DenseEncoder) -> str:
    side = whole_patches(plan.options.test_resolution, encoder.patch_size)
    rule = plan.sets.val.rule
    if plan.config.score.full_image:
        return (
            f"whole images, short side {side} pixels, square windows averaged where they overlap: this project's own "
            "protocol, whose numbers do not compare with the official centre square's"
        )
    if rule.squash:
        return f"images stretched to {side}x{side} pixels (official for this set)"
    return f"the centre square of every image, {side}x{side} pixels (official: the rest of the image is not scored)"


def _crf(plan: Plan) -> str:
    if plan.crf:
        return "CRF: pydensecrf2 with the official parameters" + (
            "" if plan.config.score.flip else " (the official row has flip as well: --flip)"
        )
    if plan.config.score.crf == "off":
        return "no CRF rows: switched off (--crf off)"
    return "no CRF rows: pydensecrf2 is not installed (rsc-seg[crf])"


def _seeds(plan: Plan) -> str:
    seeds = plan.seeds
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"


def protocol_lines(plan: Plan, encoder: DenseEncoder, given: Sequence[Path]) -> list[str]:
    """What a reader needs to know before comparing any of the numbers, in three sentences."""
    data, cause, val = plan.config.data, plan.config.cause, plan.sets.val
    frame = _frame(plan, encoder)
    scored = (
        f"Scored on {len(val.data)} images of {val.rule.title}, split {data.val_split} ({val.images}): {frame}; "
        f"clusters are named by the Hungarian method on these very images; {_crf(plan)}."
    )
    if given:
        trained = (
            f"CAUSE weights as given ({', '.join(p.name for p in given)}); how they were trained is not known here."
        )
        return [scored, trained, DEFINITIONS]
    train = plan.sets.train
    count = 0 if train is None else len(train.data)
    what = "stored crops" if data.stored_crops else "images, cropped on the fly"
    trained = (
        f"Trained on {count} {what} (split {data.train_split}, {'' if train is None else train.images}): "
        f"{_HEADS[cause.head]}, preset {cause.preset}"
        f"{', but ' + ', '.join(plan.changed) if plan.changed else ''}, {_seeds(plan)}; "
        f"probe gradient {cause.probe_grad}: {_GRADS[cause.probe_grad]}."
    )
    return [scored, trained, DEFINITIONS]


def signed(change: float) -> str:
    """A change with its sign, and zero without the sign of what was rounded away."""
    return f"{round(change, 1) + 0.0:+.1f}"


def _cell(summary: Mapping[str, Any], change: Optional[float]) -> str:
    text = f"{summary['mean']:.1f}" + ("" if summary["std"] is None else f"±{summary['std']:.1f}")
    return text if change is None else f"{text} ({signed(change)})"


def _aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    cells = (
        [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(x, widths, strict=True))] for x in lines
    )
    return ["  ".join(line).rstrip() for line in cells]


def text_table(result: Mapping[str, Any]) -> list[str]:
    """Aligned columns for a console: every kind of score, and in it every encoder with its change from the first."""
    header = ["scores", "encoder", *SCORES.values()]
    lines: list[list[str]] = []
    for row in ordered(result["rows"][0]["scores"]):
        for k, entry in enumerate(result["rows"]):
            delta = entry["delta"]
            cells = [_cell(entry["scores"][row][key], delta and delta[row][key]) for key in SCORES]
            lines.append(["" if k else ROWS[row], entry["name"], *cells])
    table = _aligned([header, *lines], left=2)
    return [table[0], "-" * max(map(len, table)), *table[1:]]


def _legend(result: Mapping[str, Any]) -> str:
    count = len(result["rows"][0]["seeds"])
    over = f"±: standard deviation over {count} seeds of CAUSE on one encoder"
    single = "one run of CAUSE: its spread over seeds is not known" if result["recipe"] else "given CAUSE weights"
    parts = [single if count == 1 else over]
    if len(result["rows"]) > 1:
        parts.append("in brackets: change from the first encoder")
    return "; ".join(parts) + "."


def seed_lines(result: Mapping[str, Any]) -> list[str]:
    """The mIoU of every seed, of the row that stands for the result; nothing for a single run."""
    row = headline_row(result["rows"][0]["scores"])
    lines = []
    for entry in result["rows"]:
        values = [f"{seed['scores'][row]['miou']:.1f} (seed {seed['seed']})" for seed in entry["seeds"]]
        lines += [f"{ROWS[row]}, mIoU, {entry['name']}: {', '.join(values)}"] if len(values) > 1 else []
    return lines


def dead_lines(result: Mapping[str, Any]) -> list[str]:
    """Encoders with clusters that no pixel went to, by seed where there are several."""
    lines = []
    row = headline_row(result["rows"][0]["scores"])
    for entry in result["rows"]:
        counts = [len(seed["scores"][row]["dead_clusters"]) for seed in entry["seeds"]]
        if any(counts):
            total = len(result["classes"])
            by_seed = " (by seed)" if len(counts) > 1 else ""
            lines.append(f"{entry['name']}: {', '.join(map(str, counts))} of {total} clusters{by_seed} got no pixel.")
    return lines


def result_lines(result: Mapping[str, Any]) -> list[str]:
    """A result for a console: table, protocol, and what has to be said about the weights."""
    notes = [f"{entry['name']}: {entry['note']}" for entry in result["rows"] if entry["note"]]
    weights = [note for note in [result["rows"][0]["weights"]["note"]] if note]
    table = [*text_table(result), "", _legend(result), *seed_lines(result)]
    return [*table, *result["protocol"], *dead_lines(result), *notes, *weights]
