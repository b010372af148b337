"""The example application's packer: the same files give the same revisions, and each tag is the version of its name."""

from __future__ import annotations

import ast
import gettext
import importlib.util
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/shiftmaster"
GOOD = ["2.0.0", "2.1.0", "2.2.0"]
# Changes of each tag to the version that it is built on, besides VERSION.
CHANGES = {
    "2.2.0": {
        "M roster/models/shift_type.py",
        "A roster/migrations/0003_remove_is_night.py",
        "A roster/tests/test_contract.py",
        "D roster/tests/test_night_column.py",
    },
    "broken-import": {"M shiftmaster/wsgi.py"},
    "broken-health": {"M health/database.py"},
    "broken-hang": {"M shiftmaster/wsgi.py"},
    "broken-migration": {"M roster/models/ward.py", "A roster/migrations/0003_ward_phone.py"},
    "broken-requirement": {"M requirements.in", "M requirements.txt"},
    "broken-template": {"M templates/roster/month.html"},
    "broken-worker": {"M shiftmaster/celery.py"},
    "2.1.1": {"M roster/models/assignment.py", "A roster/migrations/0003_indexes_by_day.py"},
}


def load_packer():
    spec = importlib.util.spec_from_file_location("example_pack", EXAMPLE / "pack.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


packer = load_packer()


def run_packer(*arguments, script=EXAMPLE / "pack.py", **environment):
    return subprocess.run(
        [sys.executable, "-B", str(script), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


def git(repository, *arguments):
    done = subprocess.run(["git", "--git-dir", str(repository), *arguments], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def revisions(repository):
    return {tag: git(repository, "rev-parse", f"{tag}^{{commit}}").strip() for tag in packer.VERSIONS}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("pack") / "shiftmaster.git"
    done = run_packer(path)
    assert (done.returncode, done.stderr) == (0, "")
    return path


@pytest.fixture
def copied(tmp_path):
    """The example's directory, to be changed."""
    copy = tmp_path / "example"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_repository_is_sound_and_has_the_tags_and_main(repository):
    git(repository, "fsck", "--strict")
    refs = git(repository, "for-each-ref", "--format=%(refname) %(objecttype)").split("\n")
    expected = ["refs/heads/main commit"]
    expected += [f"refs/tags/{tag} {'commit' if tag.startswith('broken-') else 'tag'}" for tag in packer.VERSIONS]
    assert sorted(filter(None, refs)) == sorted(expected)
    assert git(repository, "rev-parse", "main").strip() == revisions(repository)["2.1.0"]
    assert git(repository, "symbolic-ref", "HEAD").strip() == "refs/heads/main"


def test_same_files_give_the_same_revisions_under_any_git_configuration(repository, copied, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(
        "[init]\ndefaultBranch = trunk\n[core]\nautocrlf = true\n[commit]\ngpgSign = true\n[user]\nname = Somebody\n"
    )
    # Files that the running application creates are not packed.
    (copied / "roster/__pycache__").mkdir()
    (copied / "roster/__pycache__/urls.cpython-313.pyc").write_bytes(b"x")
    (copied / "locale/ja/LC_MESSAGES/django.mo").write_bytes(b"x")
    (copied / "db.sqlite3").write_bytes(b"x")
    done = run_packer(tmp_path / "b.git", script=copied / "pack.py", HOME=str(home), TZ="America/Lima", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert revisions(tmp_path / "b.git") == revisions(repository)


def test_packing_again_follows_the_files_and_leaves_the_rest(copied, tmp_path):
    script, path = copied / "pack.py", tmp_path / "a.git"
    run_packer(path, script=script)
    before = revisions(path)
    assert run_packer(path, script=script).returncode == 0
    assert revisions(path) == before
    (copied / "versions/broken-hang/VERSION").write_text("other\n")
    run_packer(path, script=script)
    after = revisions(path)
    assert {tag for tag in before if before[tag] != after[tag]} == {"broken-hang"}


def test_a_directory_that_is_no_repository_is_left_alone(tmp_path):
    (tmp_path / "mine").write_text("precious")
    done = run_packer(tmp_path)
    assert done.returncode != 0
    assert "is no bare git repository" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_list_names_each_tag_with_its_revision(repository):
    for arguments in (["--list"], ["--list", repository]):
        lines = [line.split(None, 2) for line in run_packer(*arguments).stdout.splitlines()]
        assert {tag: revision for tag, revision, _ in lines} == revisions(repository)


@pytest.mark.parametrize("tag", packer.VERSIONS)
def test_every_version_contains_its_name_and_readable_code(repository, tag):
    assert git(repository, "show", f"{tag}:VERSION") == f"{tag}\n"
    names = git(repository, "ls-tree", "-r", "--name-only", tag).splitlines()
    assert not [name for name in names if name.startswith(("versions/", "pack.py")) or name.endswith(".append")]
    for name, content in packer.tree(tag).items():
        if name.endswith(".py"):
            ast.parse(content, name)
    assert git(repository, "ls-tree", tag, "manage.py").startswith("100755")


@pytest.mark.parametrize("tag", CHANGES)
def test_a_version_changes_what_it_is_about_and_no_more(repository, tag):
    base = packer.VERSIONS[tag][0]
    assert git(repository, "rev-parse", f"{tag}~1").strip() == revisions(repository)[base]
    lines = git(repository, "diff", "--name-status", "--no-renames", base, tag).splitlines()
    assert {line.replace("\t", " ") for line in lines} == CHANGES[tag] | {"M VERSION"}


def test_2_1_0_adds_a_migration_a_task_a_requirement_and_new_static_files(repository):
    lines = git(repository, "diff", "--name-status", "--no-renames", "2.0.0", "2.1.0").splitlines()
    changes = {line.replace("\t", " ") for line in lines}
    assert {
        "A roster/migrations/0002_minimum_staff_kind_summary.py",
        "A roster/tasks/summary.py",
        "M requirements.txt",
        "M static/css/site.css",
        "M static/js/site.js",
        "M locale/ja/LC_MESSAGES/django.mo",
    } <= changes
    assert not [line for line in changes if line.startswith("D")]
    assert 'name="roster.tasks.summarize_month"' in git(repository, "show", "2.1.0:roster/tasks/summary.py")


def test_broken_versions_fail_where_they_are_documented_to(repository):
    names = git(repository, "ls-tree", "-r", "--name-only", "broken-import").splitlines()
    assert "from .telemetry import" in git(repository, "show", "broken-import:shiftmaster/wsgi.py")
    assert "shiftmaster/telemetry.py" not in names
    migration = ast.parse(git(repository, "show", "broken-migration:roster/migrations/0003_ward_phone.py"))
    body = {node.targets[0].id: node.value for node in migration.body[-1].body if isinstance(node, ast.Assign)}
    assert body["atomic"].value is False
    first, second = map(ast.dump, body["operations"].elts)
    assert first == second
    assert "jpholiday==999.0.0 \\" in git(repository, "show", "broken-requirement:requirements.txt")
    assert "templates/roster/_calendar.html" not in names
    assert "roster/_calendar.html" in git(repository, "show", "broken-template:templates/roster/month.html")


def test_export_writes_what_git_archives(repository, tmp_path):
    assert run_packer("--export", "2.2.0", tmp_path / "out").returncode == 0
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == set(git(repository, "ls-tree", "-r", "--name-only", "2.2.0").splitlines())
    assert run_packer("--export", "2.9.9", tmp_path / "none").returncode != 0


@pytest.mark.parametrize("tag", GOOD)
def test_catalogue_is_one_that_gettext_reads(tag):
    catalogue = gettext.GNUTranslations(io.BytesIO(packer.tree(tag)["locale/ja/LC_MESSAGES/django.mo"]))
    assert catalogue.gettext("Wards") == "病棟一覧"
    assert catalogue.ngettext("%(n)s person", "%(n)s people", 3) == "%(n)s 名"
    assert catalogue.gettext("Summarize") == ("Summarize" if tag == "2.0.0" else "集計する")


def test_catalogues_are_read_as_gettext_reads_them():
    text = """
#, fuzzy
msgid "guess"
msgstr "wrong"

msgctxt "c"
msgid "two "
"lines\\n"
msgstr "x"
msgid "one"
msgid_plural "many"
msgstr[0] "a"
msgstr[1] "b"

msgid "untranslated"
msgstr ""
#~ msgid "old"
#~ msgstr "old"
"""
    assert packer.parse_po(text) == {"c\x04two lines\n": "x", "one\0many": "a\0b"}
    with pytest.raises(ValueError, match="stands twice"):
        packer.parse_po('msgid "a"\nmsgstr "b"\n\nmsgid "a"\nmsgstr "c"\n')
