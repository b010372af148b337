"""shiftmaster_dump's decisions, and its order of steps with stubs for PostgreSQL's tools.

The real tools are tested with a real database in a scenario.
"""

from __future__ import annotations

import datetime
import json
import os
import stat
import subprocess
import time
import types

import pytest
import shiftmaster_dump as dump

DATABASE = {
    "host": "db.invalid",
    "port": "5432",
    "name": "shiftmaster",
    "user": "shiftmaster",
    "sslmode": "prefer",
    "sslrootcert": "",
}
PASSWORD = "s3cret"
# Each stub writes down how it was called; what it does besides is in a file next to it.
TOOL = """#!/bin/sh
echo "$(basename "$0") $*" >> "$(dirname "$0")/calls"
case "$(tr '\\0' ' ' < /proc/$$/cmdline)" in *s3cret*) echo leaked >> "$(dirname "$0")/calls";; esac
test "$PGPASSWORD" = s3cret || echo nopassword >> "$(dirname "$0")/calls"
. "$(dirname "$0")/$(basename "$0").does"
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Put stubs in place that work; returns a callable that makes one do something else."""
    directory = tmp_path / "bin"
    directory.mkdir()

    def does(tool, text):
        (directory / (tool + ".does")).write_text(text)

    for tool in dump.TOOLS:
        (directory / tool).write_text(TOOL)
        (directory / tool).chmod(0o755)
    does(
        "psql",
        "case \"$*\" in *server_version_num*) echo '170005 1000 17.5 (Debian)';; *rolsuper*) echo 'f|owner';;"
        ' *nspname*) echo public;; *ANALYZE*) ;; *) cat > "$(dirname "$0")/sql";; esac\n',
    )
    does("pg_dump", 'for word; do case $word in --file=*) echo content > "${word#--file=}";; esac; done\n')
    does(
        "pg_restore",
        "case \"$*\" in *--list*) echo '; head'; echo '3; 1259 1 TABLE public ward shiftmaster';;"
        " *--file=-*) echo 'SET statement_timeout = 0;'; echo 'SET transaction_timeout = 0;';"
        " echo 'CREATE TABLE ward ();';; esac\n",
    )
    monkeypatch.setattr(dump, "installed_tools", lambda: {str(directory): 17})
    does.directory = directory
    # Children inherit it, so that they differ from those of another run of the tests.
    monkeypatch.setenv("SHIFTMASTER_TEST", str(directory))
    does.mark = b"SHIFTMASTER_TEST=%s" % str(directory).encode()
    return does


@pytest.fixture
def options(tmp_path):
    return {
        "directory": str(tmp_path / "copies"),
        "name": "2.0.0",
        "database": DATABASE,
        "password": PASSWORD,
        "keep": 2,
        "protect": [],
        "release": "20260101T000000Z-0a1b2c3",
        "file": None,
        "timeout_seconds": 60,
    }


def take(options):
    return dump.present(options, time.monotonic() + 60)


def calls(tools):
    return (tools.directory / "calls").read_text()


# --------------------------------------------------------------------------------------------------------- taking one


def test_a_dump_is_complete_private_and_described(tools, options):
    result = take(options)
    directory = options["directory"]
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert sorted(os.listdir(directory)) == [
        ".lock",
        os.path.basename(result["file"]),
        os.path.basename(result["file"]) + ".json",
    ]
    for name in os.listdir(directory):
        assert stat.S_IMODE(os.stat(os.path.join(directory, name)).st_mode) == 0o600, name
    with open(result["file"] + ".json", encoding="utf-8") as stream:
        manifest = json.load(stream)
    assert manifest == result["manifest"]
    assert manifest["sha256"] == dump.sha256(result["file"]) and manifest["bytes"] == 8
    wanted = {"database": "shiftmaster", "server_version": "17.5 (Debian)", "entries": 1}
    assert {key: manifest[key] for key in wanted} == wanted
    assert os.path.basename(result["file"]).endswith("-2.0.0.dump")


def test_the_password_is_in_the_environment_and_in_no_arguments(tools, options):
    take(options)
    assert "leaked" not in calls(tools) and "nopassword" not in calls(tools)
    assert "s3cret" not in calls(tools)


@pytest.mark.parametrize(
    "tool, text",
    [
        (
            "pg_dump",
            'for word; do case $word in --file=*) echo half > "${word#--file=}";; esac; done\n'
            "echo 'pg_dump: error: could not write to output file: No space left on device' >&2; exit 1\n",
        ),
        (
            "pg_restore",
            "case \"$*\" in *--list*) echo '3; 1 1 TABLE a b c';; *) echo 'pg_restore: error: could not read' "
            ">&2; exit 1;; esac\n",
        ),
        ("pg_restore", "echo 'pg_restore: error: not an archive' >&2; exit 1\n"),
    ],
)
def test_a_failed_dump_leaves_nothing(tools, options, tool, text):
    tools(tool, text)
    with pytest.raises(dump.DumpError) as error:
        take(options)
    assert "\n" not in str(error.value) and "failed: " in str(error.value)
    assert os.listdir(options["directory"]) == [".lock"]


def test_a_list_of_contents_is_not_read_without_end(tools, options, monkeypatch):
    """The application can make any number of objects."""
    monkeypatch.setattr(dump, "OUTPUT_BYTES", 1 << 20, raising=False)
    tools("pg_restore", "case \"$*\" in *--list*) yes '3; 1259 1 TABLE public ward x' | head -c 9000000;; esac\n")
    with pytest.raises(dump.DumpError, match="more than 1 MiB"):
        take(options)
    assert os.listdir(options["directory"]) == [".lock"]


def test_a_dump_that_hangs_is_ended(tools, options):
    tools("pg_dump", "sleep 61\n")
    started = time.monotonic()
    with pytest.raises(dump.DumpError, match="did not end in time"):
        dump.present(options, time.monotonic() + 0.5)
    assert time.monotonic() - started < 20 and sleeping(61, tools.mark) == []
    assert os.listdir(options["directory"]) == [".lock"]


def test_too_small_a_disk_is_refused_before_anything_is_written(tools, options, monkeypatch):
    full = types.SimpleNamespace(f_bavail=1, f_frsize=512)
    monkeypatch.setattr(dump.os, "statvfs", lambda _path: full)
    with pytest.raises(dump.DumpError, match="there is too little room for the pre-migration dump in .* needed"):
        take(options)
    assert "pg_dump " not in calls(tools)


def test_files_of_a_killed_run_are_removed_and_unknown_files_are_not(tools, options):
    os.makedirs(options["directory"])
    for name in (
        ".20260101T000000Z-x.dump.part",
        "20260101T000000Z-x.dump.json",
        "20260101T000000Z-x.dump.json.new",
        "notes.txt",
        "20260101T000000Z-mine.dump",
        "other.json",
    ):
        with open(os.path.join(options["directory"], name), "w", encoding="utf-8"):
            pass
    removed = [os.path.basename(path) for path in take(options)["removed"]]
    assert sorted(name for name in os.listdir(options["directory"]) if "2.0.0" not in name) == [
        ".lock",
        "20260101T000000Z-mine.dump",
        "notes.txt",
        "other.json",
    ]
    assert sorted(removed) == [
        ".20260101T000000Z-x.dump.part",
        "20260101T000000Z-x.dump.json",
        "20260101T000000Z-x.dump.json.new",
    ]


def test_a_second_dump_in_the_same_second_does_not_replace_the_first(tools, options):
    assert len({take(options)["file"] for _number in range(2)}) == 2


def test_a_run_that_holds_the_directory_is_waited_for(tools, options, tmp_path):
    with (
        dump.exclusive(str(tmp_path)),
        pytest.raises(dump.DumpError, match="another pre-migration dump is being taken"),
        dump.exclusive(str(tmp_path), wait_seconds=0),
    ):
        pass


@pytest.mark.parametrize("name", ["../x", "a b", "", "a/b", ".hidden", "x\n"])
def test_a_name_that_contains_a_path_is_rejected(tools, options, name):
    options["name"] = name
    with pytest.raises(dump.DumpError, match="cannot be part of a file's name"):
        take(options)


def test_check_mode_reports_obstacles_and_creates_nothing(options, monkeypatch):
    monkeypatch.setattr(dump, "installed_tools", dict)
    output = []
    result = dump.would_take(options, time.monotonic() + 5, output.append)
    assert result["changed"] is True
    assert "are not on this host; install the package postgresql-client" in output[0]
    assert not os.path.exists(options["directory"])


def test_children_die_with_the_module(tools, options, tmp_path):
    """A killed run must not leave a pg_dump that continues to write."""
    tools("pg_dump", "exec sleep 60\n")
    code = (
        "import sys, time; sys.path[:0] = %r; import ansible.module_utils as u; u.__path__.append(%r)\n"
        "import shiftmaster_dump as d; d.installed_tools = lambda: {%r: 17}\n"
        "d.present(%r, time.monotonic() + 60)"
        % (
            [os.path.dirname(dump.__file__)],
            os.path.join(os.path.dirname(dump.__file__), "../../module_utils"),
            str(tools.directory),
            options,
        )
    )
    child = subprocess.Popen((os.sys.executable, "-c", code))
    part = None
    for _number in range(100):
        part = (
            [name for name in os.listdir(options["directory"]) if name.endswith(".part")]
            if os.path.isdir(options["directory"])
            else []
        )
        if part:
            break
        time.sleep(0.1)
    deadline = time.monotonic() + 20
    while not sleeping(60, tools.mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert part and sleeping(60, tools.mark)
    child.kill()
    child.wait()
    while sleeping(60, tools.mark) and time.monotonic() < deadline:
        time.sleep(0.05)
    with dump.exclusive(options["directory"], wait_seconds=0):
        assert sleeping(60, tools.mark) == []
        assert dump.remove_unfinished(options["directory"]) == [os.path.join(options["directory"], part[0])]


def sleeping(seconds, mark):
    """Return the processes of this test that our stub for pg_dump became."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/cmdline" % pid, "rb") as words, open("/proc/%s/environ" % pid, "rb") as environ:
                if words.read() == b"sleep\0%d\0" % seconds and mark in environ.read():
                    found.append(pid)
        except OSError:
            continue
    return found


# ---------------------------------------------------------------------------------------------------------- restoring


@pytest.fixture
def copy(tools, options):
    options["file"] = os.path.basename(take(options)["file"])
    return os.path.join(options["directory"], options["file"])


def revert(options, check_mode=False):
    return dump.restored(options, time.monotonic() + 60, check_mode)


def sql(tools):
    path = tools.directory / "sql"
    return path.read_text() if path.exists() else ""


def test_rights_of_the_owner_are_restored(tools, options, copy, monkeypatch):
    """The login has another name than the owner of the objects, as which it acts."""
    entries = []
    choose = dump.wanted_entries

    def chosen(listing, user, *arguments):
        found = choose(
            listing + "4; 0 0 ACL public TABLE ward owner\n5; 0 0 ACL public TABLE x other\n", user, *arguments
        )
        entries.extend(found)
        return found

    monkeypatch.setattr(dump, "wanted_entries", chosen)
    revert(options)
    assert any(line.startswith("4;") for line in entries) and not any(line.startswith("5;") for line in entries)


def test_a_restore_is_one_transaction_and_reports_what_is_lost(tools, options, copy):
    result = revert(options)
    text = sql(tools)
    assert text.startswith("BEGIN;\n") and text.endswith("CREATE TABLE ward ();\n\nCOMMIT;\n")
    assert text.index("DROP SCHEMA") < text.index("CREATE TABLE ward")
    assert "transaction_timeout" not in text, "a server before 17 does not know it"
    assert 0 <= result["data_loss_seconds"] < 60 and result["data_loss"].endswith("is lost")
    assert "--no-owner" in calls(tools)


@pytest.mark.parametrize(
    "tool, text, words",
    [
        # The reader fails in the middle: what psql has got so far must not be committed.
        (
            "pg_restore",
            "case \"$*\" in *--list*) echo '3; 1 1 TABLE a b c';; *--file=-*) echo 'CREATE TABLE a ();'; "
            "echo 'pg_restore: error: end of file' >&2; exit 1;; esac\n",
            "end of file",
        ),
        (
            "psql",
            "case \"$*\" in *server_version_num*) echo '170005 1000 17.5';; *rolsuper*) echo f;; *nspname*) ;;"
            ' *) head -n 1 > "$(dirname "$0")/sql"; echo \'psql: ERROR:  permission denied\' >&2; exit 3;; esac\n',
            "permission denied",
        ),
    ],
)
def test_a_restore_that_fails_commits_nothing(tools, options, copy, tool, text, words):
    tools(tool, text)
    with pytest.raises(dump.DumpError, match="the database is as it was: .*" + words):
        revert(options)
    assert "COMMIT" not in sql(tools)


def test_notices_of_a_function_fill_no_file(tools, options, copy):
    requested = "*server_version_num*) echo '170005 1000 17.5';; *rolsuper*) echo f;; *nspname*) ;;"
    flood = 'yes \'NOTICE:  x\' | head -c 9000000 >&2; stat -L -c %s /proc/$$/fd/2 >"$(dirname "$0")/sql"'
    tools(
        "psql",
        f"case \"$*\" in {requested} *) cat >/dev/null; {flood}; echo 'psql: ERROR:  at the end' >&2; exit 3;; esac\n",
    )
    with pytest.raises(dump.DumpError, match="at the end"):
        revert(options)
    assert int(sql(tools)) < 1 << 20


def test_a_restore_that_hangs_during_commit_does_not_report_that_nothing_was_changed(tools, options, copy):
    requested = "*server_version_num*) echo '170005 1000 17.5';; *rolsuper*) echo f;; *nspname*) ;;"
    tools("psql", f'case "$*" in {requested} *) cat >/dev/null; exec sleep 60;; esac\n')
    with pytest.raises(dump.DumpError, match="as it was, or as the copy has it"):
        dump.restored(options, time.monotonic() + 6, False)


@pytest.mark.parametrize(
    "fired", [(True, True), (False, True)], ids=["before it would be committed", "when it was committed"]
)
def test_time_that_is_over_between_two_steps_of_a_restore(tools, options, copy, monkeypatch, fired):
    class Timer:
        def __init__(self, *_arguments):
            self.fired = fired[0]

        def stop(self):
            self.fired = fired[1]

    monkeypatch.setattr(dump, "_Timer", Timer)
    if fired[0]:
        with pytest.raises(dump.DumpError, match="the database is as it was; raise"):
            revert(options)
    else:
        revert(options)
    assert ("COMMIT" in sql(tools)) is not fired[0]


def test_a_restore_that_hangs_commits_nothing(tools, options, copy):
    tools("pg_restore", "case \"$*\" in *--file=-*) echo 'CREATE TABLE a ();'; exec sleep 60;; esac\n")
    with pytest.raises(dump.DumpError, match="did not end in time"):
        dump.restored(options, time.monotonic() + 0.5, False)
    assert "COMMIT" not in sql(tools)


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda path: open(path, "a").write("x"), "is damaged"),
        (lambda path: open(path, "w").write("CONTENT\n"), "is damaged"),
        (lambda path: os.unlink(path + ".json"), "no usable manifest"),
        (lambda path: open(path + ".json", "w").write("{"), "no usable manifest"),
        (lambda path: os.unlink(path), "there is no pre-migration dump"),
    ],
)
def test_an_incomplete_dump_is_not_restored(tools, options, copy, damage, words):
    damage(copy)
    (tools.directory / "calls").unlink()
    with pytest.raises(dump.DumpError, match=words):
        revert(options)
    assert not (tools.directory / "calls").exists(), "the database was queried before the copy was checked"


def test_a_dump_of_another_database_is_not_restored(tools, options, copy):
    options["database"] = dict(DATABASE, name="other")
    with pytest.raises(dump.DumpError, match="is of the database shiftmaster, not of other"):
        revert(options)


def test_check_mode_restores_nothing(tools, options, copy):
    result = revert(options, check_mode=True)
    assert sql(tools) == "" and result["changed"] and result["data_loss"].endswith("would be lost")


def test_rights_and_comments_of_others_are_left_alone():
    listing = "\n".join(
        [
            ";",
            "; Archive created",
            "5; 2615 2200 SCHEMA - public pg_database_owner",
            "6; 2615 1 SCHEMA - app shiftmaster",
            "7; 0 0 ACL - SCHEMA public pg_database_owner",
            "8; 0 0 COMMENT - SCHEMA public pg_database_owner",
            "2; 3079 16400 EXTENSION - citext ",
            "9; 0 0 COMMENT - EXTENSION citext ",
            "10; 0 0 ACL public FUNCTION pg_stat_statements_reset(oid) postgres",
            "11; 0 0 ACL public TABLE ward shiftmaster",
            "12; 0 0 COMMENT public TABLE ward shiftmaster",
            "13; 826 1 DEFAULT ACL public DEFAULT PRIVILEGES FOR TABLES postgres",
            "14; 6104 1 PUBLICATION - all postgres",
            "15; 1259 16385 TABLE public ward shiftmaster",
            "16; 0 16385 TABLE DATA public ward shiftmaster",
        ]
    )

    def numbers(*arguments):
        return [int(line.split(";")[0]) for line in dump.wanted_entries(listing, *arguments)]

    assert numbers("shiftmaster", False, {"public"}) == [6, 2, 11, 12, 15, 16]
    assert numbers("postgres", True, {"public"}) == [6, 2, 10, 11, 12, 13, 14, 15, 16]


# ---------------------------------------------------------------------------------------------------- the small parts


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("170005", 17),
        ("150012", 15),
        ("pg_dump (PostgreSQL) 15.8 (Debian 15.8-0+deb12u1)", 15),
        ("17", 17),
        ("pg_dump (PostgreSQL) 18beta1", 18),
        ("", 0),
    ],
)
def test_major_versions(text, wanted):
    assert dump.major(text) == wanted


def test_tools_of_the_server_version_come_first_then_the_oldest_newer_ones():
    installed = {"/15": 15, "/16": 16, "/17": 17}
    assert [dump.choose_tools(installed, server) for server in (15, 16, 0)] == ["/15", "/16", "/15"]
    assert dump.choose_tools({"/17": 17, "/18": 18}, 15) == "/17"
    with pytest.raises(dump.DumpError, match=r"pg_dump 17 on this host is older than the server \(18\)"):
        dump.choose_tools(installed, 18)
    with pytest.raises(dump.DumpError, match="are not on this host; install the package postgresql-client"):
        dump.choose_tools({}, 17)


def test_settings_of_the_shell_do_not_affect_the_tools():
    before = {"PGHOST": "elsewhere", "PGSERVICE": "x", "PGOPTIONS": "-c x=y", "PATH": "/bin"}
    env = dump.environment(DATABASE, "", before)
    assert env["PGHOST"] == "db.invalid" and env["PATH"] == "/bin"
    assert not {"PGSERVICE", "PGOPTIONS", "PGPASSWORD", "PGTARGETSESSIONATTRS", "PGSSLROOTCERT"} & set(env)
    several = dump.environment(dict(DATABASE, host="a,b", sslrootcert="/ca"), "x", {})
    assert [several[name] for name in ("PGTARGETSESSIONATTRS", "PGSSLROOTCERT", "PGPASSWORD")] == [
        "read-write",
        "/ca",
        "x",
    ]


def test_a_refusal_for_each_address_is_reported_once():
    line = 'psql: error: connection to server at "db" (%s), port 5432 failed: FATAL:  no such role'
    assert dump.error_line("%s\n%s\n" % (line % "::1", line % "127.0.0.1")) == line[len("psql: error: ") :] % "::1"
    assert "another session holds a table" in dump.error_line("ERROR:  canceling statement due to lock timeout")
    assert dump.error_line("") == "no reason given"


def listed(*names, database="shiftmaster", complete=True):
    return [{"file": "/f/" + name, "database": database, "complete": complete} for name in names]


def test_pruning_keeps_the_newest_complete_ones():
    assert dump.prune_plan(listed("1", "2", "3", "4"), 2, "shiftmaster") == ["/f/1", "/f/2"]
    assert dump.prune_plan(listed("1", "2"), 0, "shiftmaster") == ["/f/1"]
    damaged = listed("1") + listed("2", "3", complete=False)
    assert dump.prune_plan(damaged, 1, "shiftmaster") == []
    assert dump.prune_plan(listed("1", complete=False) + listed("2"), 1, "shiftmaster") == ["/f/1"]
    # Deploys that failed again and again leave copies that belong to no release.
    of_release = [dict(listed("1")[0], release="v1"), *listed("2", "3", "4")]
    assert dump.prune_plan(of_release, 2, "shiftmaster") == ["/f/2"]
    assert dump.prune_plan(listed("1", complete=False), 1, "shiftmaster") == []


def test_the_dump_to_restore_is_not_pruned_by_the_one_before_it(tools, options):
    options["keep"] = 1
    first = take(options)["file"]
    assert take(dict(options, protect=[os.path.basename(first)]))["removed"] == []
    assert take(dict(options, protect=[first]))["removed"] != [] and os.path.exists(first)


def test_pruning_ignores_other_databases_and_unknown_files():
    found = listed("1", database="other") + [{"file": "/f/2", "complete": False}] + listed("3", "4")
    assert dump.prune_plan(found, 1, "shiftmaster") == ["/f/3"]


def test_old_dumps_are_removed_with_their_manifests(tools, options):
    options["keep"] = 1
    first = take(options)["file"]
    second = take(options)
    assert second["removed"] == [first]
    assert sorted(os.listdir(options["directory"])) == [
        ".lock",
        os.path.basename(second["file"]),
        os.path.basename(second["file"]) + ".json",
    ]


def test_a_list_shows_which_are_complete_and_how_old(tmp_path):
    at = datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc)
    for name, manifest in (
        ("20260101T000000Z-a.dump", {"bytes": 1, "release": "r"}),
        ("20260101T120000Z-b.dump", {"bytes": 2}),
        ("20260101T130000Z-c.dump", None),
    ):
        (tmp_path / name).write_text("x")
        if manifest:
            (tmp_path / (name + ".json")).write_text(json.dumps(manifest))
    (tmp_path / "other.dump").write_text("x")
    found = dump.copies(str(tmp_path), at)
    assert [(os.path.basename(one["file"])[17:], one["complete"], one["age_seconds"]) for one in found] == [
        ("a.dump", True, 86400),
        ("b.dump", False, 43200),
        ("c.dump", False, 39600),
    ]
    assert found[0]["release"] == "r"
    assert dump.copies(str(tmp_path / "absent")) == []


def test_texts_for_sizes_and_times():
    assert [dump.sized(number) for number in (1010, 2048, 5 * 1024**3)] == ["1010 bytes", "2.0 KiB", "5.0 GiB"]
    assert [dump.lasting(number) for number in (0, 1, 61, 7200, 90061)] == [
        "second",
        "1 second",
        "1 minute 1 second",
        "2 hours",
        "1 day 1 hour",
    ]
