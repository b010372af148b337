"""Texts of a release, of the application's database and of postgres, which root reads: each in a short time."""

from __future__ import annotations

import contextlib
import signal
import time
from types import SimpleNamespace

import postgresql_cluster_config
import pytest
from ansible.module_utils.shiftmaster.diagnosis import database, logs
from ansible.module_utils.shiftmaster.diagnosis.setting import Setting
from ansible.module_utils.shiftmaster.logging import ecs
from ansible.module_utils.shiftmaster.release import gate, migrations

HEAD = "from django.db import migrations, models\n"
MIGRATION = HEAD + "class Migration(migrations.Migration):\n    dependencies = [%s]\n    operations = [%s]\n"
MANY = 500_000
EMPTY_LINES = "\n" * MANY
EVENT = '{"@timestamp": "2026-11-29T05:00:00Z", "message": "m", "log": {"level": "ERROR", "logger": "x"}, "error": %s}'


@contextlib.contextmanager
def seconds(limit: float):
    """Fail where this takes more of the processor's time; by a timer, since the old code took hours."""

    def fire(*_arguments):
        raise TimeoutError(f"more than {limit} s of the processor")

    previous = signal.signal(signal.SIGVTALRM, fire)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, previous)


@pytest.mark.parametrize("text", [EMPTY_LINES, "import " * (MANY // 7), "import Migration x" * (MANY // 18)])
def test_a_module_without_a_migration(text):
    with seconds(10):
        assert migrations.classify_files({"a/migrations/0001_x.py": text}) == []


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("from a import Migration\n", True),
        ("  from a import (Migration  \n", True),
        ("from a import xMigration\n", False),
        ("Migration = other\n", True),
        ("  Migration = other\n", False),
        ("    class Migration(Base):\n", True),
        ("x = Migration\n", False),
        ("import Migrations\n", False),
    ],
)
def test_files_that_count_as_a_migration(text, is_one):
    assert bool(migrations.classify_files({"a/migrations/0001_x.py": text})) is is_one


@pytest.mark.parametrize("text", [EMPTY_LINES, "\n label: " * (MANY // 9)])
def test_the_label_of_an_app(text):
    files = {"a/migrations/0001_x.py": MIGRATION % ("", ""), "a/apps.py": text}
    with seconds(10):
        (record,) = migrations.classify_files(files)
    assert record["app"] == "a"


def test_an_annotation():
    source = MIGRATION % ("", "") + "# shiftmaster:" + " " * MANY + "x" + " " * MANY + "x\n"
    with seconds(10):
        (record,) = migrations.classify_app("a", {"0001": source})
    assert record["class"] == "contract"


@pytest.mark.parametrize("depth", [2000, 100_000])
def test_a_nested_expression_is_a_contract_and_no_error(depth):
    """The first is a tree that Python parses and cannot print, the second is none."""
    field = "models.CharField(max_length=%s)" % "+".join(["1"] * depth)
    texts = {
        "0001": MIGRATION % ("", "migrations.CreateModel('m', fields=[('f', %s)])" % field),
        "0002": MIGRATION % ("('a', '0001')", "migrations.AlterField('m', 'f', %s)" % field.replace("=1", "=2")),
    }
    record = migrations.classify_app("a", texts)[1]
    assert record["class"] == "contract" and len(record["problems"]) == 1


def test_a_long_chain_of_dependencies():
    names = ["%05d" % number for number in range(3000, 0, -1)]
    texts = {
        name: MIGRATION % ("('a', '%s')" % before if before else "", "") for name, before in zip(names, ["", *names])
    }
    assert [record["name"] for record in migrations.classify_app("a", texts)] == names


def test_a_cycle_of_dependencies():
    texts = {one: MIGRATION % ("('a', '%s')" % other, "") for one, other in (("1", "2"), ("2", "3"), ("3", "1"))}
    assert {record["name"] for record in migrations.classify_app("a", texts)} == {"1", "2", "3"}


def test_migrations_beyond_the_limit_of_an_app_are_contracts():
    """A megabyte of a dense text takes half a gigabyte of memory as a tree."""
    half = "#" * (migrations.MAX_APP_BYTES // 2)
    texts = dict.fromkeys(("0001", "0002"), MIGRATION % ("", "") + half + "\n")
    classes = [record["class"] for record in migrations.classify_app("a", texts)]
    assert classes == ["expand", "contract"]


def test_a_tree_is_read_up_to_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(migrations, "MAX_TREE_BYTES", 5000)
    for number in range(10):
        (tmp_path / ("app%d" % number) / "migrations").mkdir(parents=True)
        (tmp_path / ("app%d" % number) / "migrations" / "0001.py").write_text("x" * 2000)
    assert len(migrations.read_tree(str(tmp_path))) == 2


def test_rows_of_the_database_that_no_release_knows(tmp_path):
    rows = [{"app": "a", "name": "%06d" % number} for number in range(50_000)]
    with seconds(15):
        found = migrations.compare({"applied": rows, "known": []}, str(tmp_path))
    assert len(found["ahead"]) == len(rows) and not found["safe_to_rollback"]


@pytest.mark.parametrize("error", ['{"stack_trace": 5}', '{"stack_trace": ["x"]}', '{"stack_trace": {"a": 1}}', "5"])
def test_an_event_in_another_form_hides_no_other_line(error):
    lines = [EVENT % error, "2026-11-29 05:00:00 [ERROR] y: z"]
    assert ecs.as_lines("\n".join(lines)).splitlines()[-1] == lines[1]


def test_events_are_grouped_in_a_short_time():
    line = "2026-11-29 05:00:00 ERROR " + "1" * 960 + "g"
    with seconds(5):
        (group,) = logs.problems("\n".join([line] * 1000), 0)
    assert group["count"] == 1000


def test_variable_parts_of_an_event_are_not_part_of_the_group():
    text = "\n".join("2026-11-29 05:00:00 ERROR request %s failed" % one for one in ("17", "0x1f", "deadbeef0", "a1"))
    assert [group["count"] for group in logs.problems(text, 0)] == [4]
    assert len(logs.problems(text.replace("17", "feed").replace("a1", "cafe"), 0)) == 3


def test_causes_of_a_failed_deploy():
    with seconds(5):
        for end in ("!", ".", ".: "):
            assert gate.causes("Improperly" * 20_000 + end) == []
    kept = ["KeyError: 'x'", "django.core.exceptions.ImproperlyConfigured: y", "app.models.Ward.DoesNotExist"]
    assert gate.causes("\n".join([*kept, "Error: z", "x.Improperly: z", "Improperly.wrong: z"])) == kept


def test_the_configuration_of_postgres(tmp_path):
    directory = tmp_path / "etc/postgresql/17/main"
    directory.mkdir(parents=True)
    (directory / "postgresql.conf").write_text(EMPTY_LINES + "  data_directory = '/srv/pg'\n\tport=5433\n")
    with seconds(10):
        (found,) = database.clusters(Setting({}, root=str(tmp_path)))["clusters"]
        place = postgresql_cluster_config.data_directory_of((directory / "postgresql.conf").read_text(), "")
    assert (found["data"], found["port"], place) == ("/srv/pg", 5433, "/srv/pg")


def test_the_log_of_postgresql(tmp_path):
    """A statement holds what a visitor sends."""
    now = time.strftime("%Y-%m-%d %H:%M:%S.000 UTC", time.gmtime())
    path = tmp_path / "x.log"
    with seconds(3):
        for words in (
            "LOG:  duration: 2000 ms  statement: INSERT '" + "[user=" * 40000,
            "ERROR:  " + "invalid page" * 5000,
        ):
            path.write_text(f"{now} [7] {words}\n")
            assert logs.schema_changes(str(path), "shiftmaster", 0) == []
            assert logs.slow_statements(str(path), "shiftmaster", 0) == []
            assert database.damaged_files(SimpleNamespace(logs={"postgresql": str(path)})) == []
