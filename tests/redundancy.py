"""Redis on several hosts: members that are lost and healed, its writers, and clients of the virtual address."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from support import SCENARIO_HOME, started, wait_for

ADDRESS = "172.30.78.100"
CLI = "redis-cli --tls --cacert /etc/ssl/shiftmaster/ca.crt"
SET = "shiftmaster"
CUT = "shiftmaster_test"
# Appends unique ids to a list, each with its own timeout, and prints what was acknowledged and when.
WRITER = r"""
import json, socket, ssl, sys, time
host, port, key, seconds, password, tls = json.loads(sys.stdin.readline())

def connect():
    sock = socket.create_connection((host, port), timeout=1)
    sock.settimeout(1)
    if tls:
        context = ssl.create_default_context(cafile="/etc/ssl/shiftmaster/ca.crt")
        context.check_hostname = False
        sock = context.wrap_socket(sock)
    stream = sock.makefile("rb")
    for words in (["AUTH", "shiftmaster", password],):
        call(sock, stream, *words)
    return sock, stream

def call(sock, stream, *words):
    words = [word.encode() for word in words]
    sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
    line = stream.readline()
    if not line or line[:1] == b"-":
        raise OSError(line.decode().strip() or "closed")
    return line

done, errors, acknowledged, connection, number, begin = [], {}, [], None, 0, time.time()
open("/run/writer-" + key, "w").close()
while time.time() < begin + seconds:
    number += 1
    try:
        connection = connection or connect()
        call(*connection, "RPUSH", key, str(number))
        acknowledged.append((number, time.time()))
    except OSError as error:
        if connection:
            connection[0].close()
        connection = None
        name = str(error).split(" ")[0]
        errors[name] = errors.get(name, 0) + 1
    time.sleep(0.02)
times = [begin] + [t for _, t in acknowledged] + [time.time()]
gap = max(((later - earlier, earlier) for earlier, later in zip(times, times[1:])), default=(0, 0))
print(json.dumps({"acknowledged": acknowledged, "errors": errors, "gap": gap[0], "gap_at": gap[1], "tried": number}))
"""


def password() -> str:
    return (SCENARIO_HOME / "secrets" / "redis").read_text().strip()


def diagnose(host) -> tuple:
    """Run it as an administrator does; returns (the findings, the output)."""
    with tempfile.TemporaryDirectory(dir=SCENARIO_HOME) as directory:
        run = host.run("playbooks/diagnose.yml", report_dir=directory)
        path = Path(directory) / "diagnosis.json"
        assert path.exists(), run.output[-5000:]
        return json.loads(path.read_text())["findings"], run.output


class Writer:
    """A client of Redis on a host: through HAProxy, or (pinned) of that host's own instance."""

    def __init__(self, host, key: str, seconds: int, pinned: bool = False):
        self.host, self.key = host, key
        host.shell(f"rm -f /run/writer-{key}")
        self.process = subprocess.Popen(
            ["docker", "exec", "-i", host.host, "nice", "-n", "-5", "python3", "-c", WRITER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        target = ["127.0.0.1", 6379 if pinned else 6380, key, seconds, password(), pinned]
        self.process.stdin.write(json.dumps(target) + "\n")
        self.process.stdin.flush()
        wait_for(lambda: host.shell(f"ls /run/writer-{key} 2>/dev/null", check=False), 30, "the writer")
        time.sleep(2)

    def result(self) -> dict:
        return json.loads(self.process.communicate(timeout=300)[0])


class Members:
    def __init__(self, hosts, webs):
        self.hosts, self.webs = hosts, webs
        self.address = {host.host: "172.30.78.%d" % (11 + number) for number, host in enumerate(hosts)}

    # -- what there is -----------------------------------------------------------------------------------------------

    def info(self, host) -> dict:
        """INFO replication of a member, as the application's user."""
        text = host.shell(
            f"read -r word; REDISCLI_AUTH=$word {CLI} --user shiftmaster info replication", stdin=password() + "\n",
            check=False,
        )  # fmt: skip
        return dict(line.split(":", 1) for line in text.split() if ":" in line)

    def primaries(self) -> list:
        """Members that are a primary with a replica that follows."""
        found = []
        for host in self.hosts:
            with contextlib.suppress(AssertionError, subprocess.SubprocessError):
                info = self.info(host)
                if info.get("role") == "master" and int(info.get("min_slaves_good_slaves", 0)):
                    found.append(host)
        return found

    def primary(self):
        (found,) = self.primaries()
        return found

    def named(self, host) -> str:
        """The primary that a Sentinel names."""
        words = host.shell(f"{CLI} -p 26379 sentinel get-master-addr-by-name shiftmaster", check=False).split()
        return words[0] if words else ""

    def holders(self) -> list:
        """Web servers that hold the virtual address."""
        return [host for host in self.webs if f" {ADDRESS}/" in host.shell("ip -4 address", check=False)]

    def complete(self) -> bool:
        found = [self.info(host) for host in self.hosts]
        primaries = [host for host, info in zip(self.hosts, found, strict=True) if info.get("role") == "master"]
        followers = [info for info in found if info.get("master_link_status") == "up"]
        return (
            len(primaries) == 1 and len(followers) == len(self.hosts) - 1
            and {self.named(host) for host in self.hosts} == {self.address[primaries[0].host]}
            and all("OK" in host.shell(f"{CLI} -p 26379 sentinel ckquorum {SET}", check=False) for host in self.hosts)
            and (not self.webs or len(self.holders()) == 1)
        )  # fmt: skip

    def length(self, key: str) -> set:
        """The ids that the primary has."""
        text = self.primary().shell(
            f"read -r word; REDISCLI_AUTH=$word {CLI} --user shiftmaster lrange {key} 0 -1", stdin=password() + "\n"
        )
        return {int(line) for line in text.split() if line.isdigit()}

    # -- faults ------------------------------------------------------------------------------------------------------

    def cut(self, host, *others, rule: str = "") -> None:
        """Drop what a host sends to others and receives from them."""
        text = f"table inet {CUT} {{\n"
        for chain, side in (("input", "saddr"), ("output", "daddr")):
            text += f"chain {chain} {{ type filter hook {chain} priority -10;\n"
            text += "".join(f"ip {side} {self.address[other.host]} {rule} drop\n" for other in others)
            text += "}\n"
        host.shell("nft -f -", stdin=text + "}\n")

    def heal(self) -> None:
        for host in self.hosts:
            started(host)
            host.shell(f"nft delete table inet {CUT} 2>/dev/null; systemctl reset-failed; true")
            host.shell(
                "systemctl start redis-server redis-sentinel; systemctl start nginx keepalived 2>/dev/null; true"
            )
        wait_for(self.complete, 120, "one primary, two replicas, a majority and one holder of the address")


class Page(http.client.HTTPSConnection):
    """A connection to the virtual address by the site's name."""

    def __init__(self, timeout: float, address: str = ADDRESS):
        super().__init__("localhost", timeout=timeout)
        self.address = address

    def connect(self) -> None:
        sock = socket.create_connection((self.address, 443), timeout=self.timeout)
        self.sock = ssl._create_unverified_context().wrap_socket(sock, server_hostname="localhost")


class Clients:
    """Clients that GET a page through the virtual address, each with connections of its own."""

    def __init__(self, count: int = 32, path: str = "/login/", think_seconds: float = 0.5, address: str = ADDRESS):
        self.path, self.think, self.address, self.ended = path, think_seconds, address, threading.Event()
        self.requests, self.failed, self.slowest, self.lock = 0, [], 0.0, threading.Lock()
        self.times = []
        self.threads = [threading.Thread(target=self.run, args=(number / count,)) for number in range(count)]

    def get(self) -> None:
        connection = Page(30, self.address)
        try:
            connection.request("GET", self.path)
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise OSError(f"status {response.status}")
        finally:
            connection.close()

    def run(self, delay: float) -> None:
        time.sleep(delay * self.think)
        while not self.ended.is_set():
            begin, error = time.time(), None
            try:
                self.get()
            except (OSError, http.client.HTTPException) as caught:
                error = f"{type(caught).__name__}: {caught}"
            with self.lock:
                self.requests += 1
                self.slowest = max(self.slowest, time.time() - begin)
                if error:
                    self.failed.append((begin, error))
                else:
                    self.times.append(time.time())
            time.sleep(self.think)

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_exception):
        self.ended.set()
        for thread in self.threads:
            thread.join(60)


def outage(seconds: float, first: float) -> tuple:
    """Request the page each 0.2 s; return the longest time from the fault until a page came (from `first` on)."""
    responded = []
    end = time.time() + seconds
    while time.time() < end:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = Page(1)
            try:
                connection.request("GET", "/health/")
                if connection.getresponse().status == 200:
                    responded.append(time.time())
            finally:
                connection.close()
        time.sleep(0.2)
    times = [first, *responded]
    return max((later - earlier for earlier, later in zip(times, times[1:])), default=seconds), len(responded)
