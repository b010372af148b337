#!/usr/bin/python
"""Move Debian's cluster main to another major version of PostgreSQL, and back until that is committed."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import signal
import time

from ansible.module_utils.shiftmaster.host import points, safe_files, units
from ansible.module_utils.shiftmaster.host.postgresql import (
    ROOT,
    Cluster,
    Failed,
    as_postgres,
    differences,
    last_lines,
    running,
    totals,
)
from ansible.module_utils.shiftmaster.host.printable import printable, sized
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.host.sql import SAFE_SEARCH_PATH, quoted
from ansible.module_utils.shiftmaster.release.releasecode import ReleaseCode, ReleaseCodeError
from ansible.module_utils.shiftmaster.release.state import held

DOCUMENTATION = r"""
module: postgresql_upgrade
short_description: Move cluster main to another major version of PostgreSQL
description:
  - C(pg_upgrade) copies the cluster (docs/decisions/0019). The new one becomes the live one when its C(start.conf)
    says C(auto); until then O(state=recovered) goes back to the old one, which nothing has written to.
  - Rows of each table and values of each sequence are compared. Where they differ, the module fails, and
    O(state=recovered) leaves the earlier cluster live.
  - A run that was killed is completed or reverted by O(state=recovered).
options:
  state:
    description:
      - V(planned) inspects; nothing changes. RV(problems) lists why an upgrade is impossible.
      - V(recovered) completes or reverts what an interrupted run left.
      - V(prepared) creates the new cluster next to the running one and runs C(pg_upgrade --check).
      - V(rehearsed) upgrades a restored copy, C(/var/lib/postgresql/upgrade-VERSION-rehearsal/old), in the same way,
        runs the application's checks on it, and removes it. RV(seconds) is how long that takes with the page up.
      - V(upgraded) stops the old server and copies the cluster. The application must be stopped.
      - V(compared) compares rows and sequences with those of before, and collects the first statistics.
      - V(live) makes the new cluster the live one. The application may start after that.
      - V(analyzed) collects complete statistics.
      - V(complete) notes that a backup is there (and statistics), so that a further run has nothing to do.
      - V(returned) copies the rows into the old cluster and makes that the live one. The application must be stopped.
      - V(committed) removes the old cluster.
    type: str
    choices:
      [planned, recovered, prepared, rehearsed, upgraded, compared, live, analyzed, complete, returned, committed]
    default: planned
  version: {description: Major version to move to., type: int, required: true}
  port: {description: Port of the live cluster., type: int, default: 5432}
  timeout_seconds: {description: How long one step may take., type: int, default: 7200}
  release: {description: Directory of the release whose checks V(rehearsed) runs., type: path}
  user: {description: User that its code runs as., type: str, default: shiftmaster}
  port_variable: {description: Variable of the application's environment that has the port of its database., type: str,
    default: DB_PORT}
attributes:
  check_mode: {description: "Only V(planned) does anything, which changes nothing.", support: full}
  diff_mode: {description: There is no text to compare., support: none}
"""

EXAMPLES = r"""
- name: Inspect the cluster
  postgresql_upgrade:
    version: 17
"""

RETURN = r"""
live: {description: Major version of the live cluster., returned: always, type: int}
old: {description: "Version of the other cluster, 0 where there is none.", returned: always, type: int}
phase: {description: "Phase of the upgrade, \"\" before it.", returned: always, type: str}
size_bytes: {description: Size of the data., returned: planned, type: int}
method: {description: "clone or copy.", returned: planned, type: str}
problems: {description: Why an upgrade is impossible., returned: planned, type: list, elements: str}
rows: {description: Rows that were compared., returned: compared and returned, type: int}
tables: {description: Tables that were compared., returned: compared and returned, type: int}
sequences: {description: Sequences that were compared., returned: compared and returned, type: int}
seconds: {description: How long the step took., returned: always, type: float}
"""

STATE = "/var/lib/shiftmaster-postgresql-upgrade.json"
LOCK = "/run/shiftmaster-postgresql-upgrade.lock"
# The phases before the new cluster is live, and those after.
CHECKS = ("release", "user", "port_variable")
PREPARED, UPGRADING, UPGRADED, LIVE, RETURNING = "prepared", "upgrading", "upgraded", "live", "returning"
# Live, with complete statistics and a backup.
COMPLETE = "complete"
# The old one is live again, without a backup of since then.
RETURNED = "returned"

PLAN_SQL = """
SELECT json_build_object(
  'checksums', current_setting('data_checksums') = 'on',
  'size', (SELECT sum(pg_database_size(oid)) FROM pg_database),
  'template', (SELECT to_json(d) FROM pg_database d WHERE datname = 'template0'),
  'encoding', (SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'template0'),
  'databases', (SELECT json_agg(json_build_array(datname, pg_get_userbyid(datdba)) ORDER BY datname)
                FROM pg_database WHERE datallowconn),
  'collations', (SELECT coalesce(json_agg(datname), '[]') FROM pg_database
                 WHERE datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid)),
  'tablespaces', (SELECT coalesce(json_agg(spcname), '[]') FROM pg_tablespace WHERE spcname !~ '^pg_'),
  'standbys', (SELECT count(*) FROM pg_stat_replication WHERE application_name !~ '^pg_receivewal|backup'))
"""
DATABASE_SQL = """
SELECT json_build_object(
  'extensions', (SELECT json_agg(extname ORDER BY extname) FROM pg_extension),
  'collations', (SELECT coalesce(json_agg(collname), '[]') FROM pg_collation
                 WHERE collversion IS DISTINCT FROM pg_collation_actual_version(oid)
                   AND oid >= 16384),
  'objects', (SELECT count(*) FROM pg_largeobject_metadata))
"""
OWNED_SQL = """
SELECT json_build_object(
  'owner', (SELECT pg_get_userbyid(nspowner) FROM pg_namespace WHERE nspname = 'public'),
  'owners', (SELECT coalesce(json_agg(DISTINCT pg_get_userbyid(relowner)), '[]') FROM pg_class
    JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind IN ('r', 'm', 'S', 'p') AND nspname !~ '^pg_'
      AND nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')),
  'tables', (SELECT coalesce(json_agg(format('%I.%I', nspname, relname)), '[]') FROM pg_class
    JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'r' AND nspname !~ '^pg_'
      AND nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = pg_class.oid AND deptype = 'e')))
"""


class Upgrade:
    def __init__(self, version, port, timeout):
        self.port, self.timeout = port, timeout
        self.new = Cluster(version, timeout)
        self.state = self.read()
        self.old = Cluster(self.state["old"] if self.state else self.found_version(), timeout)
        self.work = "%s/upgrade-%d" % (ROOT, version)

    def found_version(self):
        """Return the version of the cluster that there is; that of the new one where there is no other."""
        names = os.listdir("/etc/postgresql") if os.path.isdir("/etc/postgresql") else []
        versions = [int(name) for name in names if re.fullmatch(r"[1-9][0-9]", name)]
        others = [one for one in versions if one != self.new.version and Cluster(one, 0).present]
        automatic = [one for one in others if Cluster(one, 0).automatic]
        return (automatic or others or [self.new.version])[0]

    def read(self):
        try:
            state = json.loads(safe_files.read_text(STATE, 1 << 26))
        except FileNotFoundError:
            return {}
        if state["new"] != self.new.version:
            raise Failed(
                "an upgrade from %d to %d is not committed yet: upgrade-postgresql -e commit=true or -e back=true"
                % (state["old"], state["new"])
            )
        return state

    def note(self, phase, **more):
        self.state = {**self.state, "old": self.old.version, "new": self.new.version, "phase": phase, **more}
        safe_files.write(STATE, json.dumps(self.state).encode(), 0o600)

    @property
    def needed(self):
        return self.old.version != self.new.version and not self.new.automatic

    # --- inspect -----------------------------------------------------------------------------------------------------

    def plan(self):
        found = {"problems": [], "size_bytes": 0, "method": ""}
        if not self.needed or self.state.get("phase", RETURNED) != RETURNED:
            return found
        problems, old = found["problems"], self.old
        if old.version > self.new.version:
            problems.append("the cluster is of version %d, newer than %d" % (old.version, self.new.version))
            return found
        if self.new.present:
            problems.append(
                "there is a cluster %d/main already; if it is not needed: pg_dropcluster %d main"
                % (self.new.version, self.new.version)
            )
        try:
            facts = json.loads(old.query(PLAN_SQL))
        except Failed as error:
            problems.append(str(error))
            return found
        found["size_bytes"], found["method"] = int(facts["size"]), "clone" if self.clones() else "copy"
        for name in facts["collations"]:
            problems.append("collation version of database %s changed: REINDEX DATABASE and ALTER DATABASE "
                            "... REFRESH COLLATION VERSION first" % name)  # fmt: skip
        if facts["tablespaces"]:
            problems.append("there are tablespaces: %s" % ", ".join(facts["tablespaces"]))
        if facts["standbys"]:
            problems.append("there are standbys; this upgrades a single host")
        for name, _owner in facts["databases"]:
            more = json.loads(old.query(DATABASE_SQL, name))
            if more["collations"]:
                problems.append("collations of %s changed: %s" % (name, ", ".join(more["collations"])))
            if more["objects"]:
                problems.append("%s has large objects, which a rollback cannot copy" % name)
            for extension in more["extensions"]:
                control = "/usr/share/postgresql/%d/extension/%s.control" % (self.new.version, extension)
                if os.path.exists(self.new.program("postgres")) and not os.path.exists(control):
                    problems.append("extension %s of %s is not installed for version %d"
                                    % (extension, name, self.new.version))  # fmt: skip
        needed = 0 if found["method"] == "clone" else found["size_bytes"]
        # The copy, the WAL of both servers, and the statistics.
        needed += found["size_bytes"] // 10 + (1 << 30)
        free = os.statvfs(ROOT)
        if free.f_bavail * free.f_frsize < needed:
            problems.append("too little room in %s: %s free, %s needed"
                            % (ROOT, sized(free.f_bavail * free.f_frsize), sized(needed)))  # fmt: skip
        return found

    def clones(self):
        """Return whether the file system shares the blocks of two files."""
        test = "cp --reflink=always %s/PG_VERSION %s/reflink-test; code=$?; rm -f %s/reflink-test; exit $code"
        try:
            as_postgres(60, "sh", "-c", test % (self.old.data, ROOT, ROOT))
        except Failed:
            return False
        return True

    # --- before the new cluster is live ------------------------------------------------------------------------------

    def recover(self):
        """Complete or revert what an interrupted run left. Returns whether anything was."""
        if not self.state:
            return False
        if self.new.automatic:
            changed = self.state["phase"] not in (LIVE, COMPLETE) or self.old.automatic or not running(self.new)
            self.stop_private()
            self.make_live()
            if not running(self.new):
                self.new.start()
            return changed
        self.end_pg_upgrade()
        self.new.stop()
        self.stop_private()
        self.old.set_start("auto")
        if not running(self.old):
            self.old.start()
        self.drop(self.new)
        changed, self.state = self.state["phase"] != RETURNED, {**self.state, "before": {}}
        if self.state["phase"] in (RETURNING, RETURNED):
            self.note(RETURNED)
        else:
            self.forget()
        return changed

    def forget(self):
        os.unlink(STATE)
        self.state = {}

    def end_pg_upgrade(self):
        """It goes on where the module was killed. Its servers are stopped by their files, as others are."""
        for pid in filter(str.isdecimal, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if os.readlink("/proc/%s/exe" % pid) == self.new.program("pg_upgrade"):
                    os.kill(int(pid), signal.SIGKILL)

    def drop(self, cluster):
        """Remove a cluster, which is not the live one."""
        if cluster.automatic:
            raise Failed("%d/main starts at boot: it is not removed" % cluster.version)
        cluster.stop()
        rehearsal = self.work + "-rehearsal"
        # A run that was killed has left its copies, and maybe their servers.
        for version, copy in ((self.old.version, "old"), (self.new.version, "new")):
            Cluster(version, self.timeout, "%s/%s" % (rehearsal, copy)).stop_private()
        for path in (cluster.configuration, cluster.data, self.work, rehearsal):
            safe_files.remove_tree(path)
        units.systemctl("daemon-reload")

    def prepare(self):
        """Create the new cluster as the old one was created, and check it next to the running server."""
        if self.new.present and not self.state:
            raise Failed("cluster %d/main is not of this module" % self.new.version)
        facts = json.loads(self.old.query(PLAN_SQL))
        self.note(PREPARED)
        points.reach("postgresql_prepared")
        self.drop(self.new)
        # Not as root, which would work by name in a directory of postgres.
        user = pwd.getpwnam("postgres")
        parent = os.path.dirname(self.new.configuration)
        safe_files.make_directory(parent, 0o755, user.pw_uid, user.pw_gid)
        # It is root's once an upgrade has come so far; the next deploy gives it to root again.
        with safe_files.closing(safe_files.open_directory(parent)) as descriptor:
            os.fchown(descriptor, user.pw_uid, user.pw_gid)
        words = ["--start-conf", "manual", "--port", str(self.port + 1), str(self.new.version), "main"]
        self.make_work()
        # Its own file has the defaults of a new cluster, checksums among them.
        defaults = self.work + "/createcluster.conf"
        safe_files.write(defaults, b"add_include_dir = 'conf.d'\ncluster_name = '%v/%c'\n", 0o644)
        words = ["pg_createcluster", "--createclusterconf", defaults, *words, "--", *initdb_words(facts)]
        as_postgres(self.timeout, *words)
        self.pg_upgrade(self.old, self.new, self.work, self.port, "--check")

    def make_work(self):
        user = pwd.getpwnam("postgres")
        safe_files.remove_tree(self.work)
        safe_files.make_directory(self.work, 0o700, user.pw_uid, user.pw_gid)

    def pg_upgrade(self, old, new, work, port, *more):
        try:
            as_postgres(
                self.timeout, new.program("pg_upgrade"), "--jobs", str(os.cpu_count() or 1),
                "--old-bindir", os.path.dirname(old.program("x")), "--new-bindir", os.path.dirname(new.program("x")),
                "--old-datadir", old.data, "--new-datadir", new.data,
                "--old-options", old.settings(), "--new-options", new.settings(),
                "--old-port", str(port), "--new-port", str(self.port + 1), "--socketdir", work,
                *(["--clone"] if self.clones() else []), *more, cwd=work,
            )  # fmt: skip
        except Failed as error:
            reasons = ""
            with contextlib.suppress(OSError):
                for path in safe_files.find(new.data + "/pg_upgrade_output.d/*/*.txt"):
                    reasons += "; " + last_lines(safe_files.read_tail(path, 4096).decode("utf-8", "replace"))
            raise Failed("%s%s" % (error, reasons))

    def rehearse(self, release, user, variable):
        """Upgrade the restored copy, which is there, and run the application's checks on it; returns the seconds."""
        base, port = self.work + "-rehearsal", self.port + 2
        old = Cluster(self.old.version, self.timeout, base + "/old")
        new = Cluster(self.new.version, self.timeout, base + "/new")
        private = {"shared_buffers": "64MB", "ssl": "off"}
        try:
            old.start_private(base, port, **private)
            deadline = time.monotonic() + self.timeout
            while old.query("SELECT pg_is_in_recovery()") == "t":
                if time.monotonic() > deadline:
                    raise Failed("the copy of the backup did not end its recovery")
                time.sleep(0.5)
            facts, before = json.loads(old.query(PLAN_SQL)), old.counted()
            as_postgres(self.timeout, new.program("initdb"), "--pgdata", new.data, *initdb_words(facts))
            began = time.monotonic()
            old.stop_private()
            self.pg_upgrade(old, new, base, port)
            new.start_private(base, port, **{**private, "ssl": "on", "listen_addresses": "127.0.0.1"})
            after = new.counted()
            found = differences(before, after)
            if found:
                raise Failed("the rehearsal differs: %s" % "; ".join(found[:5]))
            statistics(new, first=True)
            seconds = time.monotonic() - began
            if release:
                code = ReleaseCode(release, user)
                for words in (["check", "--database", "default"], ["migrate", "--check"]):
                    done = code.manage([words], extra_env={variable: str(port)})
                    if done.rc:
                        output = last_lines(printable(done.stdout + "\n" + done.stderr))
                        raise Failed("manage.py %s on the copy: %s" % (words[0], output))
            return {**totals(after), "seconds": round(seconds, 1)}
        finally:
            for cluster in (old, new):
                cluster.stop_private()
            safe_files.remove_tree(base)

    def upgrade(self):
        if not self.state or self.state["phase"] != PREPARED:
            raise Failed("state prepared comes first")
        self.note(UPGRADING, before=self.old.counted())
        self.old.stop()
        points.reach("postgresql_stopped")
        self.make_work()
        self.pg_upgrade(self.old, self.new, self.work, self.port)
        safe_files.remove_tree(self.work)
        points.reach("postgresql_copied")
        self.note(UPGRADED)

    def compare(self):
        if not self.state or self.state["phase"] != UPGRADED:
            raise Failed("state upgraded comes first")
        if self.new.socket()[3] != str(self.port):
            raise Failed("the new cluster listens on port %s, not on %d" % (self.new.socket()[3], self.port))
        after = self.new.counted()
        found = differences(self.state["before"], after)
        if found:
            raise Failed("the new cluster differs: %s" % "; ".join(found[:5]))
        statistics(self.new, first=True)
        return totals(after)

    def make_live(self):
        """The new cluster's start.conf decides. Before it is written neither starts at boot, and settle() reverts."""
        # A commit that was killed has removed it.
        if self.old.present:
            self.old.set_start("manual")
        points.reach("postgresql_switch")
        self.new.set_start("auto")
        self.note(COMPLETE if self.state["phase"] == COMPLETE else LIVE)
        units.systemctl("daemon-reload")

    # --- after that --------------------------------------------------------------------------------------------------

    def stop_private(self):
        if not running(self.old):
            self.old.stop_private()

    def go_back(self):
        """Copy the rows into the old cluster, compare, and make it the live one."""
        if not self.state or self.state["phase"] not in (LIVE, COMPLETE):
            raise Failed("there is no upgrade to go back from")
        self.note(RETURNING)
        self.make_work()
        self.old.start_private(self.work, self.port, ssl="off")
        points.reach("postgresql_returning")
        for name in self.new.databases():
            self.copy_back(name)
        before, after = self.new.counted(), self.old.counted()
        found = differences(before, after)
        if found:
            raise Failed("the old cluster differs: %s" % "; ".join(found[:5]))
        self.stop_private()
        self.new.stop()
        points.reach("postgresql_switch_back")
        # In this order: where both files say manual, settle() starts the old one, which has every row.
        self.new.set_start("manual")
        self.recover()
        return totals(after)

    def copy_back(self, name):
        facts = json.loads(self.old.query(OWNED_SQL, name))
        if not facts["tables"]:
            return
        if facts["owners"] != [facts["owner"]]:
            raise Failed("%s has tables of %s" % (name, ", ".join(facts["owners"])))
        owner, grant = facts["owner"], "SET ON PARAMETER session_replication_role"
        # Triggers and foreign keys are off, and the owner alone runs the remaining code of the application.
        if owner != "postgres":
            self.old.query("GRANT %s TO %s" % (grant, quoted(owner)))
        head = "SET session_replication_role = replica;\nTRUNCATE ONLY %s;\n" % ", ".join(facts["tables"])
        safe_files.write(self.work + "/head.sql", head.encode(), 0o644)
        # Version 15 does not know this setting, which pg_dump 17 writes before the first row.
        script = (
            'set -o pipefail; "$1" --data-only "${@:7}" --dbname="$2" | sed "1,30{/^SET transaction_timeout = 0;$/d}"'
            ' | cat "$3/head.sql" - | "$4" -Xqw -v ON_ERROR_STOP=1 --single-transaction --output=/dev/null'
            ' --host="$3" --port="$5" --username="$6" --dbname="$2"'
        )
        words = [self.new.program("pg_dump"), name, self.work, self.new.program("psql"), str(self.port), owner]
        # No login but a superuser's may set lc_messages.
        environment = {"PGOPTIONS": SAFE_SEARCH_PATH}
        as_postgres(self.timeout, "bash", "-c", script, "copy", *words, *self.new.socket(), env=environment)
        if owner != "postgres":
            self.old.query("REVOKE %s FROM %s" % (grant, quoted(owner)))

    def complete(self):
        if not self.state or self.state["phase"] not in (LIVE, RETURNED):
            raise Failed("state live or returned comes first")
        if self.state["phase"] == RETURNED:
            self.forget()
        else:
            self.note(COMPLETE)

    def commit(self):
        if not self.state:
            return False
        if not self.new.automatic or self.old.automatic:
            raise Failed("the new cluster is not the live one")
        self.drop(self.old)
        self.forget()
        return True


def initdb_words(facts):
    """Return the options that create a cluster as the old one was created."""
    template = facts["template"]
    words = ["--encoding", facts["encoding"], "--lc-collate", template["datcollate"]]
    words += ["--lc-ctype", template["datctype"]]
    if template.get("datlocprovider", "c") == "i":
        words += ["--locale-provider=icu", "--icu-locale", template["daticulocale"]]
    return words + (["--data-checksums"] if facts["checksums"] else [])


def statistics(cluster, first):
    """Collect statistics of all databases: rough ones, which queries need to start with, or complete ones."""
    options = "-c default_statistics_target=1 " if first else ""
    words = ["--all", "--analyze-only", "--jobs", str(os.cpu_count() or 1), *cluster.socket()]
    environment = {"PGOPTIONS": options + "-c vacuum_cost_delay=0 " + SAFE_SEARCH_PATH}
    as_postgres(cluster.timeout, cluster.program("vacuumdb"), *words, env=environment)


def work(params, check_mode):
    upgrade = Upgrade(params["version"], params["port"], params["timeout_seconds"])
    state, result = params["state"], {"changed": False}
    if state == "planned" or check_mode:
        result.update(upgrade.plan())
    elif state in ("recovered", "committed"):
        result["changed"] = upgrade.recover() if state == "recovered" else upgrade.commit()
    else:
        steps = {
            "prepared": upgrade.prepare,
            "rehearsed": lambda: upgrade.rehearse(*(params[name] for name in CHECKS)),
            "upgraded": upgrade.upgrade,
            "compared": upgrade.compare,
            "live": upgrade.make_live,
            "analyzed": lambda: statistics(upgrade.new, first=False),
            "complete": upgrade.complete,
            "returned": upgrade.go_back,
        }
        result.update(steps[state]() or {}, changed=True)
    live = upgrade.new if upgrade.new.automatic or upgrade.old.version == upgrade.new.version else upgrade.old
    old = upgrade.old.version if upgrade.old.version != upgrade.new.version else 0
    return {**result, "live": live.version, "old": old, "phase": upgrade.state.get("phase", "")}


def main():
    states = "planned recovered prepared rehearsed upgraded compared live analyzed complete returned committed".split()
    module = QuietModule(
        argument_spec={
            "state": {"type": "str", "choices": states, "default": "planned"},
            "version": {"type": "int", "required": True},
            "port": {"type": "int", "default": 5432},
            "timeout_seconds": {"type": "int", "default": 7200},
            "release": {"type": "path"},
            "user": {"type": "str", "default": "shiftmaster"},
            "port_variable": {"type": "str", "default": "DB_PORT"},
        },
        supports_check_mode=True,
    )
    began = time.monotonic()
    deadline = began + (0 if module.params["state"] == "planned" else module.params["timeout_seconds"])
    try:
        # A step goes on where its run was lost: the next one waits for it.
        with held(LOCK, deadline, Failed("a step of another run is still at work on this host")):
            result = work(module.params, module.check_mode)
    except (Failed, ReleaseCodeError, units.UnitError, OSError, ValueError, KeyError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**{"seconds": round(time.monotonic() - began, 1), **result})


if __name__ == "__main__":
    main()
