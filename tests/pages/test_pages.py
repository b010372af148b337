"""The pages in a real browser without a network: nothing is queried, nothing complains, nothing is cut off.

scripts/test_pages starts the container and sets its name in SHIFTMASTER_BROWSER; with --pictures it writes docs/images.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from made_pages import pages

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / ".cache/pages"
# Pictures of docs: {file of docs/images: (page, width)}.
PICTURES = {
    f"{name}-{language}{suffix}.png": (f"{page}-{language}", width)
    for name, page in (("diagnosis", "diagnosis"), ("checklist", "checklist-morning"))
    for language in ("en", "ja")
    for suffix, width in (("", 1000), ("-phone", 360))
}


def docker(*arguments, **more):
    return subprocess.run(
        ["docker", *arguments], check=True, text=True, capture_output=True, timeout=600, **more
    ).stdout


def seen_of(made: dict, out: Path) -> dict:
    """Open pages in the container's browser; the pictures come into a directory."""
    container = os.environ.get("SHIFTMASTER_BROWSER")
    if not container:
        pytest.fail("SHIFTMASTER_BROWSER is not set: run scripts/test_pages", pytrace=False)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for name, text in made.items():
        (out / f"{name}.html").write_text(text, encoding="utf-8")
    docker("exec", container, "rm", "-rf", "/root/pages")
    docker("cp", "--quiet", str(out), f"{container}:/root/pages")
    docker("cp", "--quiet", str(Path(__file__).parent / "browser.py"), f"{container}:/root/browser.py")
    docker("exec", container, "timeout", "500", "python3", "/root/browser.py", "/root/pages")
    docker("cp", "--quiet", f"{container}:/root/pages/.", str(out))
    return json.loads((out / "seen.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def seen():
    return seen_of(pages(), OUT)


def each(seen, what):
    """{page and width: what is wrong there}"""
    return {f"{one['page']} at {one['width']}": wrong for one in seen["seen"] if (wrong := what(one))}


def test_every_page_was_opened_at_both_widths_without_a_network(seen):
    opened = {(one["page"], one["width"]) for one in seen["seen"]}
    assert opened == {(name, width) for name in pages() for width in (360, 1000)}
    interfaces = docker("exec", os.environ["SHIFTMASTER_BROWSER"], "ls", "/sys/class/net").split()
    assert interfaces == ["lo"]


def test_the_console_is_empty(seen):
    assert each(seen, lambda one: one["console"]) == {}


def test_only_the_page_itself_is_requested(seen):
    def others(one):
        return [url for url in one["asked"] if not url.endswith(f"/{one['page']}.html") and not url.startswith("data:")]

    assert each(seen, others) == {}
    # The log of requests works: the page itself is in it.
    assert each(seen, lambda one: not one["asked"]) == {}


def test_no_element_is_wider_than_the_screen(seen):
    assert each(seen, lambda one: one["tooWide"]) == {}
    assert each(seen, lambda one: max(one["scroll"], one["scroll_open"], one["inner"]) - one["width"]) == {}


def test_text_is_large_enough_to_read(seen):
    assert each(seen, lambda one: one["small"]) == {}


def test_every_letter_has_a_font(seen):
    assert seen["missing"] == []


def test_pages_are_readable_without_colour(seen):
    """Each finding has its severity as a word, and severities have edges of different kinds."""
    assert each(seen, lambda one: [mark["text"] for mark in one["marked"] if not mark["word"].strip()]) == {}
    for one in seen["seen"]:
        if one["page"] in ("diagnosis-en", "diagnosis-ja"):
            edges = {mark["kind"]: mark["edge"] for mark in one["marked"]}
            assert {"critical", "warning"} <= set(edges) and len(set(edges.values())) == len(edges)
            assert {mark["word"] for mark in one["marked"]} >= {("critical" if one["language"] == "en" else "重大")}
            assert one["svg"] > 20
    for name in pages():
        for width in (360, 1000):
            grey = (OUT / f"{name}-{width}-grey.png").read_bytes()
            assert grey.startswith(b"\x89PNG") and len(grey) > 10000


def test_languages_are_not_mixed(seen):
    for one in seen["seen"]:
        assert one["language"] == one["page"].rsplit("-", 1)[1]
        japanese = sum("぀" <= letter <= "ヿ" or "一" <= letter <= "鿿" for letter in one["text"])
        assert japanese == 0 if one["language"] == "en" else japanese > 100, (one["page"], japanese)


BROKEN = {
    "script-en": "<script>console.error('x')</script>",
    "fetch-en": '<img src="http://192.0.2.1/x.png">',
    "wide-en": '<div style="width:1200px">x</div>',
    "letter-en": "<p>\U0001f6c8</p>",
    "word-en": '<section class="finding critical"><h3>x</h3></section>',
}


def test_each_fault_of_a_runbook_is_detected(tmp_path, seen):
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    broken = seen_of({name: f"{head}<body>{text}</body></html>" for name, text in BROKEN.items()}, tmp_path / "broken")
    one = {(each["page"], each["width"]): each for each in broken["seen"]}
    assert one["script-en", 360]["console"] and one["fetch-en", 360]["console"]
    assert any("192.0.2.1" in url for url in one["fetch-en", 1000]["asked"])
    assert one["wide-en", 1000]["scroll"] > 1000 and one["wide-en", 360]["tooWide"]
    assert broken["missing"] == ["\U0001f6c8"] and one["word-en", 360]["marked"][0]["word"] == ""


def test_pictures_of_the_documents(seen):
    """They are of pages as they are now, in their names, widths and number; --pictures renews them."""
    directory = ROOT / "docs/images"
    if os.environ.get("SHIFTMASTER_PICTURES"):
        for name, (page, width) in PICTURES.items():
            shutil.copy(OUT / f"{page}-{width}.png", directory / name)
    assert {path.name for path in directory.iterdir()} == set(PICTURES)
    for name, (page, width) in PICTURES.items():
        # Width and height follow the signature. Fonts move by a few lines from one Debian to the next.
        now, kept = ((path.read_bytes()[16:24]) for path in (OUT / f"{page}-{width}.png", directory / name))
        assert now[:4] == kept[:4], f"{name}: run scripts/test_pages --pictures"
        heights = [int.from_bytes(size[4:]) for size in (now, kept)]
        assert abs(heights[0] - heights[1]) < 0.05 * heights[0], f"{name}: run scripts/test_pages --pictures"
