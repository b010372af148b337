"""Plan, apply, compare and reverse the migrations of small generated applications on a real PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import shiftmaster_migrations
from ansible.module_utils.shiftmaster.host import envfile
from ansible.module_utils.shiftmaster.release import django_driver, migrations
from ansible.module_utils.shiftmaster.release.releasecode import ReleaseCode, ReleaseCodeError

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
import os
SECRET_KEY = "only for tests"
INSTALLED_APPS = os.environ["TEST_APPS"].split(",")
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends." + os.environ["TEST_ENGINE"], "NAME": os.environ["DB_NAME"],
    "USER": os.environ.get("DB_USER", ""), "PASSWORD": os.environ.get("DB_PASSWORD", ""),
    "HOST": os.environ.get("DB_HOST", ""), "PORT": os.environ.get("DB_PORT", "")}}
"""
HEAD = """
from django.db import migrations, models
from django.contrib.postgres.operations import AddIndexConcurrently
%s

class Migration(migrations.Migration):
    atomic = %s
    dependencies = %s
    operations = [%s]
"""
INITIAL = """migrations.CreateModel("Roster", [("id", models.BigAutoField(primary_key=True)),
    ("month", models.CharField(max_length=7))])"""
ADD_EXTRA = 'migrations.AddField("roster", "extra", models.TextField(null=True))'
ADD_NOTE = 'migrations.AddField("roster", "note", models.TextField(null=True))'
DROP_MONTH = 'migrations.RemoveField("roster", "month")'
INDEX = 'AddIndexConcurrently("roster", models.Index(fields=["month"], name="roster_month"))'


def migration(operations, after=None, atomic=True, extra="", app="shifts"):
    dependencies = [(app, after)] if isinstance(after, str) else list(after or [])
    return HEAD % (extra, atomic, dependencies, operations)


BASE = {"shifts/0001_initial": migration(INITIAL), "shifts/0002_note": migration(ADD_NOTE, "0001_initial")}


class Site:
    """A directory of releases and a database."""

    def __init__(self, root, venv, environment):
        self.root, self.venv, self.environment = root, venv, environment

    def release(self, number, files, apps=None):
        """Make a release directory out of {"app/0001_name": text of the migration}."""
        path = self.root / "releases" / ("202508%02dT000000Z-%07d" % (number, number))
        shutil.rmtree(path, ignore_errors=True)
        source = path / "source"
        names = sorted({name.split("/")[0] for name in files})
        for app in names:
            (source / app / "migrations").mkdir(parents=True)
            (source / app / "__init__.py").write_text("")
            (source / app / "models.py").write_text("")
            (source / app / "migrations" / "__init__.py").write_text("")
        for name, text in files.items():
            app, file = name.split("/")
            (source / app / "migrations" / (file + ".py")).write_text(text)
        (source / "settings.py").write_text(SETTINGS)
        (path / "venv").symlink_to(self.venv)
        environment = dict(self.environment, DJANGO_SETTINGS_MODULE="settings", TEST_APPS=",".join(apps or names))
        (path / "env").write_text(envfile.render(environment))
        (path / "manifest.json").write_text(json.dumps({"migrations": migrations.classify_tree(str(source))}))
        return str(path)

    def run(self, mode, release=None, target=None, check=False, **options):
        values = {
            "mode": mode,
            "release": release,
            "target_release": target,
            "allow_contract": False,
            "first_deploy": False,
            "run_handlers": False,
            "lock_wait_seconds": 20,
            "lock_timeout_seconds": 2,
            "timeout_seconds": 60,
            "user": "",
        }
        values.update(options)
        return shiftmaster_migrations.Runner(values, check).run()

    def refused(self, *arguments, **options):
        with pytest.raises(shiftmaster_migrations.Refused) as caught:
            self.run(*arguments, **options)
        return str(caught.value), caught.value.details


class Postgres(Site):
    def __init__(self, root, venv, environment, connect):
        super().__init__(root, venv, environment)
        self.connect = connect

    def sql(self, text):
        with self.session() as session:
            return session(text)

    @contextlib.contextmanager
    def session(self, name="test"):
        """A session of its own, in a child (the interpreter that runs pytest needs no psycopg)."""
        code = (
            "import json, os, sys, psycopg\n"
            "c = psycopg.connect(os.environ['TEST_CONNECT'], autocommit=True, application_name=sys.argv[1])\n"
            "print(json.dumps([[c.info.backend_pid]]), flush=True)\n"
            "for line in sys.stdin:\n"
            "    try:\n"
            "        r = c.execute(json.loads(line))\n"
            "        a = [list(map(str, x)) for x in r.fetchall()] if r.description else []\n"
            "    except Exception as e:\n"
            "        a = repr(e)\n"
            "    print(json.dumps(a), flush=True)\n"
        )
        child = subprocess.Popen(
            [str(self.venv / "bin" / "python"), "-c", code, name],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(os.environ, TEST_CONNECT=self.connect),
        )
        pid = json.loads(child.stdout.readline())[0][0]

        def query(text):
            child.stdin.write(json.dumps(text) + "\n")
            child.stdin.flush()
            response = json.loads(child.stdout.readline())
            assert isinstance(response, list), response
            return response

        query.pid = pid
        try:
            yield query
        finally:
            child.stdin.close()
            child.wait(timeout=20)
            child.stdout.close()

    def columns(self, table="shifts_roster"):
        return {
            row[0]
            for row in self.sql("SELECT column_name FROM information_schema.columns WHERE table_name = '%s'" % table)
        }

    def start(self, release, **request):
        """Start the driver's apply as a process that a test may kill, and wait for nothing."""
        code = ReleaseCode(release, None)
        driver = Path(django_driver.__file__).read_text()
        child = subprocess.Popen(
            [code.python, "-c", driver],
            env=code.environ(),
            cwd=os.path.join(release, "source"),
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        values = {"op": "apply", "lock_wait_seconds": 20, "lock_timeout_seconds": 2}
        child.stdin.write(json.dumps(dict(values, **request)) + "\n")
        child.stdin.flush()
        return child

    def wait_for(self, text, seconds=20):
        """Wait until a statement that holds text runs."""
        deadline = time.monotonic() + seconds
        with self.session() as session:
            while time.monotonic() < deadline:
                if session(
                    "SELECT 1 FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid()"
                    " AND query ILIKE '%%%s%%' AND datname = current_database()" % text
                ):
                    return
                time.sleep(0.05)
        pytest.fail("no statement with %r began within %d seconds" % (text, seconds))


def kill(child):
    os.killpg(child.pid, signal.SIGKILL)
    child.communicate()


def response_of(child):
    out, err = child.communicate(timeout=60)
    lines = [line for line in out.splitlines() if line.startswith(django_driver.RESPONSE)]
    assert lines, err
    return json.loads(lines[-1][len(django_driver.RESPONSE) :])


@pytest.fixture
def sqlite(tmp_path, django_venv):
    return Site(tmp_path, django_venv, {"TEST_ENGINE": "sqlite3", "DB_NAME": str(tmp_path / "db.sqlite3")})


@pytest.fixture
def site(tmp_path, django_venv, dsn):
    """An empty database of its own, removed afterwards."""
    url = urlsplit(dsn)
    name = "shiftmaster_test_%d_%d" % (os.getpid(), time.monotonic_ns())
    admin = Postgres(tmp_path, django_venv, {}, dsn)
    admin.sql('CREATE DATABASE "%s"' % name)
    environment = {
        "TEST_ENGINE": "postgresql",
        "DB_NAME": name,
        "DB_USER": url.username or "",
        "DB_PASSWORD": url.password or "",
        "DB_HOST": url.hostname or "",
        "DB_PORT": str(url.port or 5432),
    }
    try:
        yield Postgres(tmp_path, django_venv, environment, url._replace(path="/" + name).geturl())
    finally:
        admin.sql('DROP DATABASE "%s" WITH (FORCE)' % name)


# ------------------------------------------------------------------------------------------------- plan and apply


def test_plan_and_apply_twice(site):
    release = site.release(1, BASE)
    plan = site.run("plan", release)
    assert [(m["name"], m["class"]) for m in plan["pending"]] == [("0001_initial", "expand"), ("0002_note", "expand")]
    assert plan["allowed"] and not plan["changed"] and plan["applied"] == []
    checked = site.run("apply", release, check=True)
    assert checked["changed"] and "shifts.0002_note (expand)" in checked["diff"]["after"]
    assert site.columns() == set()
    first = site.run("apply", release)
    assert first["changed"] and first["done"] == ["shifts.0001_initial", "shifts.0002_note"]
    assert site.columns() == {"id", "month", "note"}
    second = site.run("apply", release)
    assert not second["changed"] and second["done"] == [] and second["applied"] == first["applied"]


def test_contract_is_refused_until_allowed(site):
    site.run("apply", site.release(1, BASE))
    release = site.release(2, {**BASE, "shifts/0003_drop": migration(DROP_MONTH, "0002_note")})
    message, _ = site.refused("apply", release)
    assert "shifts.0003_drop (contract: RemoveField roster.month" in message
    assert "month" in site.columns()
    assert site.run("apply", release, allow_contract=True)["done"] == ["shifts.0003_drop"]
    assert "month" not in site.columns()


def test_first_deploy_allows_every_class_of_django_itself(site):
    release = site.release(1, BASE, apps=["django.contrib.contenttypes", "django.contrib.auth", "shifts"])
    message, _ = site.refused("apply", release)
    assert "auth.0011_update_proxy_permissions (contract" in message
    assert site.run("plan", release)["worst_class"] == "contract"
    assert len(site.run("apply", release, first_deploy=True)["done"]) == 16


def test_output_of_the_application_does_not_disturb(site):
    noise = (
        "import os, subprocess\nprint(%r)\nsubprocess.run(['echo', %r])\nos.write(1, b'noise without newline')\n"
        % (django_driver.RESPONSE + '{"error": "forged"}', django_driver.RESPONSE + '{"error": "forged"}')
    )
    release = site.release(1, {"shifts/0001_initial": migration(INITIAL, extra=noise)})
    assert site.run("apply", release)["done"] == ["shifts.0001_initial"]


def test_a_plan_that_changed_is_not_applied(site):
    release = site.release(1, BASE)
    response = ReleaseCode(release, None).driver(
        django_driver, {"op": "apply", "expected": [["shifts", "0001_initial"]]}, 60
    )
    assert response["failure"]["kind"] == "unexpected" and "shifts.0002_note" in response["failure"]["message"]
    assert site.columns() == set()


def test_settings_that_do_not_load_are_named(site):
    release = site.release(1, BASE)
    Path(release, "source", "settings.py").write_text("import nothing_of_that_name\n")
    with pytest.raises(ReleaseCodeError, match="nothing_of_that_name"):
        site.run("plan", release)


# -------------------------------------------------------------------------------------------------------- failures


FAILS = 'migrations.RunSQL("SELECT no_such_column FROM shifts_roster", migrations.RunSQL.noop)'


def test_a_failing_atomic_migration_is_rolled_back_and_those_before_it_stay(site):
    release = site.release(
        1,
        {
            **BASE,
            "shifts/0003_fails": migration(f"{ADD_EXTRA}, {FAILS}", "0002_note"),
        },
    )
    message, details = site.refused("apply", release, first_deploy=True)
    failure = details["failure"]
    assert (failure["app"], failure["name"], failure["operation"]["number"]) == ("shifts", "0003_fails", 2)
    assert "no_such_column" in failure["database_message"] and failure["sqlstate"] == "42703"
    assert not failure["half_applied"] and "rolled back completely" in message
    assert details["done"] == ["shifts.0001_initial", "shifts.0002_note"] and details["changed"]
    assert site.columns() == {"id", "month", "note"}


def test_a_failing_migration_outside_a_transaction_is_reported_as_half_applied(site):
    operations = 'migrations.AddField("roster", "extra", models.TextField(null=True)), %s, %s' % (INDEX, FAILS)
    release = site.release(1, {**BASE, "shifts/0003_half": migration(operations, "0002_note", atomic=False)})
    message, details = site.refused("apply", release, first_deploy=True)
    failure = details["failure"]
    assert failure["half_applied"] and "may be half applied" in message
    assert [(o["number"], o["operation"]) for o in failure["operations_done"]] == [
        (1, "AddField"),
        (2, "AddIndexConcurrently"),
    ]
    assert failure["operation"]["operation"] == "RunSQL"
    assert "extra" in site.columns() and "shifts.0003_half" not in details["applied"]


def test_an_existing_column_gets_a_hint(site):
    release = site.release(
        1,
        {
            **BASE,
            "shifts/0003_again": migration(
                'migrations.SeparateDatabaseAndState(database_operations=[migrations.AddField("roster", "note",'
                " models.TextField(null=True))])",
                "0002_note",
            ),
        },
    )
    message, details = site.refused("apply", release, first_deploy=True)
    assert details["failure"]["sqlstate"] == "42701" and "migrate --fake" in message


def test_a_failing_post_migrate_handler_is_not_blamed_on_a_migration(site):
    extra = (
        "from django.db.models.signals import post_migrate\ndef fail(**_): raise ValueError('handler broke')\n"
        "post_migrate.connect(fail, weak=False)\n"
    )
    release = site.release(1, {"shifts/0001_initial": migration(INITIAL, extra=extra)})
    message, details = site.refused("apply", release)
    assert "post_migrate" in message and "handler broke" in message
    assert details["done"] == ["shifts.0001_initial"]


def test_handlers_run_on_demand_where_nothing_is_pending(site):
    release = site.release(1, BASE, apps=["django.contrib.contenttypes", "shifts"])
    Path(release, "source", "shifts", "models.py").write_text(
        "from django.db import models\nclass Roster(models.Model):\n    month = models.CharField(max_length=7)\n"
        "    note = models.TextField(null=True)\n"
    )
    site.run("apply", release, first_deploy=True)
    wanted = "SELECT count(*) FROM django_content_type WHERE app_label = 'shifts'"
    assert site.sql(wanted) == [["1"]]
    site.sql("DELETE FROM django_content_type")
    assert not site.run("apply", release)["changed"] and site.sql(wanted) == [["0"]]
    assert not site.run("apply", release, run_handlers=True)["changed"] and site.sql(wanted) == [["1"]]


# ----------------------------------------------------------------------------------------------------------- locks


def test_a_held_migration_lock_ends_the_wait_and_names_its_holder(site):
    release = site.release(1, BASE)
    with site.session("somebody's deploy") as session:
        session("SELECT pg_advisory_lock(%d)" % django_driver.LOCK_KEY)
        began = time.monotonic()
        message, details = site.refused("apply", release, lock_wait_seconds=1)
        assert time.monotonic() - began < 15
        assert details["failure"]["kind"] == "locked" and details["failure"]["pid"] == session.pid
        assert "session %d (somebody's deploy" % session.pid in message
    assert site.columns() == set()
    assert site.run("apply", release)["changed"]


def test_two_at_once_apply_once(site):
    slow = {
        **BASE,
        "shifts/0003_slow": migration('migrations.RunSQL("SELECT pg_sleep(2)", migrations.RunSQL.noop)', "0002_note"),
    }
    release = site.release(1, slow)
    first = site.start(release)
    site.wait_for("pg_sleep")
    second = site.start(release)
    done = [response_of(child)["done"] for child in (first, second)]
    assert len(done[0]) == 3 and done[1] == []


def test_lock_timeout_ends_a_migration_that_waits_for_an_open_transaction(site):
    site.run("apply", site.release(1, {"shifts/0001_initial": BASE["shifts/0001_initial"]}))
    release = site.release(2, BASE)
    with site.session("a forgotten shell") as session:
        session("BEGIN")
        session("SELECT count(*) FROM shifts_roster")
        message, details = site.refused("apply", release, lock_timeout_seconds=0.5)
        assert details["failure"]["sqlstate"] == "55P03" and "shifts.0002_note" in message
        assert "session %d (a forgotten shell, idle in transaction" % session.pid in message
        session("ROLLBACK")
    assert site.run("apply", release)["done"] == ["shifts.0002_note"]


def test_timeouts_apply_to_a_connection_that_the_application_opens_again(site):
    extra = (
        "def reconnect(apps, editor):\n"
        "    connection = editor.connection\n"
        "    connection.close()\n"
        "    with connection.cursor() as c:\n"
        "        c.execute('SHOW lock_timeout'); lock = c.fetchone()[0]\n"
        "        c.execute('SELECT count(*) FROM pg_locks WHERE locktype = %s AND granted', ['advisory'])\n"
        "        raise ValueError('%s %s' % (lock, c.fetchone()[0]))\n"
    )
    release = site.release(
        1,
        {
            "shifts/0001_initial": migration(
                "migrations.RunPython(reconnect, migrations.RunPython.noop)", atomic=False, extra=extra
            )
        },
    )
    message, _ = site.refused("apply", release, first_deploy=True, lock_timeout_seconds=1.5)
    assert "1500ms 1" in message


def test_an_index_is_built_concurrently_under_the_lock_while_another_run_waits(site):
    site.run("apply", site.release(1, BASE))
    release = site.release(2, {**BASE, "shifts/0003_index": migration(INDEX, "0002_note", atomic=False)})
    with site.session("a long report") as session:
        session("BEGIN")
        session("INSERT INTO shifts_roster (month) VALUES ('2025-07')")
        first = site.start(release, lock_timeout_seconds=30)
        site.wait_for("CREATE INDEX CONCURRENTLY")
        second = site.start(release, lock_timeout_seconds=30)  # Its waiting must not hold up the first.
        time.sleep(1.5)
        session("INSERT INTO shifts_roster (month) VALUES ('2025-08')")  # Nor does the index block writes.
        session("COMMIT")
    assert response_of(first)["done"] == [{"app": "shifts", "name": "0003_index"}]
    assert response_of(second)["done"] == []
    assert site.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'roster_month'::regclass") == [["True"]]


def test_an_index_that_a_killed_run_has_built_is_built_again(site):
    """A run that dies after it, in a later operation of the same migration, has recorded nothing."""
    site.run("apply", site.release(1, BASE))
    site.sql("CREATE INDEX roster_month ON shifts_roster (id)")
    release = site.release(2, {**BASE, "shifts/0003_index": migration(INDEX, "0002_note", atomic=False)})
    result = site.run("apply", release)
    assert (result["done"], result["repaired"]) == (
        ["shifts.0003_index"], ["dropped the index roster_month of an earlier run"],
    )  # fmt: skip
    assert "(month)" in site.sql("SELECT pg_get_indexdef('roster_month'::regclass)")[0][0]


class Pooler(threading.Thread):
    """A stub for a pooler: passes everything on, and gives clients a backend number of its own."""

    def __init__(self, host, port):
        super().__init__(daemon=True)
        self.target = (host, port)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]

    def run(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(self.target, timeout=60)
            threading.Thread(target=self.copy, args=(client, server), daemon=True).start()
            threading.Thread(target=self.respond, args=(server, client), daemon=True).start()

    def copy(self, source, sink):
        with contextlib.suppress(OSError):
            while True:
                data = source.recv(65536)
                if not data:
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def respond(self, server, client):
        """Change the number in BackendKeyData."""
        stream = server.makefile("rb")
        with contextlib.suppress(OSError):
            while True:
                head = stream.read(5)
                if len(head) < 5:
                    break
                body = stream.read(struct.unpack("!i", head[1:])[0] - 4)
                if head[:1] == b"K":
                    body = struct.pack("!i", 424242) + body[4:]
                client.sendall(head + body)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)


def test_a_pooler_is_recognised_and_refused(site):
    pooler = Pooler(site.environment["DB_HOST"], int(site.environment["DB_PORT"]))
    pooler.start()
    through = {"DB_HOST": "127.0.0.1", "DB_PORT": str(pooler.port), "PGSSLMODE": "disable", "PGGSSENCMODE": "disable"}
    site.environment = dict(site.environment, **through)
    release = site.release(1, BASE)
    try:
        assert len(site.run("plan", release)["pending"]) == 2
        _, details = site.refused("apply", release)
    finally:
        pooler.listener.close()
    assert details["failure"]["kind"] == "pooler"
    assert site.columns() == set()


# --------------------------------------------------------------------------------------------------- killed in it


def test_killed_in_a_migration_the_next_run_converges(site):
    site.run("apply", site.release(1, BASE))
    files = {
        **BASE,
        "shifts/0003_slow": migration(
            'migrations.AddField("roster", "extra", models.TextField(null=True)),'
            ' migrations.RunSQL("SELECT pg_sleep(300)", migrations.RunSQL.noop)',
            "0002_note",
        ),
    }
    child = site.start(site.release(2, files))
    site.wait_for("pg_sleep(300)")
    kill(child)
    assert site.columns() == {"id", "month", "note"}
    files["shifts/0003_slow"] = files["shifts/0003_slow"].replace("pg_sleep(300)", "pg_sleep(0)")
    # The server would sleep on for 5 minutes and hold its locks; it notices that its client is gone.
    assert site.run("apply", site.release(3, files), allow_contract=True)["done"] == ["shifts.0003_slow"]
    assert site.columns() == {"id", "month", "note", "extra"}


def test_a_query_of_a_killed_run_that_still_runs_is_waited_for(site):
    release = site.release(1, BASE)
    with site.session(django_driver.NAME) as session:
        message, details = site.refused("apply", release, lock_wait_seconds=1)
        assert details["failure"]["kind"] == "leftover" and details["failure"]["pid"] == session.pid
        assert "whose process is gone" in message and "pg_terminate_backend(%d)" % session.pid in message
    assert site.run("apply", release)["changed"]


def test_a_run_ends_when_its_parent_has_ended(site):
    release = site.release(
        1, {"shifts/0001_slow": migration('migrations.RunSQL("SELECT pg_sleep(100)", migrations.RunSQL.noop)')}
    )
    child = site.start(release, limit_seconds=8)
    site.wait_for("pg_sleep")
    assert child.wait(timeout=30) == 1
    child.communicate()


@pytest.mark.parametrize(
    "index",
    [
        INDEX,
        'migrations.RunSQL("CREATE INDEX CONCURRENTLY roster_month ON shifts_roster (month)", "")',
        # Without a repair PostgreSQL would take the unfinished one for good.
        'migrations.RunSQL("CREATE INDEX CONCURRENTLY IF NOT EXISTS roster_month ON shifts_roster (month)", "")',
    ],
)
def test_killed_while_it_builds_an_index_the_next_run_repairs_it(site, index):
    site.run("apply", site.release(1, BASE))
    release = site.release(2, {**BASE, "shifts/0003_index": migration(index, "0002_note", atomic=False)})
    with site.session("a long report") as session:
        session("BEGIN")
        session("INSERT INTO shifts_roster (month) VALUES ('2025-07')")
        child = site.start(release, lock_timeout_seconds=30)
        site.wait_for("CREATE INDEX CONCURRENTLY")
        kill(child)
        for _ in range(100):  # The server notices.
            if (
                site.sql(
                    "SELECT 1 FROM pg_stat_activity WHERE application_name = '%s' AND datname = current_database()"
                    % django_driver.NAME
                )
                == []
            ):
                break
            time.sleep(0.2)
        session("COMMIT")
    assert site.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'roster_month'::regclass") == [["False"]]
    result = site.run("apply", release, first_deploy=True)
    assert result["done"] == ["shifts.0003_index"] and "roster_month" in result["repaired"][0]
    assert site.sql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'roster_month'::regclass") == [["True"]]


# A migration that is no transaction, in which a function ends the process where the file `die` exists. It holds a
# table with a foreign key, whose constraint and index Django makes after the last operation.
STEPS = (
    """migrations.CreateModel("Swap", [("id", models.BigAutoField(primary_key=True)),
    ("roster", models.ForeignKey("shifts.roster", models.CASCADE))])""",
    "migrations.RunPython(perhaps_die, perhaps_die)",
    ADD_EXTRA,
    'migrations.RunSQL("CREATE INDEX CONCURRENTLY by_hand ON shifts_roster (extra)", "DROP INDEX by_hand")',
    "migrations.RunPython(perhaps_die, perhaps_die)",
    """migrations.SeparateDatabaseAndState([migrations.RunSQL("CREATE TABLE plain (id int)", "DROP TABLE plain"),
    migrations.RunPython(perhaps_die, perhaps_die),
    migrations.RunSQL("CREATE TABLE other (id int)", "DROP TABLE other")])""",
    INDEX,
    "migrations.RunPython(perhaps_die, perhaps_die)",
    'migrations.RunSQL("CREATE TABLE last (id int)", "DROP TABLE last")',
)
PERHAPS_DIE = """
import os, pathlib, signal

def perhaps_die(apps, schema_editor):
    file = pathlib.Path(os.environ["TEST_DIE"])
    left = int(file.read_text()) if file.exists() else 0
    file.write_text(str(left - 1))
    if left == 1:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def steps(site):
    """(site, die, release): a site on BASE; die(n) ends the process at its n-th chance; the release with STEPS."""
    file = site.root / "die"
    site.environment["TEST_DIE"] = str(file)
    site.run("apply", site.release(1, BASE))
    files = {"shifts/0003_steps": migration(",".join(STEPS), "0002_note", atomic=False, extra=PERHAPS_DIE)}
    return site, lambda chance: file.write_text(str(chance)), site.release(2, dict(BASE, **files))


def schema(site):
    """Every column, index and constraint of the database's own tables."""
    return (
        sorted(
            site.sql("SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'")
            + site.sql("SELECT indexdef, 'index' FROM pg_indexes WHERE schemaname = 'public'")
            + site.sql(
                "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
                " WHERE connamespace = 'public'::regnamespace"
            )
        ),
        site.sql("SELECT indexrelid::regclass FROM pg_index WHERE NOT indisvalid"),
    )


@pytest.fixture
def complete(steps):
    """The schema on both sides of the migration, by runs that nothing interrupts."""
    site, _, release = steps
    before = schema(site)
    site.run("apply", release, first_deploy=True)
    after = schema(site)
    assert before != after and any("fk" in row[0] for row in after[0]), (
        "no foreign key: this verifies less than it should"
    )
    site.run("reverse", release, str(Path(release).with_name("20250801T000000Z-0000001")))
    assert schema(site) == before
    return before, after


@pytest.mark.parametrize("chance", [1, 2, 3, 4])
def test_the_next_run_continues_in_either_direction_after_a_kill_between_operations(steps, complete, chance):
    site, die, new = steps
    old = str(Path(new).with_name("20250801T000000Z-0000001"))
    before, after = complete

    def killed(mode, *arguments):
        die(chance)
        with pytest.raises(ReleaseCodeError):
            site.run(mode, *arguments, first_deploy=True)
        assert schema(site) not in (before, after)

    def forward():
        assert site.run("apply", new, first_deploy=True)["done"] == ["shifts.0003_steps"]
        assert schema(site) == after

    def backward():
        assert site.run("reverse", new, old)["done"] == ["shifts.0003_steps"]
        assert schema(site) == before

    killed("apply", new)
    assert site.run("compare", new, old)["ahead"][0]["name"] == "0003_steps"
    forward()
    killed("reverse", new, old)
    backward()
    killed("apply", new)
    backward()
    forward()
    killed("reverse", new, old)
    assert [m["name"] for m in site.run("plan", new)["pending"]] == ["0003_steps"]
    forward()


def test_a_half_applied_migration_is_not_completed_by_another_file(steps):
    site, die, new = steps
    die(2)
    with pytest.raises(ReleaseCodeError):
        site.run("apply", new, first_deploy=True)
    file = Path(new, "source/shifts/migrations/0003_steps.py")
    text = file.read_text()
    file.write_text(text.replace('"extra"', '"other"', 1))
    message, details = site.refused("apply", new, first_deploy=True)
    assert details["failure"]["kind"] == "changed" and "(operation 3)" in message and not details["changed"]
    # Operations that were not applied may be fixed: the rest of the file is another one.
    file.write_text(text.replace("CREATE TABLE other", "CREATE TABLE another"))
    assert site.run("apply", new, first_deploy=True)["done"] == ["shifts.0003_steps"]
    assert site.columns("another") == {"id"} and "extra" in site.columns()


def test_a_first_operation_that_fails_leaves_no_half_applied_migration(site):
    old = site.release(1, BASE)
    site.run("apply", old)
    files = {"shifts/0003_fails": migration(f"{FAILS}, {DROP_MONTH}", "0002_note", atomic=False)}
    new = site.release(2, dict(BASE, **files))
    site.refused("apply", new, allow_contract=True)
    result = site.run("compare", new, old)
    assert (result["safe_to_rollback"], result["ahead"], result["half"]) == (True, [], [])


def test_a_release_that_was_never_live_reverts_its_half_applied_migration(site):
    """The live release, which stays live, does not contain the file."""
    old = site.release(1, BASE)
    site.run("apply", old)
    files = {"shifts/0003_half": migration(f"{DROP_MONTH}, {FAILS}", "0002_note", atomic=False)}
    new = site.release(2, dict(BASE, **files))
    site.refused("apply", new, allow_contract=True)
    result = site.run("compare", old, old)
    assert not result["safe_to_rollback"] and [m["name"] for m in result["ahead"]] == ["0003_half"]
    result = site.run("reverse", old, old)
    assert result["done"] == ["shifts.0003_half"] and site.columns() == {"id", "month", "note"}
    assert site.run("compare", old, old)["ahead"] == []
    site.refused("apply", new, allow_contract=True)
    shutil.rmtree(new)
    message, _ = site.refused("reverse", old, old)
    assert "does not hold the files of shifts.0003_half" in message


def test_code_with_a_half_reverted_migration_does_not_fit(site):
    old = site.release(1, BASE)
    files = {
        "shifts/0003_half": migration(
            f'migrations.RunSQL("SELECT 1", "SELECT no_such_column"), {ADD_EXTRA}',
            "0002_note",
            atomic=False,
        )
    }
    new = site.release(2, dict(BASE, **files))
    site.run("apply", new, first_deploy=True)
    site.refused("reverse", new, old)
    assert "extra" not in site.columns()
    assert site.run("compare", new, new)["unapplied"] == ["shifts.0003_half"]
    assert [m["name"] for m in site.run("plan", new)["pending"]] == ["0003_half"]
    assert site.run("apply", new, first_deploy=True)["changed"] and site.run("compare", new, new)["unapplied"] == []


def test_an_index_of_another_table_is_not_dropped(site):
    site.run("apply", site.release(1, BASE))
    site.sql("CREATE TABLE other (id int); CREATE UNIQUE INDEX roster_month ON other (id)")
    index = 'migrations.RunSQL("CREATE INDEX CONCURRENTLY roster_month ON shifts_roster (month)", "")'
    files = {"shifts/0003_index": migration(index, "0002_note", atomic=False)}
    message, _ = site.refused("apply", site.release(2, dict(BASE, **files)), first_deploy=True)
    assert "already exists" in message
    assert "other" in site.sql("SELECT pg_get_indexdef('roster_month'::regclass)")[0][0]


def test_statements_of_a_non_atomic_operation_commit_one_by_one(site):
    site.run("apply", site.release(1, BASE))
    two = 'migrations.RunSQL(["CREATE TABLE first (id int)", "SELECT no_such_column"], "")'
    files = {"shifts/0003_two": migration(two, "0002_note", atomic=False)}
    site.refused("apply", site.release(2, dict(BASE, **files)), first_deploy=True)
    assert site.columns("first") == {"id"}


def test_a_failed_operation_outside_a_transaction_leaves_nothing_and_is_repeated_alone(site):
    site.run("apply", site.release(1, BASE))
    twice = """migrations.RunSQL("DO $$ BEGIN CREATE TABLE first (id int); INSERT INTO %s VALUES (1); END $$")"""
    files = {"shifts/0003_half": migration(f"{INDEX}, {twice % 'missing'}", "0002_note", atomic=False)}
    message, _ = site.refused("apply", site.release(2, dict(BASE, **files)), first_deploy=True)
    assert "missing" in message and "The next run continues after them." in message and site.columns("first") == set()
    files["shifts/0003_half"] = migration(f"{INDEX}, {twice % 'first'}", "0002_note", atomic=False)
    result = site.run("apply", site.release(3, dict(BASE, **files)), first_deploy=True)
    assert (result["done"], result["repaired"]) == (["shifts.0003_half"], [])
    assert site.sql("SELECT to_regclass('shiftmaster_migration_progress')") == [["None"]]


# ------------------------------------------------------------------------------------------- compare and reverse


def two_apps():
    """shifts.0003 and staff.0001 depend on each other's neighbours: staff.0001 on shifts.0003, shifts.0004 on it."""
    return {
        **BASE,
        "shifts/0003_extra": migration(ADD_EXTRA, "0002_note"),
        "staff/0001_initial": migration(
            'migrations.CreateModel("Nurse", [("id", models.BigAutoField(primary_key=True)),'
            ' ("roster", models.ForeignKey("shifts.roster", models.CASCADE))])',
            [("shifts", "0003_extra")],
        ),
        "shifts/0004_last": migration(
            'migrations.AddField("roster", "head", models.ForeignKey("staff.nurse", models.SET_NULL, null=True,'
            ' related_name="+"))',
            [("shifts", "0003_extra"), ("staff", "0001_initial")],
        ),
    }


def test_compare_finds_what_migrate_check_does_not(site):
    old = site.release(1, {**BASE, "staff/0000_none": migration("")})
    site.run("apply", old)
    new = site.release(
        2,
        {
            **two_apps(),
            "staff/0000_none": migration(""),
            "staff/0001_initial": two_apps()["staff/0001_initial"].replace(
                "('shifts', '0003_extra')", "('shifts', '0003_extra'), ('staff', '0000_none')"
            ),
        },
    )
    site.run("apply", new)
    assert ReleaseCode(old, None).manage([["migrate", "--check"]]).rc == 0  # Django sees nothing of it.
    result = site.run("compare", new, old)
    assert [m["name"] for m in result["ahead"]] == ["0003_extra", "0001_initial", "0004_last"]
    assert result["safe_to_rollback"] and result["worst_class"] == "expand" and not result["changed"]
    assert {m["found_in"] for m in result["ahead"]} == {os.path.basename(new)}
    assert site.run("compare", old, new)["safe_to_rollback"]
    assert site.run("compare", target=old)["safe_to_rollback"]


def test_compare_refuses_after_a_contract_migration_and_a_missing_file(site):
    old = site.release(1, BASE)
    new = site.release(2, {**BASE, "shifts/0003_drop": migration(DROP_MONTH, "0002_note")})
    site.run("apply", new, first_deploy=True)
    result = site.run("compare", new, old)
    assert not result["safe_to_rollback"]
    assert "shifts.0003_drop (contract: RemoveField roster.month" in result["reason"]
    assert [one["reversible"] for one in result["ahead"]] == [True]  # By which a rollback offers to unapply it.
    shutil.rmtree(new)
    result = site.run("compare", target=old)
    assert (
        not result["safe_to_rollback"] and "no retained release holds the file of shifts.0003_drop" in result["reason"]
    )
    Path(old, "manifest.json").write_text(json.dumps({"applied_when_live": ["shifts.0003_drop"]}))
    assert site.run("compare", target=old)["safe_to_rollback"]


def test_compare_reads_files_where_the_old_code_does_not_run(site):
    old = site.release(1, BASE)
    new = site.release(2, {**BASE, "shifts/0003_drop": migration(DROP_MONTH, "0002_note")})
    site.run("apply", new, first_deploy=True)
    Path(old, "source", "settings.py").write_text("raise RuntimeError('broken')\n")
    result = site.run("compare", new, old)
    assert [m["name"] for m in result["ahead"]] == ["0003_drop"] and "broken" in result["warnings"][0]


def test_reverse_unapplies_across_apps_in_order(site):
    old = site.release(1, BASE)
    new = site.release(2, two_apps())
    site.run("apply", new)
    checked = site.run("reverse", new, old, check=True)
    assert checked["changed"] and "shifts.0004_last" in checked["diff"]["before"] and "extra" in site.columns()
    result = site.run("reverse", new, old)
    assert result["done"] == ["shifts.0004_last", "staff.0001_initial", "shifts.0003_extra"]
    assert result["applied"] == ["shifts.0001_initial", "shifts.0002_note"] and result["safe_to_rollback"]
    assert "shifts.0003_extra: the values of roster.extra" in result["loses"]
    assert site.columns() == {"id", "month", "note"} and site.columns("staff_nurse") == set()
    assert not site.run("reverse", new, old)["changed"]
    assert len(site.run("apply", new)["done"]) == 3  # And forward again.


def test_reverse_refuses_an_irreversible_migration_before_it_begins(site):
    old = site.release(1, BASE)
    new = site.release(
        2,
        {
            **BASE,
            "shifts/0003_once": migration(
                'migrations.RunSQL("UPDATE shifts_roster SET month = NULL WHERE false")', "0002_note"
            ),
            "shifts/0004_extra": migration(ADD_EXTRA, "0003_once"),
        },
    )
    site.run("apply", new, first_deploy=True)
    compare = site.run("compare", new, old)
    assert compare["worst_class"] == "irreversible" and not compare["safe_to_rollback"]
    assert {one["name"]: one["reversible"] for one in compare["ahead"]} == {"0003_once": False, "0004_extra": True}
    message, details = site.refused("reverse", new, old)
    assert "shifts.0003_once" in message and details["failure"]["kind"] == "irreversible" and not details["changed"]
    assert "extra" in site.columns()


def test_a_failed_reverse_reports_what_it_has_reversed(site):
    old = site.release(1, BASE)
    new = site.release(
        2,
        {
            **BASE,
            "shifts/0003_bad_way_back": migration(
                'migrations.RunSQL("SELECT 1", "SELECT no_such_column")', "0002_note"
            ),
            "shifts/0004_extra": migration(ADD_EXTRA, "0003_bad_way_back"),
        },
    )
    site.run("apply", new, first_deploy=True)
    message, details = site.refused("reverse", new, old)
    assert details["done"] == ["shifts.0004_extra"] and "shifts.0003_bad_way_back failed" in message
    assert "this run unapplied shifts.0004_extra" in message


SQUASHED = """
from django.db import migrations, models

class Migration(migrations.Migration):
    replaces = [("shifts", "0001_initial"), ("shifts", "0002_note")]
    dependencies = []
    operations = [%s, %s]
""" % (INITIAL, ADD_NOTE)


def test_a_squashed_migration_is_no_difference_in_either_direction(site):
    old = site.release(1, BASE)
    both = site.release(2, {**BASE, "shifts/0001_squashed": SQUASHED})
    only = site.release(3, {"shifts/0001_squashed": SQUASHED})
    site.run("apply", old)
    assert site.run("plan", both)["pending"] == [] and site.run("plan", only)["pending"] == []
    site.run("apply", both)
    for release in (old, both, only):
        result = site.run("compare", target=release)
        assert result["ahead"] == [] and result["unapplied"] == [], release
    assert not site.run("reverse", only, old)["changed"]


def test_a_fresh_database_that_took_the_squashed_one(site):
    old = site.release(1, BASE)
    only = site.release(3, {"shifts/0001_squashed": SQUASHED})
    site.run("apply", only)
    assert site.run("compare", target=old)["ahead"] == []
    older = site.release(0, {"shifts/0001_initial": BASE["shifts/0001_initial"]})
    result = site.run("compare", target=older)
    assert [m["name"] for m in result["ahead"]] == ["0002_note"] and result["safe_to_rollback"]
    message, details = site.refused("reverse", only, older)
    assert "shifts.0001_squashed" in message and details["failure"]["kind"] == "squashed"


def test_a_squashed_migration_is_unapplied_by_the_release_that_holds_it(site):
    """Another release has the files of what it replaces, and not its own."""
    other = {"staff/0000_none": migration("")}
    site.release(1, dict(BASE, **other))
    new = site.release(3, {**other, "shifts/0001_squashed": SQUASHED})
    older = site.release(0, other)
    site.run("apply", new)
    assert site.run("reverse", new, older)["done"] == ["shifts.0001_squashed"] and site.columns() == set()


# ---------------------------------------------------------------------------------- the module itself, and SQLite


def test_the_module_as_ansible_runs_it(site):
    release = site.release(1, BASE)
    old = site.release(0, {"shifts/0001_initial": BASE["shifts/0001_initial"]})
    environment = dict(
        os.environ,
        ANSIBLE_LIBRARY=str(ROOT / "library"),
        ANSIBLE_MODULE_UTILS=str(ROOT / "module_utils"),
        ANSIBLE_CONFIG=str(site.root / "ansible.cfg"),
    )
    (site.root / "ansible.cfg").write_text("[defaults]\nlocalhost_warning = false\n")

    def ansible(*options, **arguments):
        done = subprocess.run(
            [
                str(Path(sys.executable).parent / "ansible"),
                "localhost",
                "-m",
                "shiftmaster_migrations",
                "-e",
                "ansible_python_interpreter=" + sys.executable,
                "-a",
                json.dumps(dict(arguments, user="")),
            ]
            + list(options),
            text=True,
            capture_output=True,
            env=environment,
            timeout=120,
        )
        return done.returncode, json.loads(done.stdout[done.stdout.index("=> {") + 3 :])

    rc, result = ansible("--check", "--diff", mode="apply", release=release)
    assert rc == 0 and result["changed"] and site.columns() == set()
    rc, result = ansible(mode="apply", release=release)
    assert rc == 0 and result["changed"] and result["done"] == ["shifts.0001_initial", "shifts.0002_note"]
    rc, result = ansible(mode="apply", release=release)
    assert rc == 0 and not result["changed"]
    rc, result = ansible(mode="compare", release=release, target_release=old)
    assert rc == 0 and result["safe_to_rollback"] and result["ahead"][0]["name"] == "0002_note"
    rc, result = ansible(mode="compare", release=release)
    assert rc != 0 and "target_release" in result["msg"]
    rc, result = ansible(mode="plan", release=release + "-gone")
    assert rc != 0 and "is no release" in result["msg"]


def test_sqlite_works_without_locks(sqlite):
    old = sqlite.release(1, BASE)
    new = sqlite.release(2, two_apps())
    assert sqlite.run("apply", new)["done"][-1] == "shifts.0004_last"
    assert not sqlite.run("apply", new)["changed"]
    assert len(sqlite.run("compare", target=old)["ahead"]) == 3
    assert len(sqlite.run("reverse", new, old)["done"]) == 3
