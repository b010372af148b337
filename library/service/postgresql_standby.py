#!/usr/bin/python
"""Copy the primary again to a standby that cannot follow it any more."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import time

from ansible.module_utils.shiftmaster.host import safe_files
from ansible.module_utils.shiftmaster.host.quiet import QuietModule

DOCUMENTATION = r"""
module: postgresql_standby
short_description: Copy the primary again to a standby that cannot follow it any more
description:
  - A primary that was restored goes on from another point than its standbys; none of them can follow.
  - Reads the primary's address from the cluster's configuration (C(primary_conninfo), C(primary_slot_name)), checks
    whether it responds, stops the standby, copies everything by C(pg_basebackup) and waits until it streams again.
  - The slot went with the old database, so it is made again. What was set by C(ALTER SYSTEM) on the standby becomes
    what it is on the primary.
  - What a copy that failed needs to be made again is kept next to the data until one has succeeded.
  - The password goes by the environment, and into the file in which the standby had it before.
  - A cluster without C(standby.signal) is none, and is refused; so are one that Patroni manages, one with tablespaces
    or a C(pg_wal) elsewhere, and a primary that does not respond. Nothing is changed then.
  - Runs as root, on a host with one cluster in Debian's layout.
options:
  timeout_seconds: {type: int, default: 21600, description: "How long the copy may take, and then the standby until it
    streams."}
attributes:
  check_mode: {description: "The primary is queried, nothing else happens.", support: full}
  diff_mode: {description: There is no text to compare., support: none}
"""

EXAMPLES = r"""
- name: Have the standby follow the restored primary
  postgresql_standby:
"""

RETURN = r"""
primary: {description: Host that is followed., returned: always, type: str}
slot: {description: "Replication slot that was made, \"\" where there is none.", returned: always, type: str}
"""

# libpq's variable of each keyword that such a connection has; what else there is would be lost.
VARIABLES = {
    "host": "PGHOST", "hostaddr": "PGHOSTADDR", "port": "PGPORT", "user": "PGUSER", "password": "PGPASSWORD",
    "passfile": "PGPASSFILE", "sslmode": "PGSSLMODE", "sslrootcert": "PGSSLROOTCERT", "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY", "sslcrl": "PGSSLCRL", "sslcompression": "PGSSLCOMPRESSION", "sslsni": "PGSSLSNI",
    "sslnegotiation": "PGSSLNEGOTIATION", "sslcertmode": "PGSSLCERTMODE", "requiressl": "PGREQUIRESSL",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION", "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "application_name": "PGAPPNAME", "channel_binding": "PGCHANNELBINDING", "connect_timeout": "PGCONNECT_TIMEOUT",
    "gssencmode": "PGGSSENCMODE", "krbsrvname": "PGKRBSRVNAME", "gsslib": "PGGSSLIB",
    "gssdelegation": "PGGSSDELEGATION", "target_session_attrs": "PGTARGETSESSIONATTRS",
    "load_balance_hosts": "PGLOADBALANCEHOSTS", "require_auth": "PGREQUIREAUTH", "options": "PGOPTIONS",
}  # fmt: skip
# Options that pg_basebackup sets itself.
OWN = ("dbname", "replication", "fallback_application_name")


def environment(conninfo: str) -> dict:
    """Return libpq's environment for a connection string of keywords and values.

    ValueError where it is none of that form, or has a keyword that no variable stands for.
    """
    found, rest = {}, conninfo.strip()
    while rest:
        match = re.match(r"(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|((?:[^\s'\\]|\\.)+))(?:\s+|$)", rest)
        if not match:
            raise ValueError("primary_conninfo is not of the form keyword=value")
        name, quoted, bare = match.groups()
        if name not in VARIABLES and name not in OWN:
            raise ValueError("primary_conninfo has %s, which is not known here" % name)
        if name in VARIABLES:
            found[VARIABLES[name]] = re.sub(r"\\(.)", r"\1", quoted if quoted is not None else bare)
        rest = rest[match.end() :]
    return found


class Failed(Exception):
    """It cannot be done; str() shows why."""


def run(*command, env=None, timeout=120, fine=(0,)):
    try:
        done = subprocess.run(
            command, env=dict(os.environ, LC_ALL="C.UTF-8", **(env or {})), cwd="/", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Failed("%s did not end within %d s" % (os.path.basename(command[0]), timeout))
    if done.returncode not in fine:
        output = (done.stderr or done.stdout).strip().splitlines()[-3:]
        raise Failed("%s: %s" % (" ".join(command[:5]), "; ".join(output)))
    return done.stdout.strip()


def as_postgres(*command, **more):
    return run("runuser", "-u", "postgres", "--", *command, **more)


class Cluster:
    def __init__(self):
        lines = run("pg_lsclusters", "--no-header").splitlines()
        if len(lines) != 1:
            raise Failed("there are %d clusters on this host, and one is needed" % len(lines))
        self.version, self.name, self.port, _status, _owner, self.data = lines[0].split()[:6]
        self.unit = "postgresql@%s-%s.service" % (self.version, self.name)
        self.configuration = "/etc/postgresql/%s/%s" % (self.version, self.name)
        # Where a copy was begun, the data reports nothing any more.
        if os.path.exists("/etc/patroni/%s-%s.yml" % (self.version, self.name)):
            again = "patronictl -c /etc/patroni/%s-%s.yml reinit %s-%s <member>" % ((self.version, self.name) * 2)
            raise Failed("Patroni manages this database: " + again)
        self.kept = self.data + ".following"
        if os.path.exists(self.kept):
            self.follows = json.loads(safe_files.read_text(self.kept))
        elif os.path.exists(os.path.join(self.data, "standby.signal")):
            self.follows = {name: self.setting(name) for name in ("primary_conninfo", "primary_slot_name")}
        else:
            raise Failed("%s is no standby: it has no standby.signal" % self.data)

    def program(self, name):
        return "/usr/lib/postgresql/%s/bin/%s" % (self.version, name)

    def setting(self, name):
        return as_postgres(self.program("postgres"), "-C", name, "-D", self.configuration)

    def apart(self):
        """Return what of the data lies elsewhere: it would stay, and the copy be refused."""
        spaces = os.path.join(self.data, "pg_tblspc")
        linked = [path for path in [os.path.join(self.data, "pg_wal")] if os.path.islink(path)]
        names = sorted(os.listdir(spaces)) if os.path.isdir(spaces) else []
        return linked + [os.path.join(spaces, name) for name in names]

    def keep(self):
        """Note where the primary is; a password may be in it."""
        safe_files.write(self.kept, json.dumps(self.follows).encode(), 0o600)

    def empty(self):
        """Remove what is in the directory of the data, and leave the directory, which may be a mount."""
        # By its descriptor: the directory above belongs to postgres, who could put a link to another one in its place.
        with safe_files.closing(safe_files.open_directory(self.data)) as directory:
            for name in os.listdir(directory):
                if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                    shutil.rmtree(name, dir_fd=directory)
                else:
                    os.unlink(name, dir_fd=directory)

    def wait_until_it_streams(self, seconds):
        question = ("psql", "-XqAt", "-p", self.port, "-d", "postgres", "-c", "SELECT status FROM pg_stat_wal_receiver")
        deadline = time.monotonic() + seconds
        while as_postgres(*question, fine=range(256)) != "streaming":
            if time.monotonic() > deadline:
                raise Failed("it was copied, but does not stream: journalctl -u %s" % self.unit)
            time.sleep(1)


def main():
    module = QuietModule(argument_spec={"timeout_seconds": {"type": "int", "default": 21600}}, supports_check_mode=True)
    seconds, removed = module.params["timeout_seconds"], False
    try:
        cluster = Cluster()
        if cluster.apart():
            raise Failed("%s leads elsewhere: copy it by hand" % cluster.apart()[0])
        slot = cluster.follows["primary_slot_name"]
        env = environment(cluster.follows["primary_conninfo"])
        env.setdefault("HOME", pwd.getpwnam("postgres").pw_dir)
        as_postgres(cluster.program("pg_isready"), "--timeout=10", env=env)
        if not module.check_mode:
            # One that is there already was made by a run that did not come to its end.
            if slot:
                make = ("--no-password", "--slot", slot, "--create-slot", "--if-not-exists")
                as_postgres(cluster.program("pg_receivewal"), *make, env=env)
            run("systemctl", "stop", cluster.unit, timeout=seconds)
            cluster.keep()
            removed = True
            cluster.empty()
            as_postgres(
                cluster.program("pg_basebackup"), "--pgdata", cluster.data, "--wal-method=stream", "--no-password",
                "--checkpoint=fast", "--write-recovery-conf", *(["--slot", slot] if slot else []),
                env=env, timeout=seconds,
            )  # fmt: skip
            run("systemctl", "start", cluster.unit, timeout=seconds)
            cluster.wait_until_it_streams(seconds)
            os.unlink(cluster.kept)
    except (Failed, ValueError, OSError) as error:
        again = "Its data is gone. When that is fixed: ansible <host> --become --module-name postgresql_standby"
        stands = again if removed else "Nothing was changed."
        module.fail_json(msg="the standby was not made again: %s. %s" % (error, stands))
    primary = env.get("PGHOST", env.get("PGHOSTADDR", ""))
    module.exit_json(changed=True, primary=primary, slot=slot, msg="The standby follows %s again." % primary)


if __name__ == "__main__":
    main()
