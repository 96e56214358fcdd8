import numpy as np
import pytest
import torch
from PIL import Image

from rsc_seg.errors import UserError
from rsc_seg.viz.colors import colorize
from rsc_seg.viz.coupling import CouplingExample
from rsc_seg.viz.gallery import Shot, affinity_groups, coupling_groups, norm_group, pca_group
from rsc_seg.viz.maps import affinity
from rsc_seg.viz.png import compose, save_groups


def test_affinity_maps_of_all_models_and_pictures_share_one_scale(shots: list[Shot]) -> None:
    groups = affinity_groups(shots, queries=2)
    assert [g.title for g in groups] == ["photo 0", "photo 10"]
    assert groups[0].scale == groups[1].scale is not None
    assert [[f.label for f in row] for row in groups[0].rows] == [
        ["query 1", "before", "after"],
        ["query 2", "before", "after"],
    ]
    # a corner far from the cross has the colour that the one scale gives to its cosine
    for column, name in ((1, "before"), (2, "after")):
        value = affinity(shots[0].maps[name], (4, 6))[8, 0]
        shown = np.asarray(groups[0].rows[0][column].image)[-1, 0]
        assert (shown == colorize(np.array([[value]]), groups[0].scale)[0, 0]).all()


def test_queries_by_hand_replace_the_rule(shots: list[Shot]) -> None:
    shots[0].queries = [(0, 0)]
    groups = affinity_groups(shots, queries=3)
    assert [len(g.rows) for g in groups] == [1, 3]
    assert "token row 1, column 1" in groups[0].rows[0][0].alt


def test_pca_of_a_set_and_separate_ones(shots: list[Shot]) -> None:
    one, joined, apart = (pca_group(shots, scope) for scope in ("image", "set", "separate"))
    assert len(one.rows) == 2 and len(one.rows[0]) == 3
    pictures = [np.asarray(group.rows[0][1].image) for group in (one, joined, apart)]
    assert (pictures[0] != pictures[1]).any() and (pictures[0] != pictures[2]).any()
    assert "do not compare" in one.about and "do not compare" in apart.about and "do not compare" not in joined.about
    assert "own mean" in pca_group(shots, center="each").about
    with pytest.raises(UserError, match="pca=all"):
        pca_group(shots, "all")


def test_norms_measured_elsewhere_are_never_mixed_with_others(shots: list[Shot]) -> None:
    assert [f.label for f in norm_group(shots).rows[0]] == ["photo 0", "before", "after"]
    shots[0].norms = shots[1].norms = {"before": np.linspace(1, 9, 108).reshape(9, 12)}
    group = norm_group(shots, definition="before the final norm")
    assert [f.label for f in group.rows[0]] == ["photo 0", "before"]
    assert group.scale is not None and (group.scale.low, group.scale.high) == (1, 9)
    assert "before the final norm" in group.about


def test_unequal_grids_are_named(shots: list[Shot]) -> None:
    shots[0].maps = {"a": torch.zeros(4, 9, 12), "b": torch.zeros(4, 8, 12)}
    with pytest.raises(UserError, match="photo 0: .*a 9x12, b 8x12"):
        affinity_groups(shots)


def test_bilinear_is_said_and_drawn(shots: list[Shot]) -> None:
    nearest, bilinear = affinity_groups(shots, 1)[0], affinity_groups(shots, 1, mode="bilinear")[0]
    assert "one token" in nearest.about and "interpolated" in bilinear.about
    colors = [len(g.rows[0][1].image.getcolors(100_000)) for g in (nearest, bilinear)]
    assert colors[0] <= 9 * 12 + 2 < colors[1]


def test_coupling_strips_show_match_alone_joint_and_difference(coupling_example: CouplingExample) -> None:
    group = coupling_groups([coupling_example])[0]
    assert [f.label for f in group.rows[1]] == ["coupled: best match", "alone", "side by side", "difference"]
    assert len(group.rows) == 3
    # the uncoupled model's difference is the pale middle of the scale
    pale = np.asarray(group.rows[2][3].image)[2, 2]
    assert pale.min() > 225
    assert coupling_groups([]) == []
    with pytest.raises(UserError, match="at least one model"):
        coupling_groups([CouplingExample("e", coupling_example.image_a, coupling_example.image_b, (0, 0))])


def test_png_files_carry_command_and_alt_texts(shots: list[Shot], tmp_path) -> None:
    groups = [*affinity_groups(shots, 1), pca_group(shots), affinity_groups(shots, 1)[0]]
    paths = save_groups(groups, tmp_path / "maps", "rscv-visualize café.jpg --backbone tiny")
    names = ["affinity-maps-photo-0", "affinity-maps-photo-10", "joint-pca", "affinity-maps-photo-0-2"]
    assert [p.name for p in paths] == [f"{name}.png" for name in names]
    with Image.open(paths[0]) as image:
        assert image.text["Command"] == "rscv-visualize café.jpg --backbone tiny"
        assert image.text["Title"] == "photo 0" and image.text["Software"] == "rsc-seg"
        assert "Affinity map of after" in image.text["Description"]
    assert b"tEXtTitle" in paths[0].read_bytes()
    assert sorted(tmp_path.joinpath("maps").iterdir()) == sorted(paths)


def test_the_strip_keeps_the_tokens_sharp(shots: list[Shot]) -> None:
    group = affinity_groups(shots, 1)[0]
    canvas = np.asarray(compose(group, "a footer"))
    assert canvas.shape[1] == 2 * 16 + 3 * 336 + 2 * 10
    # the same colours as in the map itself: nothing between two tokens was blended
    cell = canvas[16 + 30 + 20 :, 16 + 336 + 10 :][:252, :336]
    source = {tuple(c) for c in np.asarray(group.rows[0][1].image).reshape(-1, 3)}
    assert {tuple(c) for c in cell.reshape(-1, 3)} <= source
