#!/usr/bin/python
# nginx's files as one set, and the servers behind a balancing nginx.
# ruff: noqa: E402  (an Ansible module states its documentation before its imports)
"""Keep nginx's files as one set: tested beside the live ones, swapped, reloaded, proven, or put back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: nginx_tree
short_description: Keep nginx's configuration as one set that is tested, swapped, reloaded and proven
description:
  - A set of files, links and absences is compared with the host. When anything differs, a copy of the whole
    configuration folder with the new files in it is tested by C(nginx -t) before one live file is touched.
  - Then the files are renamed into place, the master process is told to reload, and the module waits until the
    B(running) nginx answers with the hash of this very set, serves the certificate that is on disk, and until all
    workers of the earlier generation have stopped taking connections. nginx itself reports none of that, a reload that
    failed leaves only a line in the error log.
  - A changed drop-in of the unit cannot reach a running process; then, and only then, nginx is restarted.
  - When the proof does not come, the earlier files are put back and the task fails with what nginx logged.
  - One file of the set, O(servers_file), names the servers that a public nginx balances over. Servers are taken out of
    it and in again between two runs of the role, so it has a proof of its own and the role leaves its C(down) lines.
  - The decision to reload is taken from what runs, not from what changed, so a run that was killed between the
    swap and the reload is made good by the next one.
options:
  state:
    description:
      - V(query) only reads and returns what a template has to know about the host.
      - V(present) makes the host have the set.
      - V(server_out) takes O(server) out of O(servers_file), V(server_in) takes it in again; requests that are under
        way are answered. The last one that is in is not taken out.
    type: str
    choices: [query, present, server_out, server_in]
    default: present
  servers_file:
    description: The file below O(config_root) with one C(server) line for each server.
    type: path
    default: /etc/nginx/shiftmaster-servers.conf
  server:
    description: The server's address as that file has it.
    type: str
  reason:
    description:
      - Why it is taken out; a comment of its line. With O(state=server_in), it comes in only where it is out for this
        reason.
    type: str
    default: ""
  config_root:
    description: The folder of which a copy is tested.
    type: path
    default: /etc/nginx
  main_file:
    description: The main configuration file, inside O(config_root). Its includes must be relative to be tested.
    type: path
    default: /etc/nginx/nginx.conf
  binary:
    description: The nginx program.
    type: path
    default: /usr/sbin/nginx
  service:
    description: The systemd unit that is started when nginx does not run.
    type: str
    default: nginx.service
  unit_drop_in:
    description: The one of O(files) that belongs to the systemd unit. A change of it restarts nginx.
    type: path
  pid_file:
    description: Where the master process writes its number.
    type: path
    default: /run/nginx.pid
  error_log:
    description: The log from which nginx's own explanation is taken when a reload fails.
    type: path
    default: /var/log/nginx/error.log
  directories:
    description: Folders that must exist, before the files are written.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The folder.
        type: path
        required: true
      mode:
        description: Its mode.
        type: str
        default: "0755"
  files:
    description: Files with their whole content.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      content:
        description: The whole content.
        type: str
        required: true
      mode:
        description: Its mode.
        type: str
        default: "0644"
  links:
    description: Symbolic links. A relative target is tested with the copy, an absolute one with the live file.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The link.
        type: path
        required: true
      target:
        description: What it says.
        type: str
        required: true
  absent:
    description: Files and links that must not exist.
    type: list
    elements: path
    default: []
  password_files:
    description:
      - Files for C(auth_basic_user_file). Passwords become hashes on the host; a hash that still matches is kept, so
        that nothing changes without reason. Neither is ever shown.
      - The hashes are those of sha512crypt with its usual cost. nginx computes one for each request, in the worker that
        serves everybody else meanwhile, so that a cost of tens of milliseconds such as bcrypt's would be felt.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      users:
        description: Who may ask.
        type: list
        elements: dict
        required: true
        suboptions:
          name:
            description: The user's name.
            type: str
            required: true
          password:
            description: The password.
            type: str
            required: true
      group:
        description: The group of the workers, which read the file; nobody else but root may.
        type: str
        default: www-data
  log_files:
    description:
      - Access logs that must be there with the owner and mode that Debian's logrotate gives the next one, C(0640) of
        O(user) and group C(adm). nginx would make the first one for root alone.
    type: list
    elements: path
    default: []
  marker_file:
    description:
      - A file that this module writes. It holds C(return 200 "<hash of the set>\n";) and is to be included by a
        location of a server that listens on O(marker_address).
    type: path
  marker_address:
    description: host:port of the server that answers with the hash.
    type: str
    default: 127.0.0.1:8081
  marker_path:
    description: The path of the location that answers with the hash.
    type: str
    default: /config
  certificate:
    description: The certificate that nginx must be serving. Read for V(query) as well.
    type: path
  certificate_key:
    description: Its key. Only looked at, never read.
    type: path
  tls_address:
    description: host:port at which the served certificate is compared with the file. Nothing is compared without it.
    type: str
  tls_name:
    description: The server name to ask with.
    type: str
  groups:
    description: Groups whose members the workers must be. A worker learns its groups when it is forked.
    type: list
    elements: str
    default: []
  user:
    description: The user of the workers.
    type: str
    default: www-data
  ports:
    description: Ports of which V(query) reports whether another program listens on them.
    type: list
    elements: int
    default: []
  proof_timeout_seconds:
    description: How long to wait for the proof of a reload or a start.
    type: int
    default: 20
attributes:
  check_mode:
    support: full
    description: Nothing changes. The new set is tested where nginx is installed already.
  diff_mode:
    support: full
    description: Every file, link and folder that would change.
author:
  - ShiftMaster operations
"""

EXAMPLES = r"""
- name: query | See what runs on the host
  nginx_tree:
    state: query
    certificate: /etc/ssl/certs/shiftmaster.crt
    ports: [80, 443]
  register: __nginx_host

- name: cutover | Take a host out of the edge
  nginx_tree:
    state: server_out
    server: 192.0.2.11:8443
    reason: it could not be reached
  delegate_to: edge1

- name: configure | Swap in the site
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
reasons:
  description: Why nginx was started or reloaded (or would be).
  returned: state=present
  type: list
  elements: str
  sample: ["files differ: /etc/nginx/nginx.conf"]
config_hash:
  description: The hash with which the running nginx answers.
  returned: state=present
  type: str
action:
  description: What was done to the service.
  returned: state=present
  type: str
  sample: reload
servers:
  description: The servers that this nginx balances over.
  returned: state=query
  type: list
  elements: str
servers_down:
  description: Servers that were taken out, each with the comment of its line.
  returned: state=query
  type: dict
installed:
  description: Whether the nginx program is there.
  returned: state=query
  type: bool
version:
  description: nginx's version, empty where it is not installed.
  returned: state=query
  type: str
ipv6:
  description: Whether sockets of IPv6 can be bound.
  returned: state=query
  type: bool
ipv6_loopback:
  description: Whether ::1 can be bound.
  returned: state=query
  type: bool
groups_present:
  description: Those of O(groups) that exist.
  returned: state=query
  type: list
  elements: str
groups_lacking:
  description: Those of RV(groups_present) of which O(user) is no member.
  returned: state=query
  type: list
  elements: str
enabled:
  description: Whether the unit is started at boot.
  returned: state=query
  type: bool
running:
  description: Whether a master process is there.
  returned: state=query
  type: bool
ocsp_uri:
  description: The responder that the certificate names, or empty.
  returned: state=query
  type: str
problems:
  description: What would make the start of nginx fail, each as a sentence.
  returned: state=query
  type: list
  elements: str
certificate_problems:
  description: The part of RV(problems) that is about the certificate and its key.
  returned: state=query
  type: list
  elements: str
"""

import glob
import grp
import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import tempfile
import time

from ansible.module_utils.shiftmaster.host import filestate, safe_files, webconfig
from ansible.module_utils.shiftmaster.host.quiet import QuietModule

# As in Debian's logrotate rule for /var/log/nginx.
LOG_GROUP, LOG_MODE = "adm", 0o640


def config_hash(files, links, absent):
    """The hash of a set. Order and folders do not count, contents, modes and links do."""
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

    ValueError says why that cannot be.
    """
    reason = " ".join(reason.split())
    servers = servers_of(text)
    if server not in servers:
        raise ValueError("there is no server %s behind this nginx; there are: %s" % (server, ", ".join(servers)))
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
    """The lines of a password file as a diff may show them; with another one, whether a hash differs from its."""
    known = (other or "").splitlines()
    return "".join(
        "%s:(%s)\n" % (line.split(":")[0], "a hash" if other is None or line in known else "another hash")
        for line in text.splitlines()
    )


def read_state(path, group=False):
    """What a path is now, of a file without its owner, or with its group alone."""
    found = filestate.read_state(path)
    return found[:3] + (found[4:] if group else ()) if found[0] == "file" else found


def wanted_states(files, links, absent):
    wanted = {}
    for item in files:
        wanted[item["path"]] = ("file", item["content"].encode(), int(item.get("mode") or "0644", 8))
        if item.get("group"):
            wanted[item["path"]] += (group_ids([item["group"]]).get(item["group"]),)
    for item in links:
        wanted[item["path"]] = ("link", item["target"])
    for path in absent:
        wanted[path] = ("none",)
    return wanted


def as_text(state):
    if state[0] == "file":
        return state[1].decode("utf-8", "replace")
    if state[0] == "link":
        return "link to %s\n" % state[1]
    return ""


def describe(path, before, after, secret=False):
    """One entry of Ansible's diff."""
    header = path
    if before[0] == "file" and after[0] == "file" and before[2] != after[2]:
        header = "%s (mode %04o -> %04o)" % (path, before[2], after[2])
    texts = as_text(before), as_text(after)
    if secret:
        texts = masked(texts[0]), masked(texts[1], texts[0] if before[0] == "file" else None)
    return {
        "before": texts[0],
        "after": texts[1],
        "before_header": path if before[0] != "none" else "%s (absent)" % path,
        "after_header": header if after[0] != "none" else "%s (absent)" % path,
    }


def parse_listeners(text, ports):
    """Inodes of the listening sockets in the text of /proc/net/tcp or tcp6, by port."""
    found = {}
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != "0A":
            continue
        port = int(fields[1].rsplit(":", 1)[1], 16)
        if port in ports:
            found.setdefault(port, set()).add(fields[9])
    return found


def socket_owners(inodes):
    """Names of the programs that hold these socket inodes."""
    wanted = {"socket:[%s]" % inode for inode in inodes}
    names = set()
    for fd in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            if os.readlink(fd) in wanted:
                with open("/proc/%s/comm" % fd.split("/")[2]) as handle:
                    names.add(handle.read().strip())
        except OSError:
            continue
    return names


def first_certificate(path):
    """The leaf of a PEM file as DER, or None."""
    try:
        with open(path) as handle:
            text = handle.read()
    except (OSError, UnicodeDecodeError):
        return None
    match = re.search("-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", text, re.S)
    try:
        return ssl.PEM_cert_to_DER_cert(match.group(0)) if match else None
    except ValueError:
        return None


def split_address(address):
    host, port = address.rsplit(":", 1)
    return host.strip("[]"), int(port)


def served_certificate(address, name, timeout=3.0):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with socket.create_connection(split_address(address), timeout) as plain:
            with context.wrap_socket(plain, server_hostname=name or None) as wrapped:
                return wrapped.getpeercert(True)
    except (OSError, ValueError):
        return None


def running_hash(address, path, timeout=3.0):
    """What the marker location of the running nginx answers, or an empty text."""
    try:
        with socket.create_connection(split_address(address), timeout) as sock:
            sock.settimeout(timeout)
            sock.sendall(("GET %s HTTP/1.0\r\nHost: localhost\r\n\r\n" % path).encode())
            data = b""
            while len(data) < 65536:
                part = sock.recv(4096)
                if not part:
                    break
                data += part
    except OSError:
        return ""
    head, _separator, body = data.partition(b"\r\n\r\n")
    if not re.match(rb"HTTP/1\.[01] 200 ", head):
        return ""
    return body.decode("ascii", "replace").strip()


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
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            with open(folder + "/stat") as handle:
                parent = int(handle.read().rsplit(")", 1)[1].split()[1])
            if parent != master:
                continue
            with open(folder + "/cmdline") as handle:
                title = handle.read()
            if "worker process" not in title or "shutting down" in title:
                continue
            with open(folder + "/status") as handle:
                line = re.search(r"^Groups:(.*)$", handle.read(), re.M)
            found[int(folder.rsplit("/", 1)[1])] = {int(gid) for gid in line.group(1).split()} if line else set()
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


class Tree:
    def __init__(self, module):
        self.module = module
        self.p = module.params
        if self.p["state"] in ("server_out", "server_in"):
            self.servers_alone()
        self.files = [dict(item) for item in self.p["files"]]
        self.secret = set()
        for item in self.p["password_files"]:
            before = read_state(item["path"])
            text = before[1].decode("utf-8", "replace") if before[0] == "file" else ""
            try:
                content = password_lines(item["users"], text)
            except webconfig.PasswordError as error:
                self.module.fail_json(msg="%s: %s. Nothing was changed." % (item["path"], error))
            self.files.append({"path": item["path"], "content": content, "mode": "0640", "group": item["group"]})
            self.secret.add(item["path"])
        root = self.p["config_root"].rstrip("/") + "/"
        # What nginx itself reads: error pages and the unit's drop-in are no reason to reload.
        read = [item for item in self.files if item["path"].startswith(root)]
        servers = [item for item in read if item["path"] == self.p["servers_file"]]
        self.hash = config_hash([item for item in read if item not in servers], self.p["links"], self.p["absent"])
        # What the running nginx answers where: the proof that it has this set.
        self.markers = {}
        if self.p["marker_file"]:
            self.mark(self.p["marker_file"], self.p["marker_path"], self.hash)
        if servers:
            self.mark(self.p["servers_file"] + ".marker", "/servers", config_hash(servers, [], []))
        self.wanted = wanted_states(self.files, self.p["links"], self.p["absent"])

    def mark(self, path, location, value):
        self.files.append({"path": path, "content": marker_content(value), "mode": "0644"})
        self.markers[location] = value

    def servers_alone(self):
        """Make the set the one file of servers, with one of them out or in."""
        p = self.p
        try:
            with open(p["servers_file"], encoding="utf-8") as handle:
                text = handle.read()
            out = p["state"] == "server_out"
            reason = p["reason"] or ("taken out" if out else "")
            content = with_server(text, p["server"], out, reason, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        except FileNotFoundError:
            self.module.fail_json(msg="this host's nginx balances over no servers: there is no %s" % p["servers_file"])
        except ValueError as exc:
            self.module.fail_json(msg=str(exc))
        p["files"] = [{"path": p["servers_file"], "content": content, "mode": "0644"}]

    # -- reading ---------------------------------------------------------------------------------------------
    def query(self):
        p = self.p
        problems = []
        try:
            with open(p["servers_file"], encoding="utf-8") as handle:
                servers = servers_of(handle.read())
        except FileNotFoundError:
            servers = {}
        result = {"changed": False, "installed": os.access(p["binary"], os.X_OK), "version": "", "ocsp_uri": ""}
        if result["installed"]:
            out = subprocess.run([p["binary"], "-v"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
            match = re.search(rb"nginx/(\d+(?:\.\d+)+)", out.stdout)
            result["version"] = match.group(1).decode() if match else ""
        result["servers"] = sorted(servers)
        result["servers_down"] = {server: comment for server, (down, comment) in servers.items() if down}
        result["ipv6"] = can_bind(socket.AF_INET6, "::")
        result["ipv6_loopback"] = can_bind(socket.AF_INET6, "::1")
        result["groups_present"] = sorted(group_ids(p["groups"]))
        result["groups_lacking"] = [
            name for name in result["groups_present"] if p["user"] not in grp.getgrnam(name).gr_mem
        ]
        result["running"] = master_pid(p["pid_file"]) is not None
        result["enabled"] = result["installed"] and self.systemctl("is-enabled")[1] == "enabled"
        about_certificate = self.certificate_problems()
        for port in p["ports"]:
            inodes = set()
            for name in ("/proc/net/tcp", "/proc/net/tcp6"):
                try:
                    with open(name) as handle:
                        inodes |= parse_listeners(handle.read(), {port}).get(port, set())
                except OSError:
                    continue
            others = socket_owners(inodes) - {"nginx"} if inodes else set()
            if others:
                problems.append("port %d is taken by %s" % (port, ", ".join(sorted(others))))
        if p["certificate"] and not about_certificate and shutil.which("openssl"):
            out = subprocess.run(
                ["openssl", "x509", "-in", p["certificate"], "-noout", "-ocsp_uri"],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=20,
            )
            result["ocsp_uri"] = out.stdout.decode("ascii", "replace").strip()
        result["certificate_problems"] = about_certificate
        result["problems"] = about_certificate + problems
        return result

    def certificate_problems(self):
        p = self.p
        problems = []
        if p["certificate"]:
            if not os.path.exists(p["certificate"]):
                problems.append("the certificate %s is missing" % p["certificate"])
            elif first_certificate(p["certificate"]) is None:
                problems.append("%s holds no certificate in PEM form" % p["certificate"])
        if p["certificate_key"] and not os.path.exists(p["certificate_key"]):
            problems.append("the key %s is missing" % p["certificate_key"])
        if problems or not (p["certificate"] and p["certificate_key"]):
            return problems
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                p["certificate"], p["certificate_key"], password=lambda: ""
            )
        except (ssl.SSLError, OSError, ValueError) as exc:
            problems.append(
                "the certificate %s and the key %s cannot be used together: %s"
                % (p["certificate"], p["certificate_key"], getattr(exc, "reason", None) or exc)
            )
        return problems

    def directory_changes(self):
        found = []
        for item in self.p["directories"]:
            mode = int(item["mode"], 8)
            try:
                descriptor = safe_files.open_directory(item["path"])
            except FileNotFoundError:
                found.append((item["path"], mode, None))
                continue
            except OSError as error:
                self.module.fail_json(
                    msg="%s cannot be used: %s. Nothing was changed." % (item["path"], error.strerror)
                )
            info = os.fstat(descriptor)
            os.close(descriptor)
            if stat.S_IMODE(info.st_mode) != mode:
                found.append((item["path"], mode, stat.S_IMODE(info.st_mode)))
        return found

    def file_changes(self):
        changes = {}
        for path, wanted in self.wanted.items():
            current = read_state(path, group=len(wanted) > 3)
            if current[0] == "other":
                self.module.fail_json(msg="%s is neither a file nor a link" % path)
            if current != wanted:
                changes[path] = current
        return changes

    def log_changes(self):
        """[(path, what it is now)] of the logs that nginx' own readers could not read."""
        found = []
        for path in self.p["log_files"]:
            # nginx opens its logs by name, as root.
            folder = os.path.dirname(path)
            if os.path.isdir(folder) and not safe_files.is_trusted(os.stat(folder)):
                self.module.fail_json(msg="others than root can change %s, the directory of a log of nginx's" % folder)
            try:
                info = os.stat(path)
            except FileNotFoundError:
                # Where there is no folder, nginx -t says so.
                if os.path.isdir(os.path.dirname(path)):
                    found.append((path, None))
                continue
            if (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid) != (LOG_MODE, *self.log_owner()):
                found.append((path, info))
        return found

    def log_owner(self):
        try:
            uid = pwd.getpwnam(self.p["user"]).pw_uid
        except KeyError:
            uid = None
        return uid, group_ids([LOG_GROUP]).get(LOG_GROUP)

    def make_logs(self, logs):
        for path, _before in logs:
            # nginx writes into the same file as before: only whose it is changes.
            descriptor = safe_files.open_file(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, LOG_MODE)
            try:
                os.fchown(descriptor, *self.log_owner())
                os.fchmod(descriptor, LOG_MODE)
            finally:
                os.close(descriptor)

    def running_differs(self):
        """Why the nginx that runs is not the one that the files describe."""
        p = self.p
        reasons = []
        for location, value in self.markers.items():
            if running_hash(p["marker_address"], location) != value:
                reasons.append(
                    "the running nginx has %s"
                    % ("other servers" if location == "/servers" else "another configuration")
                )
        if p["certificate"] and p["tls_address"]:
            if served_certificate(p["tls_address"], p["tls_name"]) != first_certificate(p["certificate"]):
                reasons.append("the running nginx serves another certificate than %s" % p["certificate"])
        wanted = group_ids(p["groups"])
        master = master_pid(p["pid_file"])
        if wanted and master:
            for gids in workers(master).values():
                missing = sorted(name for name, gid in wanted.items() if gid not in gids)
                if missing:
                    reasons.append("the workers are not in the group %s" % ", ".join(missing))
                    break
        return reasons

    # -- testing beside the live files ------------------------------------------------------------------------
    def test(self):
        """Run nginx -t on a copy with the new files in it. None, or what nginx says."""
        p = self.p
        root = p["config_root"].rstrip("/")
        stage = tempfile.mkdtemp(prefix="nginx-stage-")
        # nginx -t creates its log files and an empty pid file; whatever was not there before is taken away again.
        named = set(
            re.findall(
                r"(?m)^\s*(?:access_log|error_log)\s+(/[^\s;]+)", "\n".join(item["content"] for item in self.files)
            )
        )
        created = [path for path in sorted(named) + [p["pid_file"]] if not os.path.lexists(path)]
        try:
            copy = os.path.join(stage, "nginx")
            shutil.copytree(root, copy, symlinks=True)
            for folder, _folders, names in os.walk(copy):
                for name in names:
                    path = os.path.join(folder, name)
                    if os.path.islink(path) and os.readlink(path).startswith(root + "/"):
                        target = copy + os.readlink(path)[len(root) :]
                        os.unlink(path)
                        os.symlink(target, path)
            for path, wanted in self.wanted.items():
                if path.startswith(root + "/"):
                    filestate.place_all({copy + path[len(root) :]: wanted})
            out = subprocess.run(
                [p["binary"], "-t", "-q", "-c", copy + p["main_file"][len(root) :]],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=60,
            )
            if out.returncode == 0:
                return None
            return out.stdout.decode("utf-8", "replace").replace(copy, root).strip()
        except subprocess.TimeoutExpired:
            return "nginx -t did not end within 60 seconds"
        finally:
            shutil.rmtree(stage, ignore_errors=True)
            for path in created:
                try:
                    if os.path.getsize(path) == 0:
                        os.unlink(path)
                except OSError:
                    continue

    # -- changing ---------------------------------------------------------------------------------------------
    def prove(self, master, old_workers):
        """Wait until what runs is what was written. None, or what is missing."""
        missing = "nothing was seen"
        deadline = time.monotonic() + self.p["proof_timeout_seconds"]
        good = 0
        while time.monotonic() < deadline:
            now = master_pid(self.p["pid_file"])
            if now is None:
                missing = "the master process is gone"
            elif master is not None and now != master:
                return "the master process was replaced (%s, before %s)" % (now, master)
            else:
                alive = set(workers(now))
                reasons = self.running_differs()
                if reasons:
                    missing = "; ".join(reasons)
                elif not alive:
                    missing = "there are no workers"
                elif alive & old_workers:
                    missing = "old workers still take connections: %s" % sorted(alive & old_workers)
                else:
                    good += 1
                    if good >= 3:
                        return None
                    time.sleep(0.02)
                    continue
            good = 0
            time.sleep(0.1)
        return missing

    def systemctl(self, verb):
        out = subprocess.run(
            ["systemctl", verb, self.p["service"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120
        )
        return out.returncode, out.stdout.decode("utf-8", "replace").strip()

    def log_since(self, offset):
        try:
            with os.fdopen(safe_files.open_file(self.p["error_log"]), "rb") as handle:
                handle.seek(offset)
                text = handle.read(20000).decode("utf-8", "replace")
        except OSError:
            return ""
        lines = [line for line in text.splitlines() if re.search(r"\[(emerg|alert|crit|error)\]", line)]
        return "\n".join(lines[-10:])

    def log_size(self):
        try:
            return os.path.getsize(self.p["error_log"])
        except OSError:
            return 0

    def unit_is_stale(self):
        """systemd read the unit before its files changed: a run ended between the two."""
        if not self.p["unit_drop_in"]:
            return False
        out = subprocess.run(
            ["systemctl", "show", "--property=NeedDaemonReload", self.p["service"]],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        return b"=yes" in out.stdout

    def bring_up(self, action, prove=True):
        """Start, restart or reload, and prove it. None, or what went wrong."""
        offset = self.log_size()
        if self.p["unit_drop_in"] and action != "reload":
            subprocess.run(
                ["systemctl", "daemon-reload"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120
            )
        if action == "reload":
            master = master_pid(self.p["pid_file"])
            old = set(workers(master))
            os.kill(master, signal.SIGHUP)
            error = self.prove(master, old) if prove else None
        else:
            self.systemctl("reset-failed")
            rc, text = self.systemctl(action)
            error = text or "systemctl %s failed" % action if rc else self.prove(None, set()) if prove else None
        if error:
            said = self.log_since(offset)
            error = "%s%s" % (error, "\nnginx logged:\n%s" % said if said else "")
        return error

    def decide(self, changes, installed):
        """What has to happen to the service, and why."""
        p = self.p
        root = p["config_root"].rstrip("/") + "/"
        reasons = ["files differ: %s" % ", ".join(sorted(changes))] if changes else []
        if not installed:
            return "start", reasons + ["nginx is not installed yet"]
        if master_pid(p["pid_file"]) is None:
            return "start", reasons + ["nginx does not run"]
        if p["unit_drop_in"] in changes or self.unit_is_stale():
            return "restart", reasons + ["the unit's drop-in is new"]
        if any(path.startswith(root) for path in changes):
            return "reload", reasons
        differs = self.running_differs()
        return ("reload" if differs else "none"), reasons + differs

    def run(self):
        module, p = self.module, self.p
        if p["state"] == "query":
            module.exit_json(**self.query())
        folders = self.directory_changes()
        changes = self.file_changes()
        installed = os.access(p["binary"], os.X_OK)
        action, reasons = self.decide(changes, installed)
        logs = self.log_changes()
        diff = [
            describe(path, before, self.wanted[path], path in self.secret)
            for path, before in sorted(changes.items())
            if path not in (p["marker_file"], p["servers_file"] + ".marker")
        ]
        for path, mode, before in folders:
            diff.append(
                {
                    "before": "" if before is None else "folder, mode %04o\n" % before,
                    "after": "folder, mode %04o\n" % mode,
                    "before_header": path,
                    "after_header": path,
                }
            )
        for path, info in logs:
            diff.append(
                {
                    "before": ""
                    if info is None
                    else "log, mode %04o, owner %d:%d\n" % (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid),
                    "after": "log, mode %04o, owner %s:%s\n" % (LOG_MODE, *self.log_owner()),
                    "before_header": path,
                    "after_header": path,
                }
            )
        result = {
            "changed": bool(reasons or folders or logs),
            "reasons": reasons,
            "config_hash": self.hash,
            "action": action,
            "diff": diff,
        }
        if module.check_mode:
            if changes and installed and not self.certificate_problems():
                said = self.test()
                if said:
                    module.warn("nginx would refuse this configuration: %s" % said)
            module.exit_json(**result)
        if not installed:
            module.fail_json(msg="%s is not there; install nginx first" % p["binary"])
        if action != "none":
            said = self.test()
            if said:
                module.fail_json(msg="nginx refuses the configuration, nothing was changed: %s" % said)
        for path, mode, _before in folders:
            descriptor = safe_files.open_directory(path, make_mode=0o755)
            try:
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
        self.make_logs(logs)
        filestate.place_all({path: self.wanted[path] for path in changes})
        error = self.bring_up(action) if action != "none" else None
        if error:
            back = ""
            if changes:
                filestate.place_all(changes)
                again = self.bring_up("restart" if action == "start" else action, prove=False)
                back = " The earlier files are back in place%s." % (", but: %s" % again if again else "")
            module.fail_json(msg="the %s of nginx did not take effect: %s.%s" % (action, error, back))
        module.exit_json(**result)


def main():
    module = QuietModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["query", "present", "server_out", "server_in"],
                "default": "present",
            },
            "servers_file": {"type": "path", "default": "/etc/nginx/shiftmaster-servers.conf"},
            "server": {"type": "str"},
            "reason": {"type": "str", "default": ""},
            "config_root": {"type": "path", "default": "/etc/nginx"},
            "main_file": {"type": "path", "default": "/etc/nginx/nginx.conf"},
            "binary": {"type": "path", "default": "/usr/sbin/nginx"},
            "service": {"type": "str", "default": "nginx.service"},
            "unit_drop_in": {"type": "path"},
            "pid_file": {"type": "path", "default": "/run/nginx.pid"},
            "error_log": {"type": "path", "default": "/var/log/nginx/error.log"},
            "directories": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "mode": {"type": "str", "default": "0755"}},
            },
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "links": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"path": {"type": "path", "required": True}, "target": {"type": "str", "required": True}},
            },
            "absent": {"type": "list", "elements": "path", "default": []},
            # The passwords are marked, not the whole: the path may be shown.
            "password_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "no_log": False,
                "options": {
                    "path": {"type": "path", "required": True},
                    "users": {
                        "type": "list",
                        "elements": "dict",
                        "required": True,
                        "options": {
                            "name": {"type": "str", "required": True},
                            "password": {"type": "str", "required": True, "no_log": True},
                        },
                    },
                    "group": {"type": "str", "default": "www-data"},
                },
            },
            "log_files": {"type": "list", "elements": "path", "default": []},
            "marker_file": {"type": "path"},
            "marker_address": {"type": "str", "default": "127.0.0.1:8081"},
            "marker_path": {"type": "str", "default": "/config"},
            "certificate": {"type": "path"},
            "certificate_key": {"type": "path", "no_log": False},
            "tls_address": {"type": "str"},
            "tls_name": {"type": "str"},
            "groups": {"type": "list", "elements": "str", "default": []},
            "user": {"type": "str", "default": "www-data"},
            "ports": {"type": "list", "elements": "int", "default": []},
            "proof_timeout_seconds": {"type": "int", "default": 20},
        },
        required_if=[("state", "server_out", ("server",)), ("state", "server_in", ("server",))],
        supports_check_mode=True,
    )
    Tree(module).run()


if __name__ == "__main__":
    main()
