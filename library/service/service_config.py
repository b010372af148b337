#!/usr/bin/python
# The configuration of a service that is a set of files: exporters, Prometheus, Alertmanager.
# ruff: noqa: E402  (an Ansible module states its documentation before its imports)
"""Keep a service's files as one set: checked beside the live ones, swapped, loaded, proven, or put back."""

from __future__ import annotations

DOCUMENTATION = r"""
---
module: service_config
short_description: Keep a service's configuration as one set that is checked, swapped, loaded and proven
description:
  - The set (files, secrets, the web configuration, absences, drop-ins of the unit) is compared with the host. When
    anything differs, a copy of O(root) with the new files in it is made, paths below O(root) inside the new files are
    rewritten to the copy, and O(checks) run on it before one live file is touched.
  - Then the files are renamed into place, the service is told to reload or is restarted, and the module waits for
    O(proof). C(kill -HUP) answers 0 where a configuration was refused, so the running process itself has to say it.
  - When the proof does not come, the earlier files are put back and loaded, and the task fails with what the service
    logged. A service that did not run before is stopped again.
  - Whether to reload is decided from what runs. The module notes in /run which set it has proven in which process;
    where that note is missing or of another process, files that are younger than what the process has loaded are
    loaded. So a run that was killed between the swap and the reload is made good by the next one, and a reboot needs
    nothing.
  - The unit is enabled and started.
  - Two runs at once on one host do this one after the other.
options:
  unit:
    description: The systemd unit.
    type: str
    required: true
  root:
    description: The folder of the configuration, of which a copy is checked. It need not exist.
    type: path
    required: true
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
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode.
        type: str
        default: "0755"
  files:
    description: Files with their whole content. Those below O(root) are part of the copy that is checked.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file, absolute.
        type: path
        required: true
      content:
        description: The whole content.
        type: str
        required: true
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode.
        type: str
        default: "0644"
      apply:
        description: What a change of it needs; O(apply) where absent. V(none) for what the service reads by itself.
        type: str
        choices: [reload, restart, none]
  secrets:
    description: Files whose content is never shown. Otherwise as O(files).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file, absolute.
        type: path
        required: true
      content:
        description: The whole content.
        type: str
        required: true
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode.
        type: str
        default: "0640"
      apply:
        description: What a change of it needs; O(apply) where absent.
        type: str
        choices: [reload, restart, none]
  copies:
    description:
      - Files of the host that the service reads as its own copies, such as a certificate. Their content is never shown.
        In check mode one that is not there yet is left out.
    type: list
    elements: dict
    default: []
    suboptions:
      src:
        description: The file that is copied.
        type: path
        required: true
      path:
        description: The copy, absolute.
        type: path
        required: true
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode.
        type: str
        default: "0640"
      apply:
        description: What a change of it needs; O(apply) where absent. V(none) for what the service reads by itself.
        type: str
        choices: [reload, restart, none]
  unit_files:
    description: Drop-ins of O(unit), or the unit itself. A change restarts the service.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file, absolute.
        type: path
        required: true
      content:
        description: The whole content.
        type: str
        required: true
      owner:
        description: Its owner.
        type: str
        default: root
      group:
        description: Its group.
        type: str
        default: root
      mode:
        description: Its mode.
        type: str
        default: "0644"
  absent:
    description: Files and links that must not exist.
    type: list
    elements: path
    default: []
  managed:
    description: Files of these folders that match and are not in the set are removed.
    type: list
    elements: dict
    default: []
    suboptions:
      directory:
        description: The folder.
        type: path
        required: true
      pattern:
        description: As a shell has them, for the names in the folder.
        type: str
        required: true
  web_config:
    description:
      - The web configuration of what uses Prometheus' exporter-toolkit. Passwords become bcrypt hashes on the host; a
        hash that still matches is kept, so that nothing changes without reason.
      - The toolkit reads the file, and the certificate that it names, for each connection. A change needs no reload.
    type: dict
    suboptions:
      path:
        description: The file. Below O(root), so that it can be checked.
        type: path
        required: true
      certificate:
        description: The certificate to present. Without one there is no TLS.
        type: path
      key:
        description: Its private key.
        type: path
      users:
        description: Who may ask.
        type: list
        elements: dict
        default: []
        suboptions:
          name:
            description: The user's name.
            type: str
            required: true
          password:
            description: The password, 72 bytes at the most.
            type: str
            required: true
      settings:
        description: Further settings; a mapping is added to the one of the same name. For example V({http_server_config
          {http2 true}}), V({tls_server_config {min_version TLS13}}).
        type: dict
        default: {}
      cost:
        description: bcrypt's cost. 10 takes some 50 ms for each password that the service has not seen before.
        type: int
        default: 10
      owner:
        description: The file's owner.
        type: str
        default: root
      group:
        description: The file's group, the service's own.
        type: str
        default: root
      mode:
        description: The file's mode.
        type: str
        default: "0640"
      apply:
        description: What a change needs.
        type: str
        choices: [reload, restart, none]
        default: none
  watch:
    description:
      - Files of others that the service reads once, at its start or reload, such as a certificate of a program that
        does not look again. When one is younger than what the process has loaded, O(apply) is done.
    type: list
    elements: path
    default: []
  checks:
    description:
      - Programs with their arguments that have to end with 0. C({root}) is the checked copy, C({work}) an empty folder
        that is theirs to write to and goes afterwards. They run without a shell, as root or O(check_as); the first that
        refuses is the last. In check mode one whose program is missing is left out.
    type: list
    elements: list
    default: []
  check_as:
    description:
      - As whom O(checks) run, for a program that refuses root or leaves files behind that the service then cannot
        write. The copy can be read by this user as far as the live files can, and not be written.
    type: dict
    suboptions: &service_user
      user:
        description: The service's user.
        type: str
        required: true
      extra_groups:
        description: Groups that the unit gives the service (C(SupplementaryGroups)).
        type: list
        elements: str
        default: []
  check_timeout_seconds:
    description: How long one of O(checks) may take.
    type: int
    default: 60
  references:
    description:
      - Every C(*_file) that a C(.yml) file of the set or the web configuration names must exist, must not be empty, and
        must be readable for the service's user, in fact and not only by its mode. All but certificates must be closed
        to everybody else. The checking tools of Prometheus and Alertmanager pass without that.
    type: dict
    suboptions: *service_user
  apply:
    description:
      - What a changed file needs, where the file itself says nothing else. V(reload) is C(systemctl reload). Debian's
        units of Prometheus and its kin do that by C(/bin/kill), which a minimal host lacks (package procps); a drop-in
        with C(ExecReload=/bin/sh -c 'kill -HUP $MAINPID') does without.
    type: str
    choices: [reload, restart, none]
    default: reload
  proof:
    description:
      - What the running service must say after a change. Without it, the unit must be active and stay so for a second.
    type: dict
    suboptions:
      url:
        description: Must answer 200. Where O(proof.metric) is given, a page of metrics.
        type: str
        required: true
      ca_file:
        description: Authority of its certificate. The name in the URL is verified.
        type: path
      user:
        description: User of basic authentication.
        type: str
      password:
        description: Its password.
        type: str
      closed:
        description: Whether the URL must answer 401 to whoever has no password.
        type: bool
        default: false
      metric:
        description: A metric that must have a value. With O(apply=reload) another value is a reason to reload.
        type: str
      value:
        description: That value.
        type: float
        default: 1
      timestamp_metric:
        description: A metric that holds the time of the last successful reload; it must be younger than the swap.
        type: str
      answers:
        description: JSON answers that must hold a value, for what only a restart changes.
        type: list
        elements: dict
        default: []
        suboptions:
          url:
            description: The URL to ask, with the same user and authority.
            type: str
            required: true
          path:
            description: Keys that lead to the value.
            type: list
            elements: str
            required: true
          value:
            description: The value, as text.
            type: str
            required: true
      targets_url:
        description:
          - Prometheus' C(/api/v1/targets?state=active). Each target that was up before must have been asked again and
            be up two scrape intervals after; targets that are no longer asked do not count. Takes six seconds at least.
        type: str
      timeout_seconds:
        description: How long to wait for the proof of a reload.
        type: int
        default: 20
      start_timeout_seconds:
        description: How long to wait for the proof of a start.
        type: int
        default: 120
attributes:
  check_mode:
    support: full
    description: Nothing changes. The checks run where their programs are installed.
  diff_mode:
    support: full
    description: Every file and folder that would change; never a secret, a password or a hash of one.
author:
  - ShiftMaster operations
"""

EXAMPLES = r"""
- name: configure | Swap in Prometheus' configuration
  service_config:
    unit: prometheus.service
    root: /etc/prometheus
    files:
      - path: /etc/prometheus/prometheus.yml
        content: "{{ lookup('ansible.builtin.template', 'prometheus.yml.j2') }}"
        group: prometheus
        mode: "0640"
    secrets:
      - path: /etc/prometheus/secrets/scrape
        content: "{{ prometheus_scrape_password }}"
        group: prometheus
    managed:
      - directory: /etc/prometheus/alerts
        pattern: "*.yml"
    web_config:
      path: /etc/prometheus/web.yml
      certificate: /etc/ssl/shiftmaster/host.crt
      key: /etc/ssl/shiftmaster/host.key
      group: prometheus
      users: "{{ prometheus_web_users }}"
    unit_files:
      - path: /etc/systemd/system/prometheus.service.d/shiftmaster.conf
        content: "{{ lookup('ansible.builtin.template', 'drop-in.conf.j2') }}"
    checks:
      - [promtool, check, config, "{root}/prometheus.yml"]
      - [promtool, check, web-config, "{root}/web.yml"]
    references:
      user: prometheus
      extra_groups: [ssl-cert]
    proof:
      url: https://127.0.0.1:9090/metrics
      ca_file: /etc/ssl/shiftmaster/ca.crt
      user: admin
      password: "{{ prometheus_web_users[0].password }}"
      closed: true
      metric: prometheus_config_last_reload_successful
      timestamp_metric: prometheus_config_last_reload_success_timestamp_seconds
      targets_url: https://127.0.0.1:9090/api/v1/targets?state=active

- name: configure | Run an exporter
  service_config:
    unit: prometheus-node-exporter.service
    root: /etc/prometheus-node-exporter
    apply: restart
    web_config:
      path: /etc/prometheus-node-exporter/web.yml
      certificate: /etc/ssl/shiftmaster/host.crt
      key: /etc/ssl/shiftmaster/host.key
      group: prometheus
      users:
        - name: prometheus
          password: "{{ exporter_password }}"
    unit_files:
      - path: /etc/systemd/system/prometheus-node-exporter.service.d/shiftmaster.conf
        content: "{{ lookup('ansible.builtin.template', 'drop-in.conf.j2') }}"
    proof:
      url: https://127.0.0.1:9100/metrics
      ca_file: /etc/ssl/shiftmaster/ca.crt
      user: prometheus
      password: "{{ exporter_password }}"
      closed: true
      metric: node_exporter_build_info
"""

RETURN = r"""
action:
  description: What was (in check mode would be) done to the service.
  returned: always
  type: str
  sample: reload
reasons:
  description: Why.
  returned: always
  type: list
  elements: str
  sample: ["files differ: /etc/prometheus/prometheus.yml"]
checked:
  description: The checks that ran, as they were typed.
  returned: always
  type: list
  elements: str
refused:
  description: What the checks and the look at the named files found; only in check mode not the end of the task.
  returned: always
  type: list
  elements: str
enabled:
  description: Whether the unit was (would be) enabled to start at boot.
  returned: always
  type: bool
"""

import contextlib
import fcntl
import fnmatch
import grp
import hashlib
import json
import os
import pwd
import re
import shutil
import stat
import subprocess
import time
from calendar import timegm

from ansible.module_utils.shiftmaster.host import points, safe_files, webconfig
from ansible.module_utils.shiftmaster.host.filestate import place_all, read_state
from ansible.module_utils.shiftmaster.host.quiet import QuietModule
from ansible.module_utils.shiftmaster.host.service_user import groups_of, process_of
from ansible.module_utils.shiftmaster.monitoring import figures

# Lost by a reboot, as the processes are whose state it describes.
NOTES = "/run/shiftmaster-services"
# Where a test holds a run (module_utils/shiftmaster/host/points.py); no point of a deploy.
SWAPPED = "service_swapped"
NAMED_FILE = re.compile(r"(?<!\w)(?P<key>\w+_file)\s*:\s*(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^\s'\",}\]#]+)")
# What the whole world may read.
PUBLIC = ("ca_file", "cert_file", "client_ca_file")
# Without a proof of its own a unit must be active for so long, and has so long to become that.
SETTLE_SECONDS = 1.0
START_SECONDS = 120
# What the stop of the one before may take on top of a start.
STOP_SECONDS = 120
# Prometheus hands new targets to its scrapers every five seconds.
DISCOVERY_SECONDS = 6.0


class Refused(Exception):
    """Nothing was changed; str() says why."""


# -- files ---------------------------------------------------------------------------------------------------------


def set_hash(items):
    """The hash of files in their wanted state; their order does not count."""
    digest = hashlib.sha256()
    for path, state in sorted(items):
        digest.update(repr((path,) + tuple(state[:3])).encode())
    return digest.hexdigest()[:32]


def rewritten(data, root, copy):
    """The content with every path below root led to the copy."""
    return re.sub(rb"(?<![\w./-])" + re.escape(root.encode()) + rb"(?=/)", lambda _match: copy.encode(), data)


def named_files(text):
    """Yield (key, path) for every `*_file` of a YAML text that is not commented out."""
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            for match in NAMED_FILE.finditer(line):
                value = match["value"].strip("'\"")
                if value and "{{" not in value:
                    yield match["key"], value


def describe(path, before, after, secret, masked):
    """One entry of Ansible's diff."""

    def shown(state):
        if state[0] == "none":
            return ""
        if state[0] == "link":
            return "link to %s\n" % state[1]
        if secret:
            same = state is before or before[:2] == after[:2]
            return "(a secret)\n" if same else "(another secret)\n"
        text = state[1].decode("utf-8", "replace")
        if masked:
            text = webconfig.without_hashes(text)
            if state is after and before[0] == "file" and before[1] != after[1]:
                had = set(webconfig.HASH.findall(before[1].decode("utf-8", "replace")))
                if not had.issuperset(webconfig.HASH.findall(state[1].decode("utf-8", "replace"))):
                    text = text.replace("(hash of a password)", "(hash of a password, not all as before)")
        return text

    details = []
    if before[0] == "file" and after[0] == "file":
        if before[2] != after[2]:
            details.append("mode %04o -> %04o" % (before[2], after[2]))
        if before[3:] != after[3:]:
            details.append("owner %s:%s -> %s:%s" % (before[3:] + after[3:]))
    return {
        "before": shown(before),
        "after": shown(after),
        "before_header": path if before[0] != "none" else "%s (absent)" % path,
        "after_header": "%s (absent)" % path if after[0] == "none" else " ".join([path] + details),
    }


# -- users ---------------------------------------------------------------------------------------------------------


def ids_of(owner, group):
    """(uid, gid); None for one that does not exist."""
    found = []
    for table, name in ((pwd.getpwnam, owner), (grp.getgrnam, group)):
        try:
            found.append(table(name)[2])
        except KeyError:
            found.append(None)
    return tuple(found)


def may_read(path, uid, gids):
    """Whether a process of this user can open the file: tried by one, since modes alone do not say it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups(sorted(gids))
                os.setgid(pwd.getpwuid(uid).pw_gid)
                os.setuid(uid)
            with open(path, "rb") as handle:
                handle.read(1)
            code = 0
        except BaseException:
            code = 1
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def mode_lets_read(state, uid, gids):
    """The same for a file that is still to be written."""
    _kind, _content, mode, owner, group = state
    if owner == uid:
        return bool(mode & 0o400)
    if group in gids:
        return bool(mode & 0o040)
    return bool(mode & 0o004)


# -- systemd -------------------------------------------------------------------------------------------------------


def systemctl(*arguments, timeout=180):
    try:
        done = subprocess.run(
            ("systemctl",) + arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False
        )
    except FileNotFoundError:
        return 127, "there is no systemctl"
    except subprocess.TimeoutExpired:
        return 124, "systemctl %s did not end within %d s" % (" ".join(arguments), timeout)
    return done.returncode, done.stdout.decode("utf-8", "replace").strip()


PROPERTIES = (
    "LoadState",
    "ActiveState",
    "MainPID",
    "InvocationID",
    "NRestarts",
    "NeedDaemonReload",
    "UnitFileState",
    "ExecMainStartTimestamp",
)


def unit_facts(unit):
    code, text = systemctl("show", "--timestamp=us+utc", "--property=" + ",".join(PROPERTIES), unit)
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line) if code == 0 else {}
    return {name: found.get(name, "") for name in PROPERTIES}


def moment(text):
    """Seconds since 1970 of systemd's `Thu 2026-11-26 12:22:42.647422 UTC`; 0 where there is none."""
    match = re.search(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)? UTC", text)
    if not match:
        return 0.0
    return timegm(time.strptime(match.group(1), "%Y-%m-%d %H:%M:%S")) + float(match.group(2) or 0)


def journal_since(unit, since, lines=15):
    try:
        done = subprocess.run(
            ["journalctl", "--unit", unit, "--since", "@%d" % since, "--lines", str(lines), "--no-pager", "-o", "cat"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


# -- the module ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alone():
    """Let one run at a time look and act on this host: two would check, and remove, one another's copies.

    The kernel lets go of it for whoever dies.
    """
    os.makedirs(NOTES, mode=0o755, exist_ok=True)
    descriptor = os.open(NOTES, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class Service:
    def __init__(self, module):
        self.module = module
        self.p = p = module.params
        self.root = p["root"].rstrip("/")
        self.proof = p["proof"]
        self.note_path = os.path.join(NOTES, "%s.json" % p["unit"])
        # path -> wanted state, and what is to be known of each path
        self.wanted = {}
        self.apply = {}
        self.secret = set()
        self.unit_paths = set()
        self.web_path = p["web_config"]["path"] if p["web_config"] else None
        self.collect()

    def collect(self):
        p = self.p
        for item in p["files"]:
            self.add(item, item["apply"] or p["apply"])
        for item in p["secrets"]:
            self.add(item, item["apply"] or p["apply"])
            self.secret.add(item["path"])
        for item in p["copies"]:
            try:
                with open(item["src"], encoding="utf-8") as handle:
                    self.add(dict(item, content=handle.read()), item["apply"] or p["apply"])
            except (OSError, UnicodeDecodeError) as error:
                if not (self.module.check_mode and isinstance(error, FileNotFoundError)):
                    raise Refused("%s cannot be copied: %s" % (item["src"], error))
            self.secret.add(item["path"])
        for item in p["unit_files"]:
            self.add(item, "restart")
            self.unit_paths.add(item["path"])
        web = p["web_config"]
        if web:
            before = read_state(web["path"])
            text = before[1].decode("utf-8", "replace") if before[0] == "file" else ""
            names = [user["name"] for user in web["users"]]
            if len(set(names)) != len(names):
                raise Refused("web_config names a user twice")
            if bool(web["certificate"]) != bool(web["key"]):
                raise Refused("web_config needs both a certificate and a key, or neither")
            try:
                hashes = webconfig.hashes(web["users"], text, web["cost"])
            except webconfig.PasswordError as error:
                raise Refused(str(error))
            content = webconfig.render(web["certificate"], web["key"], hashes, web["settings"])
            self.add(dict(web, content=content), web["apply"])
        for path in p["absent"]:
            if path in self.wanted:
                raise Refused("%s is in the set and to be absent" % path)
            self.want(path, ("none",), p["apply"])
        for item in p["managed"]:
            try:
                names = os.listdir(item["directory"])
            except (FileNotFoundError, NotADirectoryError):
                names = []
            for name in fnmatch.filter(names, item["pattern"]):
                path = os.path.join(item["directory"], name)
                # Hidden names are the temporary ones of a swap.
                if path not in self.wanted and not name.startswith(".") and not os.path.isdir(path):
                    self.want(path, ("none",), p["apply"])

    def add(self, item, apply):
        uid, gid = ids_of(item["owner"], item["group"])
        for found, kind, name in ((uid, "user", item["owner"]), (gid, "group", item["group"])):
            if found is None and not self.module.check_mode:
                raise Refused("%s: there is no %s %s" % (item["path"], kind, name))
        try:
            mode = int(item["mode"], 8)
        except ValueError:
            raise Refused("%s: %s is no mode" % (item["path"], item["mode"]))
        if item["path"] in self.wanted:
            raise Refused("%s is named twice" % item["path"])
        self.want(item["path"], ("file", item["content"].encode("utf-8"), mode, uid, gid), apply)

    def want(self, path, state, apply):
        if not os.path.isabs(path):
            raise Refused("%s is not an absolute path" % path)
        self.wanted[path] = state
        self.apply[path] = apply

    # -- reading ---------------------------------------------------------------------------------------------
    def directory_changes(self):
        found = []
        for item in self.p["directories"]:
            uid, gid = ids_of(item["owner"], item["group"])
            if None in (uid, gid) and not self.module.check_mode:
                raise Refused("%s: there is no %s:%s" % (item["path"], item["owner"], item["group"]))
            wanted = (int(item["mode"], 8), uid, gid)
            try:
                descriptor = safe_files.open_directory(item["path"])
            except FileNotFoundError:
                found.append((item["path"], wanted, None))
                continue
            except NotADirectoryError:
                raise Refused("%s is not a folder" % item["path"])
            except safe_files.UnsafePathError as error:
                raise Refused("%s: %s" % (item["path"], error.strerror))
            info = os.fstat(descriptor)
            os.close(descriptor)
            now = (stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
            if now != wanted:
                found.append((item["path"], wanted, now))
        return found

    def file_changes(self):
        changes = {}
        for path, wanted in self.wanted.items():
            try:
                current = read_state(path)
            except safe_files.UnsafePathError as error:
                raise Refused("%s: %s" % (path, error.strerror))
            if current[0] == "other":
                raise Refused("%s is neither a file nor a link" % path)
            if current != wanted:
                changes[path] = current
        return changes

    def loaded_set(self, kind):
        """What a process must have loaded: the files whose change needs this."""
        files = [(path, state) for path, state in self.wanted.items() if state[0] == "file"]
        return [(path, state) for path, state in files if self.apply[path] == kind]

    def hashes(self):
        watched = []
        for path in self.p["watch"]:
            state = read_state(os.path.realpath(path))
            watched.append((path, state if state[0] == "file" else ("file", b"", 0)))
        more = watched if self.p["apply"] == "restart" else []
        other = watched if self.p["apply"] == "reload" else []
        return {
            "restart": set_hash(self.loaded_set("restart") + more),
            "reload": set_hash(self.loaded_set("reload") + other),
        }

    def youngest(self, kind):
        """When a file that needs this changed last; of what was removed only the folder can tell."""
        paths = [path for path, state in self.wanted.items() if self.apply[path] == kind and state[0] == "file"]
        folders = []
        if self.p["apply"] == kind:
            paths += [os.path.realpath(path) for path in self.p["watch"]]
            folders += [item["directory"] for item in self.p["managed"]]
            folders += [os.path.dirname(path) for path in self.p["absent"]]
        latest = 0.0
        for path, name in [(path, "st_ctime") for path in paths] + [(path, "st_mtime") for path in folders]:
            try:
                latest = max(latest, getattr(os.stat(path), name))
            except OSError:
                continue
        return latest

    def note(self):
        try:
            with open(self.note_path, encoding="utf-8") as handle:
                return json.load(handle)
        except (OSError, ValueError):
            return {}

    def write_note(self, content):
        """None removes it: from now on nobody knows what the process has loaded."""
        if content is None:
            try:
                os.unlink(self.note_path)
            except FileNotFoundError:
                pass
            return
        os.makedirs(NOTES, mode=0o755, exist_ok=True)
        temporary = self.note_path + ".new"
        with open(temporary, "w", encoding="utf-8") as handle:
            json.dump(content, handle)
        os.rename(temporary, self.note_path)

    def ask(self, url, stranger=False, timeout=10.0):
        user = None if stranger else self.proof["user"]
        return figures.get(url, self.proof["ca_file"], user, self.proof["password"], timeout)

    def own_figures(self):
        """(value of the metric, time of the last reload) as the process has them now; None for what is unknown."""
        if not self.proof or not (self.proof["metric"] or self.proof["timestamp_metric"]):
            return None, None
        try:
            status, text = self.ask(self.proof["url"])
        except OSError:
            return None, None
        if status != 200:
            return None, None
        return [
            figures.value_of(text, self.proof[name]) if self.proof[name] else None
            for name in ("metric", "timestamp_metric")
        ]

    def targets(self):
        """The targets as they are, or {} where that cannot be known."""
        if not self.proof or not self.proof["targets_url"]:
            return {}
        try:
            status, text = self.ask(self.proof["targets_url"], timeout=30.0)
        except OSError:
            return {}
        return figures.targets_of(text) if status == 200 else {}

    # -- deciding --------------------------------------------------------------------------------------------
    def decide(self, changes, facts):
        """What has to happen to the service, and why."""
        reasons = ["files differ: %s" % ", ".join(sorted(changes))] if changes else []
        if facts["LoadState"] != "loaded":
            return "start", reasons + ["there is no unit %s yet" % self.p["unit"]]
        if facts["ActiveState"] not in ("active", "reloading"):
            return "start", reasons + ["%s does not run (%s)" % (self.p["unit"], facts["ActiveState"])]
        needs = {self.apply[path] for path in changes}
        if "restart" in needs:
            return "restart", reasons
        if facts["NeedDaemonReload"] == "yes":
            return "restart", reasons + ["the unit's files are younger than what systemd has read"]
        stale, why = self.stale(facts)
        if stale == "restart":
            return "restart", reasons + why
        if "reload" in needs or stale == "reload":
            return "reload", reasons + why
        return "none", reasons

    def stale(self, facts):
        """What the process has not loaded of the set: (restart, reload or none, reasons)."""
        note, hashes = self.note(), self.hashes()
        value, loaded = self.own_figures()
        if self.p["apply"] == "reload" and value is not None and value != self.proof["value"]:
            return "reload", ["the running service says %s %g" % (self.proof["metric"], value)]
        started = moment(facts["ExecMainStartTimestamp"])
        same = note.get("invocation") == facts["InvocationID"] and (
            loaded is None or note.get("timestamp") is None or note["timestamp"] == loaded
        )
        for kind, since in (("restart", started), ("reload", max(started, loaded or 0.0))):
            clean = note.get(kind) == hashes[kind] if same else self.youngest(kind) <= since
            if not clean:
                return kind, ["the running service has not loaded the present files"]
        return "none", []

    # -- checking beside the live files -----------------------------------------------------------------------
    def stage(self, copy):
        os.makedirs(NOTES, mode=0o755, exist_ok=True)
        shutil.rmtree(copy, ignore_errors=True)
        os.mkdir(copy, 0o700)
        tree = os.path.join(copy, "root")
        if os.path.isdir(self.root):
            shutil.copytree(self.root, tree, symlinks=True, ignore_dangling_symlinks=True)
        os.makedirs(tree, exist_ok=True)
        for folder, _folders, names in os.walk(tree):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path) and os.readlink(path).startswith(self.root + "/"):
                    target = tree + os.readlink(path)[len(self.root) :]
                    os.unlink(path)
                    os.symlink(target, path)
        for path, state in self.wanted.items():
            if not path.startswith(self.root + "/"):
                continue
            staged = tree + path[len(self.root) :]
            if os.path.lexists(staged):
                os.unlink(staged)
            if state[0] == "file":
                content = state[1] if path in self.secret else rewritten(state[1], self.root, tree)
                # The service may have put a link among its files, which is copied as it is.
                if not os.path.realpath(staged).startswith(os.path.realpath(tree) + "/"):
                    raise Refused("%s leads out of %s" % (path, self.root))
                os.makedirs(os.path.dirname(staged), exist_ok=True)
                with open(staged, "wb") as handle:
                    handle.write(content)
        return tree

    def open_to(self, copy, tree, uid, gids):
        """Let somebody read of the copy what the live files let him read."""
        gid = pwd.getpwuid(uid).pw_gid
        for folder, _folders, names in os.walk(tree):
            os.chown(folder, 0, gid)
            os.chmod(folder, 0o750)
            for name in names:
                path = os.path.join(folder, name)
                live = self.root + path[len(tree) :]
                if os.path.islink(path):
                    continue
                state = self.wanted.get(live)
                if state is None:
                    info = os.stat(live)
                    state = ("file", b"", stat.S_IMODE(info.st_mode), info.st_uid, info.st_gid)
                os.chown(path, 0, gid)
                os.chmod(path, 0o640 if mode_lets_read(state, uid, gids) else 0o600)
        # Nobody gets in before all of it is so.
        os.chown(copy, 0, gid)
        os.chmod(copy, 0o710)

    def somebody(self, copy, tree, work):
        """What makes of a check's process the one of O(check_as), which may write to its folder."""
        given = self.p["check_as"]
        if not given:
            return {}
        process = process_of(given["user"], given["extra_groups"])
        self.open_to(copy, tree, process["user"], process["extra_groups"])
        os.chown(work, process["user"], process["group"])
        return process

    def check(self):
        """Run the checks on a copy. Return (those that ran, what was refused)."""
        copy = os.path.join(NOTES, "stage-%s" % self.p["unit"])
        work = os.path.join(copy, "work")
        ran, refused = [], []
        try:
            tree = self.stage(copy)
            os.mkdir(work, 0o700)
            try:
                somebody = self.somebody(copy, tree, work)
            except KeyError:
                # In check mode the package that brings the user may still be to come.
                return ran, [] if self.module.check_mode else ["there is no user %s" % self.p["check_as"]["user"]]
            for argv in self.p["checks"]:
                typed = [str(word) for word in argv]
                words = [word.replace("{root}", tree).replace("{work}", work) for word in typed]
                shown = " ".join(word.replace("{root}", self.root) for word in typed)
                if not shutil.which(words[0]):
                    if not self.module.check_mode:
                        refused.append("%s: there is no %s" % (shown, words[0]))
                    continue
                ran.append(shown)
                try:
                    done = subprocess.run(
                        words,
                        cwd=tree,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                        stderr=subprocess.STDOUT,
                        timeout=self.p["check_timeout_seconds"],
                        check=False,
                        **somebody,
                    )
                except subprocess.TimeoutExpired:
                    refused.append("%s did not end within %d s" % (shown, self.p["check_timeout_seconds"]))
                    break
                if done.returncode != 0:
                    said = done.stdout.decode("utf-8", "replace").replace(tree, self.root).strip()
                    refused.append("%s: %s" % (shown, said[-4000:] or "it ended with %d" % done.returncode))
                    break
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        return ran, refused

    def reference_problems(self):
        """What is wrong with the files that the new set names."""
        references = self.p["references"]
        if not references:
            return []
        try:
            uid = pwd.getpwnam(references["user"]).pw_uid
            gids = groups_of(references["user"], references["extra_groups"])
        except KeyError:
            if self.module.check_mode:
                return []
            return ["there is no user %s" % references["user"]]
        problems = []
        for source in sorted(self.wanted):
            state = self.wanted[source]
            if state[0] != "file" or source in self.secret or not source.endswith((".yml", ".yaml")):
                continue
            for key, path in named_files(state[1].decode("utf-8", "replace")):
                path = os.path.normpath(os.path.join(self.root, path))
                problem = self.reference_problem(path, key in PUBLIC, uid, gids)
                if problem:
                    problems.append("%s: %s %s %s" % (source, key, path, problem))
        return problems

    def reference_problem(self, path, public, uid, gids):
        user = self.p["references"]["user"]
        planned = self.wanted.get(path)
        if planned and planned[0] == "file":
            mode, empty = planned[2], not planned[1].strip()
            readable = mode_lets_read(planned, uid, gids)
        elif planned or not os.path.exists(path):
            return "does not exist"
        else:
            info = os.stat(path)
            if not stat.S_ISREG(info.st_mode):
                return "is no file"
            mode, empty = stat.S_IMODE(info.st_mode), info.st_size == 0
            readable = may_read(path, uid, gids)
        if not readable:
            return "cannot be read by %s (mode %04o)" % (user, mode)
        if not public and mode & 0o007:
            return "can be read by everybody (mode %04o)" % mode
        return "is empty" if empty else None

    # -- changing --------------------------------------------------------------------------------------------
    def prove(self, action, since, restarts, lenient=False):
        """Wait until the service says that it runs what was written. None, or what is missing."""
        proof = self.proof
        reloaded = action in ("reload", "none")
        name = "timeout_seconds" if reloaded else "start_timeout_seconds"
        seconds = proof[name] if proof else START_SECONDS
        deadline = time.monotonic() + seconds
        missing, settled, pause = "nothing was seen", None, 0.1
        while True:
            facts = unit_facts(self.p["unit"])
            if facts["ActiveState"] in ("failed", "inactive"):
                return "%s is %s" % (self.p["unit"], facts["ActiveState"])
            if int(facts["NRestarts"] or 0) > restarts:
                return "%s ends and is started again and again" % self.p["unit"]
            if facts["ActiveState"] != "active":
                missing, settled = "%s is %s" % (self.p["unit"], facts["ActiveState"]), None
            elif not proof:
                if settled is None or settled[0] != facts["MainPID"]:
                    settled = (facts["MainPID"], time.monotonic())
                if time.monotonic() - settled[1] >= SETTLE_SECONDS:
                    return None
                missing = "%s does not stay" % self.p["unit"]
            else:
                try:
                    missing = self.unproven(action, since, lenient)
                except figures.Untrusted as error:
                    return "%s: %s" % (proof["url"], error)
                if missing is None:
                    return None
            if time.monotonic() >= deadline:
                return "%s (waited %d s)" % (missing, seconds)
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)

    def unproven(self, action, since, lenient):
        """One look at what the service says. None where all is as it must be."""
        proof = self.proof
        try:
            status, text = self.ask(proof["url"])
            if lenient and status == 401:
                # The earlier files have other passwords; that it asks for one is all that can be seen.
                return None
            if status != 200:
                return "%s answers %s" % (proof["url"], status)
            if proof["metric"]:
                value = figures.value_of(text, proof["metric"])
                if value != proof["value"]:
                    shown = "absent" if value is None else "%g" % value
                    return "%s is %s instead of %g" % (proof["metric"], shown, proof["value"])
            if proof["timestamp_metric"] and action != "none":
                value = figures.value_of(text, proof["timestamp_metric"])
                if value is None or value < since:
                    return "%s is not younger than the swap" % proof["timestamp_metric"]
            if lenient:
                return None
            for answer in proof["answers"]:
                status, text = self.ask(answer["url"])
                value = figures.at_path(text, answer["path"]) if status == 200 else None
                if str(value) != answer["value"]:
                    return "%s: %s is %s instead of %s" % (
                        answer["url"],
                        ".".join(answer["path"]),
                        value if status == 200 else "not answered (%s)" % status,
                        answer["value"],
                    )
            if proof["closed"]:
                status, _text = self.ask(proof["url"], stranger=True)
                if status != 401:
                    return "%s answers %s to a stranger" % (proof["url"], status)
        except figures.Untrusted:
            raise
        except OSError as error:
            return "%s: %s" % (proof["url"], error)
        return None

    def prove_targets(self, before, since):
        """No target that was up before is down two scrape intervals after. None, or which are."""
        known = [target for target in before.values() if target["health"] == "up"]
        if not known:
            return None
        # Until then the targets of before may still be the ones that are asked, or none.
        time.sleep(max(0.0, since + DISCOVERY_SECONDS - time.time()))
        deadline = time.monotonic() + 2 * max(target["interval"] for target in known)
        while True:
            now = self.targets()
            lost = figures.lost(before, now, since)
            if now and not lost:
                return None
            if time.monotonic() >= deadline:
                break
            time.sleep(1.0)
        if not now:
            return "its targets cannot be read any more"
        shown = [
            "%s %s (%s)" % (key[0], key[1], target["error"] or target["health"]) for key, target in sorted(lost.items())
        ]
        return "targets that were up are down: %s%s" % ("; ".join(shown[:10]), "; …" if len(shown) > 10 else "")

    def bring_up(self, action, unit_changed):
        """Start, restart or reload. (time of it, restarts of the unit before, None or what systemd said)."""
        if unit_changed:
            systemctl("daemon-reload")
        if action in ("start", "restart"):
            systemctl("reset-failed", self.p["unit"])
        restarts = int(unit_facts(self.p["unit"])["NRestarts"] or 0)
        since = time.time()
        if action == "none":
            return since, restarts, None
        # A start by hand meanwhile may have loaded half of the set: restart, whatever runs. systemctl waits for a unit
        # that says when it is ready, and for the one before to stop.
        verb = "reload" if action == "reload" else "restart"
        seconds = self.proof["start_timeout_seconds"] if self.proof else START_SECONDS
        code, text = systemctl(verb, self.p["unit"], timeout=seconds + STOP_SECONDS)
        return since, restarts, (text or "systemctl %s failed" % verb) if code else None

    def load(self, action, unit_changed, before_targets):
        since, restarts, error = self.bring_up(action, unit_changed)
        error = error or self.prove(action, since, restarts) or self.prove_targets(before_targets, since)
        if error:
            said = journal_since(self.p["unit"], since)
            error = "%s%s" % (error, "\n%s logged:\n%s" % (self.p["unit"], said) if said else "")
        return error

    def put_back(self, changes, action, unit_changed, ran):
        """Restore the earlier files and what ran. A sentence."""
        if not changes:
            return ""
        place_all(changes)
        if not ran:
            if unit_changed:
                systemctl("daemon-reload")
            systemctl("stop", self.p["unit"])
            return " The earlier files are back in place; the service is stopped, as before."
        since, restarts, error = self.bring_up(action, unit_changed)
        error = error or self.prove(action, since, restarts, lenient=True)
        return " The earlier files are back in place%s." % (", but: %s" % error if error else " and in use")

    def remember(self):
        _value, loaded = self.own_figures()
        self.write_note(dict(self.hashes(), invocation=unit_facts(self.p["unit"])["InvocationID"], timestamp=loaded))

    def run(self):
        module, unit = self.module, self.p["unit"]
        folders = self.directory_changes()
        changes = self.file_changes()
        facts = unit_facts(unit)
        action, reasons = self.decide(changes, facts)
        enable = facts["UnitFileState"] not in ("enabled", "enabled-runtime", "static", "indirect", "alias")
        result = {
            "changed": bool(reasons or folders or enable),
            "action": action,
            "reasons": reasons + (["%s is not enabled" % unit] if enable else []),
            "enabled": enable,
            "checked": [],
            "refused": [],
            "diff": self.diff(changes, folders),
        }
        if changes or action != "none":
            result["refused"] = self.reference_problems()
            result["checked"], refused = self.check()
            result["refused"] += refused
        if module.check_mode:
            for problem in result["refused"]:
                module.warn("%s would be refused: %s" % (unit, problem))
            module.exit_json(**result)
        if result["refused"]:
            raise Refused("; ".join(result["refused"]))
        if facts["LoadState"] != "loaded" and not any(path.endswith("/" + unit) for path in self.unit_paths):
            raise Refused("there is no unit %s" % unit)
        self.make_folders(folders)
        if changes or action != "none":
            self.apply_set(changes, action, facts)
        if enable:
            code, text = systemctl("enable", unit)
            if code:
                module.fail_json(msg="systemctl enable %s: %s" % (unit, text))
        module.exit_json(**result)

    def apply_set(self, changes, action, facts):
        unit = self.p["unit"]
        ran = facts["ActiveState"] in ("active", "reloading")
        unit_changed = bool(self.unit_paths & set(changes)) or facts["NeedDaemonReload"] == "yes"
        unit_changed = unit_changed or facts["LoadState"] != "loaded"
        self.write_note(None)
        # The web configuration is in use as soon as it is written: with it, the figures before the reload can be read.
        first = {path: self.wanted[path] for path in changes if path == self.web_path}
        place_all(first)
        before = self.targets() if ran else {}
        place_all({path: self.wanted[path] for path in changes if path not in first})
        points.reach(SWAPPED)
        error = self.load(action, unit_changed, before)
        if error:
            back = self.put_back(changes, action, unit_changed, ran)
            self.module.fail_json(
                msg="the %s of %s did not take effect: %s.%s"
                % (action if action != "none" else "change", unit, error, back),
                action=action,
            )
        self.remember()

    @staticmethod
    def make_folders(folders):
        for path, (mode, uid, gid), _before in folders:
            descriptor = safe_files.open_directory(path, 0o755)
            try:
                os.fchown(descriptor, uid, gid)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)

    def diff(self, changes, folders):
        found = [
            describe(path, before, self.wanted[path], path in self.secret, path == self.web_path)
            for path, before in sorted(changes.items())
        ]
        for path, wanted, before in folders:
            found.append(
                {
                    "before": "" if before is None else "folder, mode %04o, owner %s:%s\n" % before,
                    "after": "folder, mode %04o, owner %s:%s\n" % wanted,
                    "before_header": path,
                    "after_header": path,
                }
            )
        return found


SERVICE_USER = {
    "user": {"type": "str", "required": True},
    "extra_groups": {"type": "list", "elements": "str", "default": []},
}


def argument_spec():
    def file_options(mode, apply=True):
        options = {
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "owner": {"type": "str", "default": "root"},
            "group": {"type": "str", "default": "root"},
            "mode": {"type": "str", "default": mode},
        }
        if apply:
            options["apply"] = {"type": "str", "choices": ["reload", "restart", "none"]}
        return options

    secret_options = file_options("0640")
    del secret_options["content"]

    def dicts(options):
        return {"type": "list", "elements": "dict", "default": [], "options": options}

    return {
        "unit": {"type": "str", "required": True},
        "root": {"type": "path", "required": True},
        "directories": dicts(
            {
                "path": {"type": "path", "required": True},
                "owner": {"type": "str", "default": "root"},
                "group": {"type": "str", "default": "root"},
                "mode": {"type": "str", "default": "0755"},
            }
        ),
        "files": dicts(file_options("0644")),
        # The content is marked, not the whole: the paths may be shown.
        "secrets": {
            "options": {"content": {"type": "str", "required": True, "no_log": True}, **secret_options},
            "type": "list",
            "elements": "dict",
            "default": [],
            "no_log": False,
        },
        "copies": dicts({"src": {"type": "path", "required": True}, **secret_options}),
        "unit_files": dicts(file_options("0644", apply=False)),
        "absent": {"type": "list", "elements": "path", "default": []},
        "managed": dicts(
            {"directory": {"type": "path", "required": True}, "pattern": {"type": "str", "required": True}}
        ),
        "web_config": {
            "type": "dict",
            "options": {
                "path": {"type": "path", "required": True},
                "certificate": {"type": "path"},
                "key": {"type": "path", "no_log": False},
                "users": dicts(
                    {
                        "name": {"type": "str", "required": True},
                        "password": {"type": "str", "required": True, "no_log": True},
                    }
                ),
                "settings": {"type": "dict", "default": {}},
                "cost": {"type": "int", "default": 10},
                "owner": {"type": "str", "default": "root"},
                "group": {"type": "str", "default": "root"},
                "mode": {"type": "str", "default": "0640"},
                "apply": {"type": "str", "choices": ["reload", "restart", "none"], "default": "none"},
            },
        },
        "watch": {"type": "list", "elements": "path", "default": []},
        "checks": {"type": "list", "elements": "list", "default": []},
        "check_as": {"type": "dict", "options": SERVICE_USER},
        "check_timeout_seconds": {"type": "int", "default": 60},
        "references": {"type": "dict", "options": SERVICE_USER},
        "apply": {"type": "str", "choices": ["reload", "restart", "none"], "default": "reload"},
        "proof": {
            "type": "dict",
            "options": {
                "url": {"type": "str", "required": True},
                "ca_file": {"type": "path"},
                "user": {"type": "str"},
                "password": {"type": "str", "no_log": True},
                "closed": {"type": "bool", "default": False},
                "metric": {"type": "str"},
                "value": {"type": "float", "default": 1},
                "timestamp_metric": {"type": "str"},
                "answers": dicts(
                    {
                        "url": {"type": "str", "required": True},
                        "path": {"type": "list", "elements": "str", "required": True},
                        "value": {"type": "str", "required": True},
                    }
                ),
                "targets_url": {"type": "str"},
                "timeout_seconds": {"type": "int", "default": 20},
                "start_timeout_seconds": {"type": "int", "default": 120},
            },
        },
    }


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        with alone():
            Service(module).run()
    except Refused as error:
        module.fail_json(msg="%s: nothing was changed: %s" % (module.params["unit"], error))


if __name__ == "__main__":
    main()
