"""Opens pages in headless Chromium as a reader would: no console error, phone and desktop, light and dark.

    python tests/viz/check_pages.py PAGE.html... --screenshots FOLDER [--click]

Run by hand, because a browser is not among what the tests may ask for. `--click` uses the interactive affinity page:
mouse, touch and keys; what the page then says is compared with the features inside it. Exit code 1 with a line for
everything that is wrong.
"""

import argparse
import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
WIDTHS = {"phone": (390, 844, 3), "desktop": (1280, 900, 1)}
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
WAIT = 60.0  # seconds for any one answer


class Browser:
    """Headless Chromium, spoken to over its debugging pipe."""

    def __init__(self) -> None:
        found = next((path for name in NAMES if (path := shutil.which(name))), None)
        if found is None:
            sys.exit(f"none of {', '.join(NAMES)} is installed")
        self.profile = tempfile.mkdtemp()
        to_child, self.writing = os.pipe()
        self.reading, from_child = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (to_child, from_child)]

        def place() -> None:
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"]
        self.process = subprocess.Popen(
            [found, *flags, f"--user-data-dir={self.profile}", "about:blank"],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=place,  # noqa: PLW1509
        )
        for fd in (to_child, from_child, *high):
            os.close(fd)
        self.buffer, self.number, self.events = b"", 0, []
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def _read(self) -> dict[str, Any]:
        end = time.monotonic() + WAIT
        while b"\0" not in self.buffer:
            if not select.select([self.reading], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            self.buffer += os.read(self.reading, 1 << 20)
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def call(self, method: str, **params: Any) -> Any:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", expression))
        return found["result"].get("value")

    def open(self, path: Path, width: str, scheme: str) -> None:
        across, down, ratio = WIDTHS[width]
        self.events.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=across,
            height=down,
            deviceScaleFactor=ratio,
            mobile=width == "phone",
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=width == "phone")
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.call("Page.navigate", url=path.resolve().as_uri())
        end = time.monotonic() + WAIT
        while self.ask("document.readyState") != "complete" or self.ask("location.href") == "about:blank":
            if time.monotonic() > end:
                raise TimeoutError(f"{path} does not load")
            time.sleep(0.05)

    def screenshot(self, path: Path, whole: bool = True) -> None:
        # pictures below the window load only when they are scrolled to
        self.ask(
            "Promise.all([...document.images].map(i => { i.loading = 'eager';"
            " return i.decode().catch(() => 0); })).then(() => 0)"
        )
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 6000), "scale": 1}
        more = {"clip": clip, "captureBeyondViewport": True} if whole else {}
        data = self.call("Page.captureScreenshot", format="png", **more)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))

    def faults(self) -> list[str]:
        """Console errors and warnings, exceptions, and requests beyond the file itself."""
        self.ask("1")
        found = []
        for event in self.events:
            kind, params = event["method"], event["params"]
            if kind == "Runtime.exceptionThrown":
                found.append(params["exceptionDetails"].get("text", "exception"))
            elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(f"console: {params['args']}")
            elif kind == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {params['entry']['text']}")
            elif kind == "Network.requestWillBeSent":
                url = params["request"]["url"]
                if not url.startswith(("data:", "file:", "about:", "blob:")):
                    found.append(f"request to {url}")
        return found

    def tap(self, x: float, y: float, touch: bool) -> None:
        if touch:
            self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
            self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        else:
            for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
                button = "none" if kind == "mouseMoved" else "left"
                self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, clickCount=1)
        time.sleep(0.2)

    def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name)
        time.sleep(0.1)

    def close(self) -> None:
        self.session = ""
        self.call("Browser.close")
        self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)


def layout_faults(browser: Browser) -> list[str]:
    """A page wider than its window scrolls sideways; buttons below 24 pixels are hard to hit."""
    found = []
    wide = browser.ask("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        found.append(f"{wide} pixels wider than the window")
    small = browser.ask(
        "[...document.querySelectorAll('button,select,input')].filter(e => e.offsetParent && "
        "e.getBoundingClientRect().height < 24).map(e => e.id || e.textContent)"
    )
    return found + [f"control too small: {name}" for name in small]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--screenshots", type=Path)
    parser.add_argument("--click", action="store_true", help="use the interactive affinity page")
    args = parser.parse_args()
    browser = Browser()
    wrong: list[str] = []
    try:
        for page in args.pages:
            for width in WIDTHS:
                for scheme in ("light", "dark"):
                    browser.open(page, width, scheme)
                    faults: Callable[[], list[str]] = browser.faults
                    found = layout_faults(browser) if page.suffix == ".html" else []
                    if args.click:
                        from tests.viz.click_affinity import use_page

                        found += use_page(browser, page, touch=width == "phone")
                    found += faults()
                    if args.screenshots:
                        browser.screenshot(args.screenshots / f"{page.stem}-{width}-{scheme}.png")
                    wrong += [f"{page.name}, {width}, {scheme}: {fault}" for fault in found]
    finally:
        browser.close()
    for line in wrong:
        sys.stdout.write(f"{line}\n")
    sys.stdout.write(f"{len(args.pages)} pages, {len(wrong)} faults\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
