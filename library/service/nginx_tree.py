#!/usr/bin/python
# nginx's files as one set, and the servers behind a balancing nginx.
"""Keep nginx's files as one set: tested in a copy, swapped, reloaded and verified, or rolled back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nginx_tree
short_description: Keep nginx's configuration as one set that is tested, swapped, reloaded and verified
description:
  - A set of files, links and absences is compared with the host. When anything differs, a copy of the complete
    configuration directory with the new files in it is tested by C(nginx -t) before one live file is touched.
  - Then the files are renamed into place, the master process reloads them, and the module waits until the B(running)
    nginx responds with the hash of this very set, serves the certificate that is on disk, and until all workers of the
    earlier generation have stopped taking connections. nginx itself reports none of that; a reload that failed leaves
    only a line in the error log.
  - A changed setting of the unit's drop-in cannot reach a running process; then, and only then, nginx is restarted.
  - Where the verification fails, the earlier files are placed, loaded and verified, and the task fails with what nginx
    logged.
  - One file of the set, C(shiftmaster-servers.conf), names the servers that a public nginx balances over. Servers are
    taken out of it and in again between two runs of the role, so it has a hash of its own and the role leaves its
    C(down) lines.
  - The decision to reload is taken from what runs, not from what changed, so an interrupted run is completed by the
    next one.
options:
  state:
    description:
      - V(query) only reads and returns what a template has to know about the host.
      - V(present) makes the host have the set.
      - V(server_out) takes O(server) out of that file, V(server_in) takes it in again; requests that are under
        way are completed. The last one that is in is not taken out.
    type: str
    default: present
    choices: [query, present, server_out, server_in]
  server: {description: The server's address as that file has it., type: str}
  reason: {type: str, default: "", description: "Why it is taken out; a comment of its line. With O(state=server_in), it
    comes in only where it is out for this reason."}
  unit_drop_in: {type: path, description: The one of O(files) that belongs to the systemd unit. A changed setting in it
    restarts nginx.}
  directories:
    description: Directories that must exist, before the files are written.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory., type: path, required: true}
      mode: {description: Its mode., type: str, default: "0755"}
  files:
    description: Files with their complete content.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file., type: path, required: true}
      content: {description: The complete content., type: str, required: true}
      mode: {description: Its mode., type: str, default: "0644"}
  links:
    description: Symbolic links. A relative target is tested with the copy, an absolute one with the live file.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The link., type: path, required: true}
      target: {description: Where it leads., type: str, required: true}
  absent: {description: Files and links that must not exist., type: list, elements: path, default: []}
  password_files:
    description:
      - Files for C(auth_basic_user_file). Passwords become hashes on the host; a hash that still matches is kept, so
        that nothing changes without reason. Neither is ever shown.
      - The hashes are those of sha512crypt with its usual cost. nginx computes one for each request, in the worker that
        serves all other clients meanwhile, so that a cost of tens of milliseconds such as bcrypt's would be felt.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The file., type: path, required: true}
      users:
        description: Users that may log in.
        type: list
        elements: dict
        required: true
        suboptions:
          name: {description: The user's name., type: str, required: true}
          password: {description: The password., type: str, required: true}
      group: {type: str, default: www-data, description: "The group of the workers, which read the
        file, as root does."}
  log_files: {type: list, elements: path, default: [], description: "Access logs that must be there with the owner and
    mode that Debian's logrotate gives the next one, C(0640) of the workers' user and group C(adm). nginx would make the
    first one for root alone."}
  marker_file: {type: path, description: A file that this module writes. It holds C(return 200 "<hash of the set>\n";)
    and is to be included by location C(/config) of a server that listens on C(127.0.0.1:8081).}
  certificate: {description: The certificate that nginx must be serving. Read for V(query) as well., type: path}
  certificate_key: {description: Its key., type: path}
  tls_address: {type: str, description: host:port at which the served certificate is compared with the file. Nothing is
    compared without it.}
  tls_name: {description: The server name of that connection., type: str}
  groups: {type: list, elements: str, default: [], description: Groups whose members the workers must be. A worker
    learns its groups when it is forked.}
  ports: {type: list, elements: int, default: [], description: Ports of which V(query) reports whether another program
    listens on them.}
  verify_timeout_seconds: {description: How long to wait until a reload or a start is verified., type: int, default: 20}
attributes:
  check_mode: {description: Nothing changes. The new set is tested where nginx is installed already., support: full}
  diff_mode: {description: "Every file, link and directory that would change.", support: full}
"""

EXAMPLES = r"""
- name: query | Inspect the host
  nginx_tree:
    state: query
    certificate: /etc/ssl/certs/shiftmaster.crt
    ports: [80, 443]
  register: __nginx_host

- name: configure | Apply the site
  nginx_tree:
    files:
      - path: /etc/nginx/sites-available/shiftmaster
        content: "{{ lookup('ansible.builtin.template', 'site.conf.j2') }}"
    links:
      - path: /etc/nginx/sites-enabled/shiftmaster
        target: ../sites-available/shiftmaster
    absent:
      - /etc/nginx/sites-enabled/default
    marker_file: /etc/nginx/snippets/shiftmaster-marker.conf
"""

RETURN = r"""
reasons: {description: Why nginx is reloaded or started., returned: state=present, type: list, elements: str}
config_hash: {description: The hash with which the running nginx responds., returned: state=present, type: str}
action: {description: What was done to the service., returned: state=present, type: str, sample: reload}
servers: {description: The servers that this nginx balances over., returned: state=query, type: list, elements: str}
servers_down: {description: "Servers that were taken out, each with its comment.", returned: state=query, type: dict}
installed: {description: Whether the nginx program is there., returned: state=query, type: bool}
version: {description: "nginx's version, empty where it is not installed.", returned: state=query, type: str}
ipv6: {description: Whether sockets of IPv6 can be bound., returned: state=query, type: bool}
ipv6_loopback: {description: Whether ::1 can be bound., returned: state=query, type: bool}
groups_present: {description: Those of O(groups) that exist., returned: state=query, type: list, elements: str}
groups_lacking: {returned: state=query, type: list, elements: str, description: Those of RV(groups_present) of which
  the workers' user is no member.}
enabled: {description: Whether the unit is started at boot., returned: state=query, type: bool}
running: {description: Whether a master process is there., returned: state=query, type: bool}
ocsp_uri: {description: "The responder that the certificate names, or empty.", returned: state=query, type: str}
problems: {returned: state=query, type: list, elements: str, description: "What would make the start of nginx fail, each
  as a sentence."}
certificate_problems: {returned: state=query, type: list, elements: str, description: The part of RV(problems) that is
  about the certificate and its key.}
"""

import contextlib
import glob
import grp
import hashlib
import os
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import time

from ansible.module_utils.shiftmaster.host import configuration, listeners, probe, safe_files, units, webconfig
from ansible.module_utils.shiftmaster.host.configuration import Failed, Rejected
from ansible.module_utils.shiftmaster.host.quiet import QuietModule, list_of

# As in Debian's logrotate rule for /var/log/nginx.
LOG_GROUP, LOG_MODE = "adm", 0o640
# Debian's nginx. servers_file has one `server` line for each server; the includes of main_file have to be relative.
HOST = {
    "config_root": "/etc/nginx",
    "main_file": "/etc/nginx/nginx.conf",
    "servers_file": "/etc/nginx/shiftmaster-servers.conf",
    "binary": "/usr/sbin/nginx",
    "service": "nginx.service",
    "pid_file": "/run/nginx.pid",
    "error_log": "/var/log/nginx/error.log",
    "marker_address": "127.0.0.1:8081",
    "marker_path": "/config",
    "user": "www-data",
}


def config_hash(files, links, absent):
    """The hash of a set. Order and directories do not count, contents, modes and links do."""
    digest = hashlib.sha256()
    for item in sorted(files, key=lambda f: f["path"]):
        digest.update(repr(("file", item["path"], item["content"], item.get("mode", "0644"))).encode())
    for item in sorted(links, key=lambda f: f["path"]):
        digest.update(repr(("link", item["path"], item["target"])).encode())
    for path in sorted(absent):
        digest.update(repr(("absent", path)).encode())
    return digest.hexdigest()[:32]


SERVER_LINE = re.compile(r"^server (?P<server>\S+)(?P<options>[^;]*?)(?P<down> down)?;(?: # (?P<comment>.*))?$")


def servers_of(text):
    """Return {server: (whether it is down, the comment)} of a file of server lines."""
    found = {}
    for line in text.splitlines():
        match = SERVER_LINE.match(line)
        if match:
            found[match["server"]] = (bool(match["down"]), match["comment"] or "")
    return found


def with_server(text, server, out, reason, when=""):
    """Return the text with one server out or in; with a reason, in only where it is out for that one.

    ValueError shows why that cannot be.
    """
    reason = " ".join(reason.split())
    servers = servers_of(text)
    if server not in servers:
        raise ValueError("there is no server %s of this nginx; there are: %s" % (server, ", ".join(servers)))
    if out and not any(not down for other, (down, _comment) in servers.items() if other != server):
        raise ValueError("%s is the last server that is in; without it nobody would be served" % server)
    if servers[server][0] == out or not out and reason and not servers[server][1].endswith(": " + reason):
        return text
    lines = []
    for line in text.splitlines():
        match = SERVER_LINE.match(line)
        if match and match["server"] == server:
            line = "server %s%s%s;" % (server, match["options"], " down" if out else "")
            line += " # %s: %s" % (when, reason) if out else ""
        lines.append(line)
    return "\n".join(lines) + "\n"


def marker_content(value):
    return 'return 200 "%s\\n";\n' % value


def new_hash(password):
    crypt = webconfig.library()
    salt = crypt.crypt_gensalt(b"$6$", 0, os.urandom(16), 16)
    found = crypt.crypt(webconfig.encoded(password), salt) if salt else None
    if not found or not found.startswith(b"$6$"):
        raise webconfig.PasswordError("libcrypt makes no sha512crypt hash")
    return found.decode("ascii")


def password_lines(users, before):
    """The text of a password file; a hash of the text before is kept while it matches."""
    had = dict(line.split(":", 1) for line in before.splitlines() if ":" in line)
    lines = []
    for user in users:
        name = user["name"]
        try:
            if not re.fullmatch(r"[\w.@-]+", name):
                raise webconfig.PasswordError("such a name cannot be in that file")
            old = had.get(name, "")
            kept = old.startswith("$6$") and webconfig.matches(user["password"], old)
            lines.append("%s:%s\n" % (name, old if kept else new_hash(user["password"])))
        except webconfig.PasswordError as error:
            raise webconfig.PasswordError("user %s: %s" % (name, error))
    return "".join(lines)


def masked(text, other=None):
    """Return the lines of a password file as a diff may show them; with another, whether a hash differs from its."""
    known = (other or "").splitlines()
    return "".join(
        "%s:(%s)\n" % (line.split(":")[0], "a hash" if other is None or line in known else "another hash")
        for line in text.splitlines()
    )


def mask_passwords(before, after):
    """Show a password file in a diff without hashes."""
    return masked(before or ""), masked(after or "", before)


def split_address(address):
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def master_pid(pid_file):
    try:
        with open(pid_file) as handle:
            pid = int(handle.read().strip())
        with open("/proc/%d/comm" % pid) as handle:
            return pid if handle.read().strip() == "nginx" else None
    except (OSError, ValueError):
        return None


def workers(master):
    """Workers of a master that take connections (those that are shutting down are left out): pid -> group ids."""
    found = {}
    for directory in glob.glob("/proc/[0-9]*"):
        try:
            with open(directory + "/stat") as handle:
                parent = int(handle.read().rsplit(")", 1)[1].split()[1])
            if parent != master:
                continue
            with open(directory + "/cmdline") as handle:
                title = handle.read()
            if "worker process" not in title or "shutting down" in title:
                continue
            with open(directory + "/status") as handle:
                line = re.search(r"^Groups:(.*)$", handle.read(), re.M)
            found[int(directory.rsplit("/", 1)[1])] = {int(gid) for gid in line.group(1).split()} if line else set()
        except (OSError, ValueError, IndexError):
            continue
    return found


def group_ids(names):
    found = {}
    for name in names:
        try:
            found[name] = grp.getgrnam(name).gr_gid
        except KeyError:
            continue
    return found


def can_bind(family, address):
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.bind((address, 0))
        return True
    except OSError:
        return False


def running_hash(address, path):
    """Return what the marker location of the running nginx responds with, or an empty text."""
    found = probe.http_get("http://" + address, path, timeout=3.0)
    return found.body.strip() if found.status == 200 else ""


def serves_another(certificate, address, name):
    """Return whether nginx sends another certificate than the file holds, or none."""
    return probe.serves_another(certificate, *split_address(address), name, timeout=3.0) is not False


def settings_of(unit):
    """Return the values of each setting of a unit file in their order; that of different settings means nothing."""
    lines = [line for line in map(str.strip, unit.splitlines()) if line and line[0] not in "#;"]
    section, found = "", {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        section = line if line.startswith("[") else section
        name, _, value = line.partition("=")
        found.setdefault((section, name.strip()), []).append(value.strip())
    return found


class Tree:
    def __init__(self, module):
        self.module = module
        self.p = p = {**HOST, **module.params}
        if p["state"] in ("server_out", "server_in"):
            self.servers_alone()
        self.root = p["config_root"].rstrip("/")
        self.files = configuration.FileSet(module.check_mode)
        for item in p["directories"]:
            self.files.add_directory(item)
        items = [dict(item) for item in p["files"]]
        for item in items:
            self.files.add(item)
        for item in p["password_files"]:
            try:
                content = password_lines(item["users"], configuration.read_text(item["path"]))
            except webconfig.PasswordError as error:
                raise Rejected("%s: %s" % (item["path"], error))
            items.append({"path": item["path"], "content": content, "mode": "0640", "group": item["group"]})
            self.files.add(items[-1], mask_passwords)
        for item in p["links"]:
            self.files.want(item["path"], ("link", item["target"]))
        for path in p["absent"]:
            self.files.want(path, ("none",))
        # nginx itself reads these: error pages and the unit's drop-in are no reason to reload.
        read = [item for item in items if item["path"].startswith(self.root + "/")]
        servers = [item for item in read if item["path"] == p["servers_file"]]
        self.hash = config_hash([item for item in read if item not in servers], p["links"], p["absent"])
        # The running nginx responds with these where it has the set: {location: (file, hash)}.
        self.markers = {}
        if p["marker_file"]:
            self.mark(p["marker_file"], p["marker_path"], self.hash)
        if servers:
            self.mark(p["servers_file"] + ".marker", "/servers", config_hash(servers, [], []))

    def mark(self, path, location, value):
        self.files.add({"path": path, "content": marker_content(value)})
        self.markers[location] = (path, value)

    def servers_alone(self):
        """Make the set the one file of servers, with one of them out or in."""
        p = self.p
        text, out = configuration.read_text(p["servers_file"]), p["state"] == "server_out"
        if not text:
            raise Rejected("this host's nginx balances over no servers: there is no %s" % p["servers_file"])
        try:
            reason = p["reason"] or ("taken out" if out else "")
            content = with_server(text, p["server"], out, reason, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        except ValueError as error:
            raise Rejected(str(error))
        p["files"] = [{"path": p["servers_file"], "content": content, "mode": "0644"}]

    # -- reading ---------------------------------------------------------------------------------------------
    def query(self):
        p = self.p
        servers = servers_of(configuration.read_text(p["servers_file"]))
        problems = self.certificate_problems()
        present = group_ids(p["groups"])
        result = {
            "changed": False,
            "installed": os.access(p["binary"], os.X_OK),
            "version": "",
            "ocsp_uri": "",
            "servers": sorted(servers),
            "servers_down": {server: comment for server, (down, comment) in servers.items() if down},
            "ipv6": can_bind(socket.AF_INET6, "::"),
            "ipv6_loopback": can_bind(socket.AF_INET6, "::1"),
            "groups_present": sorted(present),
            "groups_lacking": [name for name in sorted(present) if p["user"] not in grp.getgrnam(name).gr_mem],
            "running": master_pid(p["pid_file"]) is not None,
            "enabled": False,
            "certificate_problems": problems,
            "problems": problems + self.port_problems(),
        }
        if result["installed"]:
            done = subprocess.run([p["binary"], "-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
            match = re.search(rb"nginx/(\d+(?:\.\d+)+)", done.stdout)
            result["version"] = match.group(1).decode() if match else ""
            result["enabled"] = units.properties(p["service"], "UnitFileState").get("UnitFileState") == "enabled"
        if p["certificate"] and not problems and shutil.which("openssl"):
            argv = ["openssl", "x509", "-in", p["certificate"], "-noout", "-ocsp_uri"]
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20)
            result["ocsp_uri"] = done.stdout.decode("ascii", "replace").strip()
        return result

    def port_problems(self):
        problems = []
        for port, holders in sorted(listeners.holders(self.p["ports"]).items()):
            others = {name for name, _pid in holders} - {"nginx"}
            if others:
                problems.append("port %d is taken by %s" % (port, ", ".join(sorted(others))))
        return problems

    def certificate_problems(self):
        certificate, key = self.p["certificate"], self.p["certificate_key"]
        problems = []
        if certificate and not os.path.exists(certificate):
            problems.append("the certificate %s is missing" % certificate)
        elif certificate:
            try:
                probe.pem_certificates(certificate)
            except probe.ProbeError:
                problems.append("%s holds no certificate in PEM form" % certificate)
        if key and not os.path.exists(key):
            problems.append("the key %s is missing" % key)
        if certificate and key and not problems:
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
            except (ssl.SSLError, OSError, ValueError) as error:
                problems.append(
                    "the certificate %s and the key %s cannot be used together: %s"
                    % (certificate, key, getattr(error, "reason", None) or error)
                )
        return problems

    def log_changes(self):
        """Return {path: what it is now} of the logs that nginx' own readers could not read."""
        found = {}
        for path in self.p["log_files"]:
            # nginx opens its logs by name, as root. Where there is no directory, nginx -t reports it.
            directory = os.path.dirname(path)
            if not os.path.isdir(directory):
                continue
            if not safe_files.is_trusted(os.stat(directory)):
                raise Rejected("others than root can change %s, the directory of a log of nginx's" % directory)
            try:
                info = os.stat(path)
            except FileNotFoundError:
                found[path] = None
                continue
            now = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
            if now != (LOG_MODE, *self.log_owner()):
                found[path] = now
        return found

    def log_owner(self):
        return configuration.identity("log_files", self.p["user"], LOG_GROUP, self.module.check_mode)

    def make_logs(self, logs):
        for path in logs:
            # nginx writes into the same file as before: only whose it is changes.
            with safe_files.closing(
                safe_files.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, LOG_MODE)
            ) as descriptor:
                os.fchown(descriptor, *self.log_owner())
                os.fchmod(descriptor, LOG_MODE)

    def running_differs(self, markers=None):
        """Return why the nginx that runs is not the one that the files describe."""
        p = self.p
        reasons = []
        for location, (_path, value) in (self.markers if markers is None else markers).items():
            if running_hash(p["marker_address"], location) != value:
                name = "other servers" if location == "/servers" else "another configuration"
                reasons.append("the running nginx has %s" % name)
        if p["certificate"] and p["tls_address"]:
            if serves_another(p["certificate"], p["tls_address"], p["tls_name"]):
                reasons.append("the running nginx sends another certificate than %s" % p["certificate"])
        wanted = group_ids(p["groups"])
        running = master_pid(p["pid_file"])
        if wanted and running:
            for gids in workers(running).values():
                missing = sorted(name for name, gid in wanted.items() if gid not in gids)
                if missing:
                    reasons.append("the workers are not in the group %s" % ", ".join(missing))
                    break
        return reasons

    # -- testing a copy ---------------------------------------------------------------------------------------
    def test(self):
        """Run nginx -t on a copy with the new files in it. None, or its message."""
        p = self.p
        # nginx -t creates its log files and an empty pid file; whatever was not there before is taken away again.
        texts = "\n".join(item["content"] for item in p["files"])
        named = set(re.findall(r"(?m)^\s*(?:access_log|error_log)\s+(/[^\s;]+)", texts))
        created = [path for path in sorted(named) + [p["pid_file"]] if not os.path.lexists(path)]
        try:
            with self.files.staged(self.root, p["service"]) as (tree, _work):
                done = subprocess.run(
                    [p["binary"], "-t", "-q", "-c", tree + p["main_file"][len(self.root) :]],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    timeout=60,
                )
                message = done.stdout.decode("utf-8", "replace").replace(tree, self.root).strip()
                return None if done.returncode == 0 else message
        except subprocess.TimeoutExpired:
            return "nginx -t did not end within 60 seconds"
        finally:
            for path in created:
                with contextlib.suppress(OSError):
                    if os.path.getsize(path) == 0:
                        os.unlink(path)

    # -- changing ---------------------------------------------------------------------------------------------
    def verify(self, master, old_workers, markers):
        """Wait until the running configuration is the written one; Failed names the difference."""
        missing = "nothing was seen"
        deadline = time.monotonic() + self.p["verify_timeout_seconds"]
        good = 0
        while time.monotonic() < deadline:
            now = master_pid(self.p["pid_file"])
            if now is None:
                missing = "the master process is gone"
            elif master is not None and now != master:
                raise Failed("the master process was replaced (%s, before %s)" % (now, master))
            else:
                alive = set(workers(now))
                reasons = self.running_differs(markers)
                if reasons:
                    missing = "; ".join(reasons)
                elif not alive:
                    missing = "there are no workers"
                elif alive & old_workers:
                    missing = "old workers still take connections: %s" % sorted(alive & old_workers)
                else:
                    good += 1
                    if good >= 3:
                        return
                    time.sleep(0.02)
                    continue
            good = 0
            time.sleep(0.1)
        raise Failed(missing)

    def bring_up(self, action, markers=None):
        """Start, restart or reload, and verify it."""
        p = self.p
        offset = os.path.getsize(p["error_log"]) if os.path.exists(p["error_log"]) else 0
        try:
            master = master_pid(p["pid_file"])
            reload = action == "reload" and master is not None
            # Also after a reload: a drop-in that systemd has not read restarts nginx in the next run.
            if p["unit_drop_in"] and (not reload or p["unit_drop_in"] in self.files.changes):
                units.systemctl("daemon-reload")
            if reload:
                old = set(workers(master))
                os.kill(master, signal.SIGHUP)
                return self.verify(master, old, markers)
            with contextlib.suppress(units.UnitError):
                units.systemctl("reset-failed", p["service"])
            units.systemctl("start" if action == "start" else "restart", p["service"], timeout=120)
            self.verify(None, set(), markers)
        except (Failed, units.UnitError) as error:
            logged = self.log_since(offset)
            more = "\nnginx logged:\n%s\n" % logged if logged else ""
            raise Failed("the %s of nginx did not take effect: %s%s" % (action, error, more))

    def log_since(self, offset):
        try:
            with os.fdopen(safe_files.open_file(self.p["error_log"]), "rb") as stream:
                stream.seek(offset)
                text = stream.read(20000).decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line for line in text.splitlines() if re.search(r"\[(emerg|alert|crit|error)\]", line)]
        return "\n".join(lines[-10:])

    def restore(self, action):
        """Load the earlier files, and verify them by the markers among them."""
        markers = {}
        for location, (path, _value) in self.markers.items():
            match = re.match(r'return 200 "(\w+)', self.files.before(path))
            if match:
                markers[location] = (path, match.group(1))
        self.bring_up("restart" if action == "start" else action, markers)

    def drop_in_differs(self):
        """Return whether the drop-in sets something else than before: for a comment no request has to fail."""
        path = self.p["unit_drop_in"]
        if path not in self.files.changes:
            return False
        contents = [item["content"] for item in self.p["files"] if item["path"] == path]
        return settings_of(self.files.before(path)) != settings_of(contents[0])

    def decide(self, installed):
        """Return what has to happen to the service, and why."""
        p, changes = self.p, self.files.changes
        reasons = ["files differ: %s" % ", ".join(sorted(changes))] if changes else []
        if not installed:
            return "start", reasons + ["nginx is not installed yet"]
        if master_pid(p["pid_file"]) is None:
            return "start", reasons + ["nginx does not run"]
        # A run was interrupted between the change of the unit's files and the time when systemd reads them.
        stale = p["unit_drop_in"] and units.properties(p["service"], "NeedDaemonReload")["NeedDaemonReload"] == "yes"
        if stale or self.drop_in_differs():
            return "restart", reasons + ["the unit's drop-in is new"]
        if any(path.startswith(self.root + "/") for path in changes):
            return "reload", reasons
        differs = self.running_differs()
        return ("reload" if differs else "none"), reasons + differs

    def run(self):
        module, files = self.module, self.files
        files.compare()
        installed = os.access(self.p["binary"], os.X_OK)
        action, reasons = self.decide(installed)
        logs = self.log_changes()
        diff = files.diff(hidden=[path for path, _value in self.markers.values()])
        for path, before in logs.items():
            text, after = "log, mode %04o, owner %s:%s\n", (LOG_MODE, *self.log_owner())
            shown = {"before": text % before if before else "", "after": text % after}
            diff.append(dict(shown, before_header=path, after_header=path))
        result = {
            "changed": bool(reasons or files.directory_changes or logs),
            "reasons": reasons,
            "config_hash": self.hash,
            "action": action,
            "diff": diff,
        }
        if module.check_mode:
            if files.changes and installed and not self.certificate_problems():
                message = self.test()
                if message:
                    module.warn("nginx would reject this configuration: %s" % message)
            return result
        if not installed:
            raise Rejected("%s is not there; install nginx first" % self.p["binary"])
        message = self.test() if action != "none" else None
        if message:
            raise Rejected("nginx rejects the configuration: %s" % message)
        files.make_directories()
        self.make_logs(logs)
        if action == "none":
            files.swap()
            if self.p["unit_drop_in"] in files.changes:
                units.systemctl("daemon-reload")
        else:
            files.apply(lambda: self.bring_up(action), lambda: self.restore(action))
        return result


def argument_spec():
    text, path = {"type": "str", "required": True}, {"type": "path", "required": True}
    # The passwords are marked, not the complete text: the path may be shown.
    user = {"name": text, "password": dict(text, no_log=True)}
    passwords = list_of(path=path, users=list_of(True, **user), group={"type": "str", "default": "www-data"})
    return {
        "state": {"type": "str", "choices": ["query", "present", "server_out", "server_in"], "default": "present"},
        "server": {"type": "str"},
        "reason": {"type": "str", "default": ""},
        "unit_drop_in": {"type": "path"},
        "directories": list_of(path=path, mode={"type": "str", "default": "0755"}),
        "files": list_of(path=path, content=text, mode={"type": "str", "default": "0644"}),
        "links": list_of(path=path, target=text),
        "absent": {"type": "list", "elements": "path", "default": []},
        "password_files": dict(passwords, no_log=False),
        "log_files": {"type": "list", "elements": "path", "default": []},
        "marker_file": {"type": "path"},
        "certificate": {"type": "path"},
        "certificate_key": {"type": "path", "no_log": False},
        "tls_address": {"type": "str"},
        "tls_name": {"type": "str"},
        "groups": {"type": "list", "elements": "str", "default": []},
        "ports": {"type": "list", "elements": "int", "default": []},
        "verify_timeout_seconds": {"type": "int", "default": 20},
    }


def main():
    module = QuietModule(
        argument_spec=argument_spec(),
        required_if=[("state", "server_out", ("server",)), ("state", "server_in", ("server",))],
        supports_check_mode=True,
    )
    if module.params["state"] == "query":
        module.exit_json(**Tree(module).query())
    configuration.run(module, "nginx", lambda: Tree(module).run())


if __name__ == "__main__":
    main()
