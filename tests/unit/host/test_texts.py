"""Catalogues of texts: each key has both languages with the same fields."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import string
import sys

import alerts
import pytest
from ansible.module_utils.shiftmaster.health import text as health
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES, Texts, language_of
from ansible.module_utils.shiftmaster.reports import findings_report, run_texts
from offenders import each
from support import ROOT


def loaded(name, path):
    loader = importlib.machinery.SourceFileLoader(name, str(ROOT / path))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module


def catalogues():
    sys.path.insert(0, str(ROOT / "module_utils"))
    try:
        own = [
            loaded("catalogue_of_cli", "cli/texts.py").TEXTS,
            loaded("catalogue_of_ctl", "roles/shiftmaster/files/shiftmasterctl").TEXTS,
        ]
    finally:
        sys.path.remove(str(ROOT / "module_utils"))
    return [*own, run_texts.TEXTS, alerts.SAYS, health.CATALOG, findings_report.SAYS, findings_report.COLUMNS]


def fields(text):
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


CATALOGUES = catalogues()


@each([texts for catalogue in CATALOGUES for texts in catalogue.values()])
def test_both_languages_have_the_same_fields(texts):
    assert isinstance(texts, tuple) and len(texts) == len(LANGUAGES) and all(isinstance(text, str) for text in texts)
    assert fields(texts[0]) == fields(texts[1])


def test_every_catalogue_of_the_product_is_in_this_list():
    """Others would have a form of their own."""
    found = [
        path for part in ("cli", "module_utils", "plugins", "roles", "scripts") for path in (ROOT / part).rglob("*")
    ]
    texts = [path.read_text(encoding="utf-8") for path in found if path.suffix in ("", ".py") and path.is_file()]
    assert sum(len(re.findall(r"= Texts\(\{", text)) for text in texts) == len(CATALOGUES)


def test_a_text_is_said_in_a_language_with_its_fields():
    texts = Texts(a=("{n} files", "{n} 件"))
    assert [texts.say(language, "a", n=3) for language in LANGUAGES] == ["3 files", "3 件"]


@pytest.mark.parametrize(
    ("environment", "language"),
    [({}, "en"), ({"LANG": "ja_JP.UTF-8"}, "ja"), ({"LANG": "ja_JP.UTF-8", "LC_ALL": "C.UTF-8"}, "en"),
     ({"SHIFTMASTER_LANGUAGE": "ja", "LC_ALL": "C"}, "ja"), ({"SHIFTMASTER_LANGUAGE": "", "LANG": "ja"}, "ja")],
)  # fmt: skip
def test_the_language_is_that_of_the_reader(environment, language):
    assert language_of(environment) == language
