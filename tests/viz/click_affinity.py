"""Uses the interactive affinity page in a browser and compares what it shows with the features inside the file."""

import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np


def held(page: Path) -> dict[str, Any]:
    """The data of a page."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.S)
    assert found is not None, f"{page}: no data"
    return json.loads(found.group(1))


def unpacked(data: dict[str, Any], picture: int, encoder: int) -> np.ndarray:
    """(L, K) tokens of one map as the page holds them, of unit length."""
    one = data["pictures"][picture]["maps"][encoder]
    values = np.frombuffer(base64.b64decode(one["values"]), np.int8).reshape(-1, data["width"])
    scales = np.frombuffer(base64.b64decode(one["scales"]), "<f4")
    return values.astype(np.float64) * scales[:, None]


def expected(data: dict[str, Any], picture: int, token: int) -> list[np.ndarray]:
    """The cosines of a token with all, for every encoder."""
    maps = [unpacked(data, picture, k) for k in range(len(data["encoders"]))]
    return [tokens @ tokens[token] for tokens in maps]


def _shown(browser: Any) -> dict[str, Any]:
    return browser.ask(
        "(() => { const s = affinityPage.state; return {picture: s.picture, row: s.row, column: s.column, low: s.low,"
        " maps: s.maps.map(m => [...m]), said: document.getElementById('status').textContent,"
        " pixels: [...document.querySelectorAll('.spot canvas')].map(c => { const copy = new OffscreenCanvas(c.width,"
        " c.height).getContext('2d', {willReadFrequently: true}); copy.drawImage(c, 0, 0);"
        " return [...copy.getImageData(0, 0, c.width, c.height).data]; })}; })()"
    )


def _wrong(data: dict[str, Any], shown: dict[str, Any], what: str, place: tuple[int, int, int]) -> list[str]:
    """What differs from the place expected (picture, row, column), its cosines, and their colours."""
    if (shown["picture"], shown["row"], shown["column"]) != place:
        return [f"{what}: shows {shown['picture']}, {shown['row']}, {shown['column']} and not {place}"]
    found = []
    table = np.frombuffer(base64.b64decode(data["colors"]), np.uint8).reshape(256, 3)
    right = expected(data, place[0], place[1] * data["grid"][1] + place[2])
    for k, (cosines, values) in enumerate(zip(right, shown["maps"], strict=True)):
        if np.abs(cosines - np.array(values)).max() > 1e-5:
            found.append(f"{what}: cosines of {data['encoders'][k]} are wrong")
        share = np.clip((cosines - shown["low"]) / (1 - shown["low"]), 0, 1)
        pixels = np.array(shown["pixels"][k]).reshape(-1, 4)[:, :3]
        # a share on the edge of two colours may round to either
        if np.abs(table[np.round(share * 255).astype(int)].astype(int) - pixels).max() > 6:
            found.append(f"{what}: colours of {data['encoders'][k]} are wrong")
    if f"row {place[1] + 1} " not in shown["said"]:
        found.append(f"{what}: the status says '{shown['said']}'")
    return found


def _middle(browser: Any, panel: int, row: int, column: int, grid: list[int]) -> tuple[float, float]:
    """Where a token of a panel lies in the window, brought into view first."""
    browser.ask(f"document.querySelectorAll('.spot')[{panel}].scrollIntoView({{block: 'center'}})")
    box = browser.ask(
        f"(() => {{ const b = document.querySelectorAll('.spot')[{panel}].getBoundingClientRect();"
        " return [b.left, b.top, b.width, b.height]; })()"
    )
    return box[0] + box[2] * (column + 0.5) / grid[1], box[1] + box[3] * (row + 0.5) / grid[0]


def use_page(browser: Any, page: Path, *, touch: bool) -> list[str]:
    """Clicks or taps the picture and a map, presses keys and buttons; everything that is not as it must be."""
    data = held(page)
    rows, columns = data["grid"]
    wrong = _wrong(data, _shown(browser), "at first", (0, rows // 2, columns // 2))
    row, column = rows // 4, columns // 3
    browser.tap(*_middle(browser, 0, row, column, data["grid"]), touch)
    wrong += _wrong(data, _shown(browser), "picture", (0, row, column))
    row, column = rows - 2, 1
    browser.tap(*_middle(browser, 1, row, column, data["grid"]), touch)
    wrong += _wrong(data, _shown(browser), "map", (0, row, column))
    steps = {"ArrowUp": (row - 1, column), "ArrowRight": (row - 1, column + 1), "End": (row - 1, columns - 1)}
    for key, place in steps.items():
        browser.key(key)
        wrong += _wrong(data, _shown(browser), key, (0, *place))
    last = len(data["pictures"]) - 1
    browser.key("PageDown")
    wrong += _wrong(data, _shown(browser), "PageDown", (min(1, last), row - 1, columns - 1))
    browser.ask("document.querySelector('[data-step=left]').click()")
    wrong += _wrong(data, _shown(browser), "button", (min(1, last), row - 1, columns - 2))
    browser.ask(
        "(() => { const r = document.getElementById('range'); r.value = 'token';"
        " r.dispatchEvent(new Event('change')); })()"
    )
    wrong += _wrong(data, _shown(browser), "scale for the token", (min(1, last), row - 1, columns - 2))
    return wrong
