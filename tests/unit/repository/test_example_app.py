"""The example application's source: what can be known without Django. Its own tests run where its packages are."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/shiftmaster"
GOOD = ["2.0.0", "2.1.0", "2.2.0"]
SECRET = {"DJANGO_SECRET_KEY", "DB_PASSWORD", "CACHE_URL", "CELERY_BROKER_URL"}
# Variables of a deployment; the settings do not read DJANGO_SETTINGS_MODULE and SHIFTMASTER_VERSION.
NAMES = SECRET | {
    "DJANGO_SECRET_KEY_FALLBACKS",
    "DJANGO_ALLOWED_HOSTS",
    "DJANGO_CSRF_TRUSTED_ORIGINS",
    "DB_NAME",
    "DB_USER",
    "DB_HOST",
    "DB_PORT",
    "DB_SSLMODE",
    "EMAIL_HOST",
    "EMAIL_PORT",
    "EMAIL_HOST_USER",
    "EMAIL_HOST_PASSWORD",
    "EMAIL_USE_TLS",
    "DEFAULT_FROM_EMAIL",
    "STATIC_ROOT",
    "MEDIA_ROOT",
    "HTTPS_ENABLED",
    "SHIFTMASTER_RELEASE",
    "TZ",
    "LOG_LEVEL",
}


READERS = ("require", "text", "flag", "number", "words")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    directory = tmp_path_factory.mktemp("example")
    for tag in GOOD:
        subprocess.run([sys.executable, EXAMPLE / "pack.py", "--export", tag, directory / tag], check=True, timeout=60)
    return directory


def test_settings_read_the_agreed_names_and_secrets_have_no_default(trees):
    settings = ast.parse((trees / "2.0.0/shiftmaster/settings.py").read_text(encoding="utf-8"))
    read = {}
    for node in ast.walk(settings):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in READERS:
            names = node.args if node.func.id == "require" else node.args[:1]
            read.update({name.value: node for name in names})
    assert set(read) == NAMES
    assert {name for name, call in read.items() if call.func.id == "require"} >= SECRET
    for name in ("EMAIL_HOST_PASSWORD", "DJANGO_SECRET_KEY_FALLBACKS"):
        assert len(read[name].args) == 1, f"{name} has a default"


@pytest.mark.parametrize("tag", GOOD)
def test_lock_pins_everything_with_hashes_and_names_no_index(trees, tag):
    lock = (trees / tag / "requirements.txt").read_text(encoding="utf-8")
    assert not re.search(r"https?://|^--?\w|find-links|index-url", re.sub(r"(?m)^#.*$", "", lock), re.M)
    hashes = r"(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+"
    locked = re.findall(rf"(?m)^([a-z0-9-]+)==\S+(?: ; [^\\]+)? \\\n{hashes}", lock)
    assert len(locked) == len(re.findall(r"(?m)^[a-z0-9]", lock))
    wanted = re.findall(r"(?m)^([A-Za-z0-9-]+)", (trees / tag / "requirements.in").read_text(encoding="utf-8"))
    assert {name.lower() for name in wanted} <= set(locked)
    # Debian 12 has Python 3.11.2, and only there redis needs it.
    assert re.search(r"(?m)^async-timeout==\S+ ; python_full_version < '3\.11\.3'", lock)
    assert ("jpholiday" in locked) == (tag != "2.0.0")


@pytest.mark.parametrize("tag", GOOD)
def test_pages_load_nothing_from_elsewhere_and_work_under_a_strict_policy(trees, tag):
    root = trees / tag
    for path in [*(root / "templates").rglob("*.html"), *(root / "static").rglob("*.[cj]s*")]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:|\burl\(|//cdn|@import", text), path
        if path.suffix == ".html":
            assert not re.search(r"<style|\sstyle=|\son[a-z]+=|<script(?![^>]*\ssrc=)", text), path
        for name in re.findall(r"\{% static '([^']+)' %\}", text):
            assert (root / "static" / name).is_file(), name


@pytest.mark.parametrize("tag", GOOD)
def test_every_text_has_its_japanese(trees, tag):
    root = trees / tag
    texts = set()
    for path in (root / "templates").rglob("*"):
        if path.is_file():
            texts.update(re.findall(r"""\{% translate ["']([^"']+)["'] %\}""", path.read_text(encoding="utf-8")))
    for directory in ("roster", "shiftmaster"):
        for path in (root / directory).rglob("*.py"):
            if "migrations" in path.parts or "tests" in path.parts:
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
                    "_",
                    "gettext",
                ):
                    texts.add(node.args[0].value)
    catalogue = (root / "locale/ja/LC_MESSAGES/django.po").read_text(encoding="utf-8")
    translated = set(re.findall(r'(?m)^msgid "([^"]+)"\nmsgstr "[^"]+"$', catalogue))
    assert len(texts) > 80
    assert texts <= translated, texts - translated
