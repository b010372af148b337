"""Problems of an application that its source shows before a build; the published examples have none."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ansible.module_utils.shiftmaster.release import migrations, source_checks

ROOT = Path(__file__).resolve().parents[3]
SETTINGS = """
import os
from .base import *
SECRET_KEY = os.environ["DJANGO_SECRET_KEY"]
"""
BASE = """
INSTALLED_APPS = ["django.contrib.staticfiles", "roster"]
STATIC_ROOT = os.environ.get("STATIC_ROOT")
"""
GOOD = {"site/settings.py": SETTINGS, "site/base.py": BASE, "roster/models.py": ""}
OPTIONS = {
    "settings_module": "site.settings", "environment": ["DJANGO_SECRET_KEY"], "site_settings": "",
    "linked_directories": [], "collectstatic": True,
}  # fmt: skip


def migration(name, *after, replaces=()):
    return {
        "app": "roster",
        "name": name,
        "dependencies": [["roster", one] for one in after],
        "replaces": list(replaces),
    }


CHAIN = [migration("0001"), migration("0002_a", "0001")]


def checked(files=(), records=CHAIN, **options):
    return source_checks.check({**GOOD, **dict(files)}, records, {**OPTIONS, **options})


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ('X = os.environ["FOO"]', True),
        ('X: str = os.environ["FOO"]', True),
        ('X = {"a": [os.environ["FOO"]]}', True),
        ('X = os.environ["FOO"]' + ' + "a"' * 2000, True),
        ('X = os.environ["FOO"] or "a"', True),
        ('X = os.environ["FOO"] if "FOO" in os.environ else "a"', False),
        ('X = os.environ.get("BAR") or os.environ["FOO"]', False),
        ('X = lambda: os.environ["FOO"]', False),
        ('X = [os.environ["FOO"] for _ in ()]', False),
        ('os.environ["FOO"] = "a"', False),
        ('os.environ.setdefault("FOO", "a")\nX = os.environ["FOO"]', False),
        ('load_dotenv()\nX = os.environ["FOO"]', False),
    ],
)
def test_a_variable_is_missing_only_where_the_settings_fail_without_it(text, needed):
    problems, _notes = checked({"site/settings.py": SETTINGS + text})
    assert any("FOO" in problem for problem in problems) is needed


def test_a_sound_source_has_no_problem():
    assert checked() == ([], [])


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        ({}, {"settings_module": "gone.settings"}, "gone.settings"),
        ({}, {"environment": []}, "DJANGO_SECRET_KEY"),
        ({"site/base.py": "INSTALLED_APPS = ["}, {"collectstatic": False}, "site/base.py"),
        (
            {"site/base.py": BASE.replace('os.environ.get("STATIC_ROOT")', 'BASE_DIR / "staticfiles"')},
            {},
            "STATIC_ROOT",
        ),
    ],
)
def test_problems_of_a_build_are_found(files, options, words):
    problems, _notes = checked(files, **options)
    assert len(problems) == 1 and words in problems[0]


def test_static_files_may_be_collected_where_the_site_specifies():
    files = {"site/base.py": BASE.replace('os.environ.get("STATIC_ROOT")', 'BASE_DIR / "staticfiles"')}
    assert checked(files, site_settings='STATIC_ROOT = os.environ["STATIC_ROOT"]') == ([], [])
    assert checked(files, collectstatic=False) == ([], [])


def test_a_conditionally_needed_name_is_not_required():
    files = {
        "site/settings.py": 'import os\nif os.environ.get("X"):\n    A = os.environ["ELSEWHERE"]\nfrom .base import *\n'
    }
    assert checked(files) == ([], [])


def test_two_last_migrations_of_an_installed_application_clash():
    clash = [*CHAIN, migration("0002_b", "0001")]
    (problem,), _notes = checked(records=clash)
    assert "0002_a and 0002_b" in problem
    assert checked(records=[*clash, migration("0003_merge", "0002_a", "0002_b")]) == ([], [])
    assert checked(records=[*CHAIN, migration("0001_squashed_0002", replaces=["0001", "0002_a"])]) == ([], [])
    assert checked({"site/base.py": BASE.replace("roster", "other")}, records=clash) == ([], [])


@pytest.mark.parametrize(
    ("line", "noted"),
    [
        ('os.makedirs(os.path.join(settings.BASE_DIR, "temp_exports"), exist_ok=True)', True),
        ('with open(BASE_DIR / "cache.json", "w") as stream:', True),
        ('with open(BASE_DIR / "VERSION") as stream:', False),
        ('os.makedirs(os.path.join(BASE_DIR, "logs"))', False),
    ],
)
def test_writes_below_the_source_are_noted(line, noted):
    problems, notes = checked({"roster/exports.py": "import os\n" + line + "\n"}, linked_directories=["logs"])
    assert problems == [] and bool(notes) is noted
    assert not noted or "roster/exports.py:2" in notes[0]


@pytest.mark.parametrize(
    ("example", "module", "site_settings", "environment"),
    [
        ("shiftmaster", "shiftmaster.settings", "", ""),
        ("rough/1.0.0", "rota.settings", "STATIC_ROOT = 1", ""),
        ("tiny/1.0.0", "config.settings", "", "SECRET HOSTS DATABASE DATABASE_USER DATABASE_PASSWORD DATABASE_HOST"),
    ],
)
def test_the_examples_have_no_problem(example, module, site_settings, environment):
    source = ROOT / "examples" / example
    files = {str(path.relative_to(source)): path.read_text("utf-8") for path in source.rglob("*.py")}
    files = {path: text for path, text in files.items() if not path.startswith("versions/")}
    texts = {path: text for path, text in files.items() if source_checks.wanted(path)}
    records = migrations.classify_files({path: text for path, text in files.items() if migrations.wanted(path)})
    options = {"settings_module": module, "site_settings": site_settings}
    options["environment"] = [f"APP_{name}" for name in environment.split()]
    problems, _notes = source_checks.check(texts, records, {**OPTIONS, **options})
    assert problems == []


def test_settings_of_a_package_may_define_the_static_root():
    files = {"site/base.py": "from company_settings import *\nINSTALLED_APPS = ['django.contrib.staticfiles']\n"}
    assert checked(files) == ([], [])


def test_hostile_source_costs_little_and_ends_with_a_message():
    (problem,), _notes = checked({"site/base.py": "x = " + "(" * 5000 + ")" * 5000})
    assert "site/base.py" in problem
    long = {"roster/%d.py" % number: "open BASE_DIR " * 20000 for number in range(20)}
    began = time.process_time()
    assert checked(long) == ([], [])
    assert time.process_time() - began < 2
