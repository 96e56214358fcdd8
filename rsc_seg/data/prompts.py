"""Prompt sets and class names: the sentences whose embeddings stand for a class."""

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from rsc_seg.data.vocab import Vocabulary
from rsc_seg.errors import UserError, suggestion

ARTICLE = "{article}"
PROMPT_SETS = ("single", "vild", "imagenet", "clipself", "catseg", "catseg_v1")
_SINGLE = ("a photo of a {}.",)
_CATSEG = ("A photo of a {} in the scene",)
_BRACES = re.compile(r"[{}]")
_FILE_NAME = re.compile(r"[/\\]|\.\w+$")


@dataclass(frozen=True)
class PromptSet:
    """Templates and how a class name becomes words.

    `templates` hold `{}` once, and perhaps `{article}`. `synonyms`: `mean` takes all synonyms of a name, `first` the
    first, `whole` never splits it. `separators`: the first of them that a name holds splits it. `vild`: names and
    sentences get ViLD's handling, see `class_sentences`.
    """

    name: str
    templates: tuple[str, ...]
    synonyms: str = "mean"
    separators: tuple[str, ...] = (";", ",")
    vild: bool = False


@functools.cache
def _vild_templates() -> tuple[str, ...]:
    text = resources.files("rsc_seg.data").joinpath("templates", "vild.json").read_text(encoding="utf-8")
    return tuple(json.loads(text)["templates"])


@functools.cache
def _imagenet_templates() -> tuple[str, ...]:
    # open_clip takes seconds to import, and class lists are used without any model
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return tuple(fill("{}") for fill in OPENAI_IMAGENET_TEMPLATES)


_MAKERS: dict[str, Callable[[], PromptSet]] = {
    "single": lambda: PromptSet("single", _SINGLE),
    "vild": lambda: PromptSet("vild", _vild_templates(), vild=True),
    "imagenet": lambda: PromptSet("imagenet", _imagenet_templates()),
    "clipself": lambda: PromptSet("clipself", _vild_templates(), synonyms="whole", vild=True),
    "catseg": lambda: PromptSet("catseg", _CATSEG, synonyms="first", separators=(", ",)),
    "catseg_v1": lambda: PromptSet("catseg_v1", _imagenet_templates(), separators=(", ",)),
}


def _check_template(template: str, where: str) -> str:
    if template.count("{}") != 1:
        raise UserError(f"{where}: '{template}' must hold {{}} once, where the class name goes.")
    if _BRACES.search(template.replace("{}", "").replace(ARTICLE, "")):
        raise UserError(f"{where}: '{template}' has a brace besides {{}} and {ARTICLE}; remove it.")
    return template


def _read_lines(path: Path, what: str) -> list[tuple[str, str]]:
    """(text, place) of a file's lines that are not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{path}: not UTF-8 text (byte {e.start}); save the {what} as UTF-8.") from e
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror or e}); give a text file of {what}.") from e
    lines = [(line.strip(), f"{path}, line {n}") for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{path}: holds no {what}; write one on each line.")
    return lines


def open_prompts(prompts: str | Path | Sequence[str]) -> PromptSet:
    """The prompt set of a name in `PROMPT_SETS`, of templates, or of a text file with one template on each line.

    `single`, `vild` (63 templates) and `imagenet` (80) take the mean over synonyms. Official rules by name: `clipself`
    (its region classification: `vild` with names never split), `catseg` (the CVPR version: one template, first synonym)
    and `catseg_v1` (80 templates kept apart, mean over synonyms), which split names at ", ". Raises UserError for an
    unknown name or a template that does not hold {} once; in a file it names the line.
    """
    if isinstance(prompts, (str, Path)):
        name = str(prompts)
        if name in _MAKERS:
            return _MAKERS[name]()
        if isinstance(prompts, str) and "{" in name:
            prompts = [name]
        elif not Path(name).exists() and not _FILE_NAME.search(name):
            known = ", ".join(PROMPT_SETS)
            raise UserError(
                f"prompts '{name}': neither {known} nor a text file of templates.{suggestion(name, PROMPT_SETS)}"
            )
        else:
            lines = _read_lines(Path(name).expanduser(), "templates")
            return PromptSet(Path(name).name, tuple(_check_template(line, place) for line, place in lines))
    if not prompts:
        raise UserError("prompts: the list of templates is empty; give at least one such as 'a photo of a {}.'.")
    return PromptSet("custom", tuple(_check_template(t, f"prompts[{i}]") for i, t in enumerate(prompts)))


def split_synonyms(name: str, separators: Sequence[str] = (";", ",")) -> list[str]:
    """The synonyms of a class name: split at the first of `separators` that it holds, blanks around them removed.

    A name with ";" may therefore hold commas. Empty parts are left out.
    """
    separator = next((s for s in separators if s in name), None)
    parts = [name] if separator is None else name.split(separator)
    return [part.strip() for part in parts if part.strip()]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _plain_word(word: str) -> str:
    return word.replace("_", " ").replace("/", " or ").lower().rstrip(".")


def _sentence(template: str, word: str, vild: bool) -> str:
    # the article first, so that a class name with braces stays as it is; ViLD chooses it by the name as written
    text = template.replace(ARTICLE, _article(word)).replace("{}", _plain_word(word) if vild else word)
    return f"This is {text}" if vild and text.startswith(("a", "the")) else text


def class_sentences(names: Sequence[str], prompts: PromptSet) -> list[list[list[str]]]:
    """Sentences by class, template and synonym.

    With `prompts.vild`, as in ViLD and CLIPSelf: names in lower case, "_" a blank, "/" " or ", dots at the end dropped;
    the article "an" before one of aeiou in the name as written (a capital gets "a"); "This is " before a sentence that
    begins with "a" or "the". Raises UserError for an empty name, by its number.
    """
    sentences = []
    for i, name in enumerate(names):
        words = [name.strip()] if prompts.synonyms == "whole" else split_synonyms(name, prompts.separators)
        words = [word for word in words if _plain_word(word).strip()]
        if not words:
            raise UserError(f"class {i} of {len(names)}: its name '{name}' holds no word; name every class.")
        words = words[:1] if prompts.synonyms == "first" else words
        sentences.append([[_sentence(t, word, prompts.vild) for word in words] for t in prompts.templates])
    return sentences


def vocabulary_names(vocabulary: Vocabulary) -> list[str]:
    """Class names with the synonyms that the list itself has, joined by ", "."""
    return [", ".join([c.name, *c.extra.get("synonyms", ())]) for c in vocabulary.classes]
