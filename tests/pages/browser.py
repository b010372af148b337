"""Runs in the container, with Debian's Chromium and without a network: opens pages and writes down what it sees.

browser.py DIRECTORY    with DIRECTORY/*.html; writes DIRECTORY/seen.json and DIRECTORY/<page>-<width>[-grey].png
"""

import base64
import json
import pathlib
import subprocess
import sys

from selenium import webdriver

WIDTHS = (360, 1000)
# Taller is cut in the pictures, not in what is measured.
TALLEST = 2200
SEE = """
const tooWide = [...document.querySelectorAll('body *')].filter(one => {
  if (one.closest('.wide') && !one.matches('.wide')) return false;
  return one.getBoundingClientRect().right > arguments[0] + 0.5 && getComputedStyle(one).display !== 'inline';
}).map(one => one.outerHTML.slice(0, 120));
const marked = [...document.querySelectorAll('.finding')].map(one => ({
  kind: [...one.classList].filter(name => name !== 'finding').join(),
  word: (one.querySelector('.word') || {}).innerText || '',
  edge: getComputedStyle(one).borderLeftStyle,
  text: one.innerText.slice(0, 80),
}));
const small = [...document.querySelectorAll('body *')].filter(one =>
  one.childNodes.length && [...one.childNodes].some(node => node.nodeType === 3 && node.data.trim()) &&
  !(one instanceof SVGElement) && parseFloat(getComputedStyle(one).fontSize) < 12
).map(one => one.outerHTML.slice(0, 120));
return {scroll: document.documentElement.scrollWidth, inner: innerWidth, height: document.documentElement.scrollHeight,
        language: document.documentElement.lang, text: document.body.innerText, tooWide, marked, small,
        svg: document.querySelectorAll('svg').length};
"""


def main(directory: pathlib.Path) -> None:
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(service=webdriver.ChromeService("/usr/bin/chromedriver"), options=options)
    seen = []
    try:
        for path in sorted(directory.glob("*.html")):
            for width in WIDTHS:
                seen.append({"page": path.stem, "width": width, **check_page(driver, path, width)})
    finally:
        driver.quit()
    # Letters that no font of the system has are boxes.
    letters = sorted({letter for one in seen for letter in one["text"] if ord(letter) > 0x7F})
    missing = [
        letter
        for letter in letters
        if not subprocess.run(
            ["fc-list", ":charset=%x" % ord(letter)], capture_output=True, text=True, check=True
        ).stdout
    ]
    (directory / "seen.json").write_text(json.dumps({"seen": seen, "missing": missing}))


def check_page(driver, path: pathlib.Path, width: int) -> dict:
    # A phone shows what is too wide smaller: its innerWidth is the content's, not the screen's.
    device = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    driver.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": "none"})
    driver.get_log("performance"), driver.get_log("browser")
    driver.get(path.as_uri())
    found = driver.execute_script(SEE, width)
    # With all that is folded open, too.
    driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = true })")
    found["scroll_open"] = driver.execute_script("return document.documentElement.scrollWidth")
    driver.execute_script("document.querySelectorAll('details').forEach(one => { one.open = false })")
    clip = {"x": 0, "y": 0, "width": width, "height": min(found["height"], TALLEST), "scale": 1}
    for suffix, deficiency in (("", "none"), ("-grey", "achromatopsia")):
        driver.execute_cdp_cmd("Emulation.setEmulatedVisionDeficiency", {"type": deficiency})
        shot = driver.execute_cdp_cmd(
            "Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip}
        )
        (path.parent / f"{path.stem}-{width}{suffix}.png").write_bytes(base64.b64decode(shot["data"]))
    found["console"] = [entry["message"] for entry in driver.get_log("browser")]
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    found["asked"] = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    return found


main(pathlib.Path(sys.argv[1]))
