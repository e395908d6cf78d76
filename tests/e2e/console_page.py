"""A tab of a real browser as tests of the console use it, and scripts that judge what it shows."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import ROOT
from tests.e2e.console_story import Story

SHOTS = Path(os.environ.get("MEMR1_ARTEFACTS", ROOT / "build")) / "console"
WAIT_S = 30
NARROW, WIDE = (360, 740), (1280, 900)


class Page:
    """The browser's one tab, and what tests ask of it."""

    def __init__(self, browser: Any, story: Story) -> None:
        self.browser, self.story = browser, story

    def open(self, view: str, *, key: str | None = None) -> None:
        """A view, signed in with a key (default the admin's)."""
        self.sign_out()
        self.script("sessionStorage.setItem('memr1.key', arguments[0])", key or self.story.admin)
        self.browser.get(f"{self.story.url}/console#/{view}")
        self.browser.refresh()
        self.find("header.top nav")
        self.settled()

    def sign_out(self) -> None:
        """The page as somebody sees it who comes for the first time."""
        self.browser.get(f"{self.story.url}/healthz")
        self.script("sessionStorage.clear()")

    def script(self, code: str, *arguments: Any) -> Any:
        """What some JavaScript returns."""
        return self.browser.execute_script(code, *arguments)

    def until(self, met: Callable[[], Any], what: str) -> Any:
        """What `met` returns once it is true."""

        def again(_: Any) -> Any:
            try:
                return met()
            except StaleElementReferenceException:
                return None

        return WebDriverWait(self.browser, WAIT_S, poll_frequency=0.05).until(again, f"{what}; shown: {self.text()}")

    def settled(self) -> None:
        """Wait until nothing is being loaded."""
        busy = "return document.querySelectorAll('.skeleton, [aria-busy=true], .writing').length"
        self.until(lambda: self.script(busy) == 0, "the page never came to rest")

    def all(self, css: str) -> list[WebElement]:
        return list(self.browser.find_elements(By.CSS_SELECTOR, css))

    def find(self, css: str, text: str = "") -> WebElement:
        """The first element that shows a text."""
        found: WebElement = self.until(
            lambda: next((e for e in self.all(css) if text in e.text), None), f"no {css} with {text!r}"
        )
        return found

    def click(self, css: str, text: str = "") -> None:
        self.find(css, text).click()

    def text(self, css: str = "body") -> str:
        return "\n".join(e.text for e in self.all(css))

    def says(self, text: str, css: str = "body") -> None:
        self.until(lambda: text in self.text(css), f"{css} never said {text!r}")

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def resize(self, size: tuple[int, int], scheme: str = "light") -> None:
        """The size of the screen in CSS pixels, and what the user prefers."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size[0] < 500}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def shoot(self, name: str) -> None:
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.browser.save_screenshot(str(SHOTS / f"{name}.png"))

    def complaints(self) -> list[str]:
        """What the browser complained about: errors of scripts, breaches of the security policy, missing files. An
        answer with an error status, which a test may be after, is none."""
        return [
            line["message"]
            for line in self.browser.get_log("browser")
            if line["level"] == "SEVERE" and "the server responded with a status of 4" not in line["message"]
        ]


POOR_CONTRAST = """
// Texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, success criterion 1.4.3).
const canvas = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
const over = (layers) => {
  canvas.clearRect(0, 0, 1, 1);
  for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
  return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
};
const light = (rgb) => {
  const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const poor = [];
for (const e of document.querySelectorAll("body *")) {
  if (e.closest("svg, :disabled, .hidden, option") || !e.checkVisibility()) continue;
  if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
  const layers = [];
  let opacity = 1;
  for (let at = e; at; at = at.parentElement) {
    layers.unshift(getComputedStyle(at).backgroundColor);
    opacity *= getComputedStyle(at).opacity;
  }
  const behind = over(["white", ...layers]);
  const full = over(["white", ...layers, getComputedStyle(e).color]);
  const ink = full.map((c, i) => c * opacity + behind[i] * (1 - opacity));
  const [a, b] = [light(ink), light(behind)].sort((x, y) => y - x);
  const contrast = (a + 0.05) / (b + 0.05);
  if (contrast < 4.5) poor.push(`${contrast.toFixed(2)}: ${e.className} ${e.textContent.trim().slice(0, 40)}`);
}
return [...new Set(poor)];
"""

OUTSIDE = """
// Elements that reach beyond the right edge of the screen and are not meant to be cut there.
return [...document.querySelectorAll("main *, header *, aside *")]
  .filter((e) => e.checkVisibility() && !e.closest(".hidden, pre, thead, option, svg, .sources code"))
  .filter((e) => e.getBoundingClientRect().right > innerWidth)
  .map((e) => e.outerHTML.slice(0, 120));
"""
