"""Prompt sets, class names and the sentences that they make."""

import hashlib
from pathlib import Path

import pytest

from rsc_seg.data import vocab
from rsc_seg.data.prompts import (
    PROMPT_SETS,
    PromptSet,
    class_sentences,
    open_prompts,
    split_synonyms,
    vocabulary_names,
)
from rsc_seg.errors import UserError

ONE = PromptSet("one", ("a photo of a {}.",))


def first(name: str, prompts: PromptSet) -> list[str]:
    """The first synonym's sentences."""
    return [cell[0] for cell in class_sentences([name], prompts)[0]]


def test_sets_have_their_published_sizes() -> None:
    sizes = {name: len(open_prompts(name).templates) for name in PROMPT_SETS}
    assert sizes == {"single": 1, "vild": 63, "imagenet": 80, "clipself": 63, "catseg": 1, "catseg_v1": 80}
    for name in PROMPT_SETS:
        assert open_prompts(name).name == name
        assert len(set(open_prompts(name).templates)) == sizes[name]
        assert all(template.count("{}") == 1 for template in open_prompts(name).templates)


def test_vild_templates_are_the_published_ones_in_their_order() -> None:
    templates = open_prompts("vild").templates
    assert sum("{article}" in template for template in templates) == 15
    digest = hashlib.sha256("\n".join(templates).encode()).hexdigest()
    assert digest == "93950afe1b680521d3ec1161d6576ce5288b26acb2263338329674abfb4160a1"


def test_imagenet_templates_are_open_clips() -> None:
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    assert first("fox", open_prompts("imagenet")) == [fill("fox") for fill in OPENAI_IMAGENET_TEMPLATES]


def test_vild_handles_names_articles_and_openings() -> None:
    sentences = first("Dining_table/desk.", open_prompts("vild"))
    assert sentences[0] == "There is a dining table or desk in the scene."
    assert sentences[2] == "This is a photo of a dining table or desk in the scene."
    assert sentences[5] == "itap of a dining table or desk."
    assert "This is the embroidered dining table or desk." in sentences
    assert "This is an embroidered dining table or desk." in sentences
    assert not any(s.startswith(("a", "the")) for s in sentences)
    assert first("orange", open_prompts("vild"))[0] == "There is an orange in the scene."
    # the article follows the name as written
    assert first("Orange", open_prompts("vild"))[0] == "There is a orange in the scene."


def test_plain_sets_leave_names_as_they_are() -> None:
    assert first(" Dining_table/desk. ", open_prompts("single")) == ["a photo of a Dining_table/desk.."]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cat", ["cat"]),
        ("cat,kitty", ["cat", "kitty"]),
        ("cat , kitty", ["cat", "kitty"]),
        ("cat;kitty", ["cat", "kitty"]),
        ("cat, domestic;kitty", ["cat, domestic", "kitty"]),
        ("cat;;kitty;", ["cat", "kitty"]),
    ],
)
def test_synonyms(name: str, words: list[str]) -> None:
    assert split_synonyms(name) == words
    assert class_sentences([name], ONE) == [[[f"a photo of a {word}." for word in words]]]


def test_official_rules_treat_synonyms_differently() -> None:
    name = "bag,purse, pouch"
    assert class_sentences([name], open_prompts("catseg")) == [[["A photo of a bag,purse in the scene"]]]
    v1 = class_sentences([name], open_prompts("catseg_v1"))[0]
    assert len(v1) == 80 and v1[0] == ["a bad photo of a bag,purse.", "a bad photo of a pouch."]
    whole = class_sentences([name], open_prompts("clipself"))[0]
    assert len(whole) == 63 and whole[0] == ["There is a bag,purse, pouch in the scene."]
    assert class_sentences([name], open_prompts("vild"))[0][0] == [
        f"There is a {word} in the scene." for word in ("bag", "purse", "pouch")
    ]


def test_clipself_and_vild_agree_on_names_without_synonyms() -> None:
    names = vocab.load("coco_panoptic_133").names
    assert class_sentences(names, open_prompts("clipself")) == class_sentences(names, open_prompts("vild"))


def test_order_is_class_template_synonym() -> None:
    prompts = open_prompts(["a {}", "the {} there"])
    assert class_sentences(["x;y", "z"], prompts) == [
        [["a x", "a y"], ["the x there", "the y there"]],
        [["a z"], ["the z there"]],
    ]


def test_braces_in_a_name_are_letters() -> None:
    assert class_sentences(["a {} {article}"], ONE) == [[["a photo of a a {} {article}."]]]


@pytest.mark.parametrize(
    ("prompts", "name"),
    [("single", ""), ("single", " ; "), ("vild", ","), ("clipself", "  "), ("catseg", ", ")],
)
def test_an_empty_name_is_refused_by_number(prompts: str, name: str) -> None:
    with pytest.raises(UserError, match=r"class 1 of 2: its name '.*' holds no word"):
        class_sentences(["sky", name], open_prompts(prompts))


def test_a_name_of_dots_has_no_word_left_under_vild() -> None:
    with pytest.raises(UserError, match="class 0 of 1"):
        class_sentences(["..."], open_prompts("vild"))


def test_custom_templates_from_a_list_a_string_and_a_file(tmp_path: Path) -> None:
    file = tmp_path / "street.txt"
    file.write_text("a street with a {}.\n\n  {article} {} at night\n", encoding="utf-8")
    wanted = ("a street with a {}.", "{article} {} at night")
    for prompts in (open_prompts(file), open_prompts(str(file)), open_prompts(list(wanted))):
        assert prompts.templates == wanted
    assert open_prompts(file).name == "street.txt"
    assert open_prompts("{} at dusk").templates == ("{} at dusk",)
    assert first("ox", open_prompts(file)) == ["a street with a ox.", "an ox at night"]


def test_custom_file_errors_name_the_line(tmp_path: Path) -> None:
    file = tmp_path / "bad.txt"
    file.write_text("a {}\n\na photo\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"bad\.txt, line 3: 'a photo' must hold \{\} once"):
        open_prompts(file)
    file.write_text("a {}\na {} and {}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: 'a \{\} and \{\}' must hold \{\} once"):
        open_prompts(file)
    file.write_text("a {} by {name}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1: .* has a brace besides"):
        open_prompts(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "holds no templates"), (b"a \xff {}", "not UTF-8 text")],
)
def test_unreadable_files(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.txt"
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"bad\.txt: {message}"):
        open_prompts(file)


def test_unknown_sets(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="prompts 'vlid': neither single, vild.* Did you mean 'vild'"):
        open_prompts("vlid")
    with pytest.raises(UserError, match=r"none\.txt: cannot be read"):
        open_prompts(tmp_path / "none.txt")
    with pytest.raises(UserError, match="list of templates is empty"):
        open_prompts([])
    with pytest.raises(UserError, match=r"prompts\[1\]: 'b' must hold"):
        open_prompts(["a {}", "b"])


def test_vocabulary_names_bring_the_lists_own_synonyms() -> None:
    ade = vocab.load("ade20k_150")
    names = vocabulary_names(ade)
    assert names[0] == "wall" and names[1] == "building, edifice"
    for prompts, parts in ((ONE, len(ade.by_name("building").extra["synonyms"]) + 1), (open_prompts("catseg"), 1)):
        assert len(class_sentences(names, prompts)[1][0]) == parts
    assert vocabulary_names(vocab.load("coco_stuff_171")) == vocab.load("coco_stuff_171").names
