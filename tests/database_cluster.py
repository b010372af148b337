"""For scenario ha: members of a database cluster that are lost, cut off and healed, and clients that write."""

from __future__ import annotations

import contextlib
import json
import subprocess

from support import started, wait_for

API = "https://localhost:8008"
ETCD = "/etc/ssl/shiftmaster/etcd"
CUT = "shiftmaster_test"
CTL = "patronictl -c /etc/patroni/17-main.yml"
LOGIN = "ha_writer"
# Inserts unique ids, each in its own transaction, and prints what was acknowledged and when. As the application does
# it: several hosts, of which libpq finds the primary; or (pinned) one host alone.
WRITER = r"""
import json, os, sys, time
import psycopg2
hosts, password, seconds, name = json.loads(sys.stdin.readline())
dsn = ("host=%s dbname=shiftmaster user=ha_writer password=%s sslmode=require connect_timeout=2 tcp_user_timeout=4000"
       " keepalives_idle=2 keepalives_interval=1 keepalives_count=3" % (hosts, password))
dsn += " target_session_attrs=read-write" if "," in hosts else ""
acknowledged, errors, connection, number, begin = [], {}, None, 0, time.time()
open("/run/" + name, "w").close()
while time.time() < begin + seconds and os.path.exists("/run/" + name):
    number += 1
    try:
        if connection is None:
            connection = psycopg2.connect(dsn)
            connection.autocommit = True
        connection.cursor().execute("INSERT INTO public.ha_rows (writer, number) VALUES (%s, %s)", (name, number))
        acknowledged.append((number, time.time()))
    except psycopg2.Error as error:
        text = str(error).strip().splitlines()[-1][:120]
        errors[text] = errors.get(text, 0) + 1
        if connection is not None:
            connection.close()
        connection = None
        time.sleep(0.1)
    time.sleep(0.01)
times = [begin] + [at for _, at in acknowledged]
gap = max(((later - earlier, earlier) for earlier, later in zip(times, times[1:])), default=(0, 0))
found = {"acknowledged": acknowledged, "errors": errors, "gap": gap[0], "gap_at": gap[1], "tried": number}
print(json.dumps(found))
"""


class Writer:
    def __init__(self, members, host, name: str, seconds: int, pinned: bool = False):
        self.members, self.name, self.host = members, name, host
        host.shell(f"rm -f /run/{name}")
        self.process = subprocess.Popen(
            ["docker", "exec", "-i", host.host, "nice", "-n", "-5", "python3", "-c", WRITER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        hosts = "127.0.0.1" if pinned else ",".join(members.address.values())
        self.process.stdin.write(json.dumps([hosts, members.password, seconds, name]) + "\n")
        self.process.stdin.flush()
        wait_for(lambda: host.shell(f"ls /run/{name} 2>/dev/null", check=False), 60, "the writer")

    def end(self) -> None:
        """Before its seconds are over."""
        self.host.shell(f"rm -f /run/{self.name}")

    def result(self) -> dict:
        return json.loads(self.process.communicate(timeout=600)[0])

    def lost(self, result: dict, host=None) -> list:
        """The acknowledged ids that the database does not have; of the primary, or of a single host."""
        text = self.members.sql(f"SELECT number FROM public.ha_rows WHERE writer = '{self.name}'", host, "shiftmaster")
        kept = {int(line) for line in text.split()}
        return [number for number, _at in result["acknowledged"] if number not in kept]


class Members:
    def __init__(self, hosts, addresses):
        self.hosts, self.address = hosts, dict(zip([host.host for host in hosts], addresses))
        self.password = "ha-writer-of-the-tests"

    # -- what there is -----------------------------------------------------------------------------------------------

    def api(self, host, path: str, method: str = "GET") -> tuple:
        """Return status and body of a member's REST API, without a certificate; (0, "") where it does not respond."""
        program = (
            f"import ssl, urllib.error, urllib.request as u; c = ssl.create_default_context(cafile='{ETCD}/ca.crt')\n"
            f"r = u.Request('{API}{path}', b'{{}}' if '{method}' != 'GET' else None, method='{method}')\n"
            "try: a = u.urlopen(r, timeout=5, context=c)\n"
            "except urllib.error.HTTPError as e: a = e\n"
            "print(a.status); print(a.read().decode())\n"
        )
        with contextlib.suppress(AssertionError, subprocess.SubprocessError):
            status, _newline, body = host.shell("python3 -", stdin=program).partition("\n")
            return int(status), body
        return 0, ""

    def state(self, host) -> dict:
        _status, body = self.api(host, "/patroni")
        with contextlib.suppress(ValueError):
            return json.loads(body)
        return {}

    def primaries(self, *hosts) -> list:
        return [host for host in hosts or self.hosts if self.state(host).get("role") == "primary"
                and self.state(host).get("state") == "running"]  # fmt: skip

    def primary(self):
        (found,) = self.primaries()
        return found

    def standbys(self) -> list:
        primary = self.primary()
        return [host for host in self.hosts if host is not primary]

    def asynchronous(self):
        """The standby that no commit waits for."""
        return next(host for host in self.standbys() if not self.state(host).get("sync_standby"))

    def complete(self) -> bool:
        """Whether one member is the primary, all others follow it, and one of them synchronously."""
        states = [self.state(host) for host in self.hosts]
        followers = [state for state in states if state.get("replication_state") == "streaming"]
        roles = sorted(state.get("role", "") for state in states)
        return (
            roles == ["primary"] + ["replica"] * (len(self.hosts) - 1)
            and len(followers) == len(self.hosts) - 1
            and any(state.get("sync_standby") for state in followers)
        )

    def sql(self, text: str, host=None, database: str = "postgres", timeout: int = 120) -> str:
        host = host or self.primary()
        command = f"runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d {database}"
        return host.shell(command, stdin=text, timeout=timeout)

    def etcd_leader(self):
        """The host whose etcd is the leader."""
        program = (
            "import json, ssl, urllib.request as u; c = ssl.create_default_context(cafile='%s/ca.crt');"
            "c.load_cert_chain('%s/host.crt', '%s/host.key');"
            "r = u.Request('https://localhost:2379/v3/maintenance/status', b'{}');"
            "s = json.load(u.urlopen(r, timeout=5, context=c));"
            "print(s['leader'] == s['header']['member_id'])"
        ) % (ETCD, ETCD, ETCD)
        found = [host for host in self.hosts if host.shell("python3 -", stdin=program, check=False).strip() == "True"]
        return found[0] if len(found) == 1 else None

    # -- what happens to it ------------------------------------------------------------------------------------------

    def prepare(self, host=None) -> None:
        """A login of the application's owner, and the table of the writers; on the primary, or on a single host."""
        self.sql(
            f"DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{LOGIN}') THEN"
            f" CREATE ROLE {LOGIN} LOGIN PASSWORD '{self.password}' IN ROLE shiftmaster; END IF; END $$;"
            f"GRANT CONNECT ON DATABASE shiftmaster TO {LOGIN};",
            host,
        )
        self.sql(
            "CREATE TABLE IF NOT EXISTS public.ha_rows (writer text, number int, PRIMARY KEY (writer, number));"
            f"TRUNCATE public.ha_rows; GRANT ALL ON public.ha_rows TO {LOGIN}, shiftmaster;",
            host,
            database="shiftmaster",
        )

    def cut(self, host, *others, ports: str = "", chains: tuple = ("input", "output")) -> None:
        """Drop packets between a host and others: of some TCP ports or of all, in one direction or in both."""
        addresses = ", ".join(self.address[other.host] for other in others)
        matches = [f"tcp {side} {{ {ports} }}" for side in ("sport", "dport")] if ports else [""]
        rules = f"table inet {CUT} {{\n"
        for chain in chains:
            rules += f"chain {chain} {{ type filter hook {chain} priority -10;\n"
            where = f"ip {'saddr' if chain == 'input' else 'daddr'} {{ {addresses} }}"
            rules += "".join(f"{where} {match} drop\n" for match in matches) + "}\n"
        host.shell("nft -f -", stdin=rules + "}\n")

    def heal(self, seconds: float = 240) -> None:
        """Start what is stopped, remove every cut and wait until all members follow."""
        for host in self.hosts:
            started(host)
            host.shell(f"nft delete table inet {CUT} 2>/dev/null; systemctl start etcd patroni@17-main", check=False)
        wait_for(self.complete, seconds, "a primary that two standbys follow")
