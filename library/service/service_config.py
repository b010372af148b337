#!/usr/bin/python
# The configuration of a service that is a set of files: exporters, Prometheus, Alertmanager.
"""Keep a service's files as one set: checked in a copy, swapped, loaded and verified, or rolled back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_config
short_description: Keep a service's configuration as one set that is checked, swapped, loaded and verified
description:
  - The set (files, secrets, the web configuration, absences, drop-ins of the unit) is compared with the host. When
    anything differs, a copy of O(root) with the new files in it is made, paths below O(root) inside the new files are
    rewritten to the copy, and O(checks) run on it before one live file is touched.
  - Then the files are renamed into place, the service is reloaded or restarted, and the module waits for O(verify).
    C(kill -HUP) returns 0 where a configuration was rejected, so the running process itself has to report it.
  - Where the verification fails, the earlier files are placed, loaded and verified, and the task fails with what the
    service logged. A service that did not run before is stopped again.
  - Whether to reload is decided from what runs. The module notes in /run which set it has verified in which process;
    where that note is missing or of another process, files that are younger than what the process has loaded are
    loaded. So an interrupted run is completed by the next one, and a reboot needs nothing.
  - The unit is enabled and started. Two runs at once on one host wait for each other.
options:
  unit: {description: The systemd unit., type: str, required: true}
  root: {type: path, required: true, description: "The directory of the configuration, of which a copy is checked. It
    need not exist."}
  directories:
    description: Directories that must exist, before the files are written.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory., type: path, required: true}
      owner: &owner {description: Its owner., type: str, default: root}
      group: &group {description: Its group., type: str, default: root}
      mode: {description: Its mode., type: str, default: "0755"}
  files:
    description: Files with their complete content. Those below O(root) are part of the copy that is checked.
    type: list
    elements: dict
    default: []
    suboptions:
      path: &path {description: The file with its absolute path., type: path, required: true}
      content: &content {description: The complete content., type: str, required: true}
      owner: *owner
      group: *group
      mode: &public {description: Its mode., type: str, default: "0644"}
      apply: &apply {type: str, choices: [reload, restart, none], description: What a change of it needs; O(apply) where
        absent. V(none) for what the service reads by itself.}
  secrets:
    description: Files whose content is never shown. Otherwise as O(files).
    type: list
    elements: dict
    default: []
    suboptions:
      path: *path
      content: *content
      owner: *owner
      group: *group
      mode: &private {description: Its mode., type: str, default: "0640"}
      apply: *apply
  copies:
    description: Files of the host that the service reads as its own copies, such as a certificate. Their content is
      never shown. In check mode one that is not there yet is left out.
    type: list
    elements: dict
    default: []
    suboptions:
      src: {description: The file that is copied., type: path, required: true}
      path: *path
      owner: *owner
      group: *group
      mode: *private
      apply: *apply
  unit_files:
    description: Drop-ins of O(unit), or the unit itself. A change restarts the service.
    type: list
    elements: dict
    default: []
    suboptions: {path: *path, content: *content, owner: *owner, group: *group, mode: *public}
  managed:
    description: Files of these directories that match and are not in the set are removed.
    type: list
    elements: dict
    default: []
    suboptions:
      directory: {description: The directory., type: path, required: true}
      pattern: {description: Wildcards of a shell for the names in it., type: str, required: true}
  web_config:
    description:
      - The web configuration of what uses Prometheus' exporter-toolkit. Passwords become bcrypt hashes on the host; a
        hash that still matches is kept, so that nothing changes without reason.
      - The toolkit reads the file, and the certificate that it names, for each connection. A change needs no reload.
    type: dict
    suboptions:
      path: {description: The file. Below O(root), type: path, required: true}
      certificate: {description: The certificate to present. Without one there is no TLS., type: path}
      key: {description: Its private key., type: path}
      users:
        description: Users that may log in.
        type: list
        elements: dict
        default: []
        suboptions:
          name: {description: The user's name., type: str, required: true}
          password: {description: "The password, at most 72 bytes.", type: str, required: true}
      settings: {type: dict, default: {}, description: "Further settings; a mapping is added to the one of the same
        name. For example V({http_server_config {http2 true}}), V({tls_server_config {min_version TLS13}})."}
      cost: {type: int, default: 10, description: bcrypt's cost. 10 takes some 50 ms for each password that the service
        has not seen before.}
      owner: *owner
      group: *group
      mode: *private
      apply: {description: What a change needs., type: str, default: none, choices: [reload, restart, none]}
  watch: {type: list, elements: path, default: [], description: "Files of others that the service reads once, at its
    start or reload, such as a certificate of a program that does not look again. When one is younger than what the
    process has loaded, O(apply) is done."}
  checks: {type: list, elements: list, default: [], description: "Programs with their arguments that have to end with 0.
    C({root}) is the checked copy, C({work}) an empty directory that is theirs to write to and goes afterwards. They run
    without a shell, as root or O(check_as); the first that rejects the copy is the last. In check mode one whose
    program is missing is left out."}
  check_as:
    description: The user that runs O(checks), for a program that refuses root or leaves files that the service then
      cannot write. This user can read of the copy what it can of the live files, and write nothing.
    type: dict
    suboptions: &user
      user: {description: The service's user., type: str, required: true}
      extra_groups: {type: list, elements: str, default: [], description: Groups that the unit gives the service
        (C(SupplementaryGroups)).}
  check_timeout_seconds: {description: How long one of O(checks) may take., type: int, default: 60}
  references:
    description: Every C(*_file) that a C(.yml) file of the set or the web configuration names must exist, must not be
      empty, and must be readable for the service's user, in fact and not only by its mode. All but certificates must be
      closed to everybody else. The checking tools of Prometheus and Alertmanager pass without that.
    type: dict
    suboptions: *user
  apply: {type: str, default: reload, choices: [reload, restart, none], description: "What a changed file needs where
    the file does not say. V(reload) is C(systemctl reload). Debian's units of Prometheus and its kin do that by
    C(/bin/kill), which a minimal host lacks (package procps); a drop-in with C(ExecReload=/bin/sh -c 'kill -HUP
    $MAINPID') does without."}
  verify:
    description: What the running service must report after a change. Without it, the unit must be active for a second.
    type: dict
    suboptions:
      url: {description: "Must return 200; with O(verify.metric), metrics.", type: str, required: true}
      ca_file: {description: Authority of its certificate. The name in the URL is verified., type: path}
      user: {description: User of basic authentication., type: str}
      password: {description: Its password., type: str}
      closed: {description: Whether the URL must return 401 without a password., type: bool, default: false}
      metric: {type: str, description: A metric that must have a value. With O(apply=reload) another value is a reason
        to reload.}
      value: {description: That value., type: float, default: 1}
      timestamp_metric: {type: str, description: A metric that holds the time of the last successful reload; it must be
        younger than the swap.}
      responses:
        description: JSON responses that must hold a value, for what only a restart changes.
        type: list
        elements: dict
        default: []
        suboptions:
          url: {description: "The URL, with the same user and authority.", type: str, required: true}
          path: {description: Keys that lead to the value., type: list, elements: str, required: true}
          value: {description: "The value, as text.", type: str, required: true}
      targets_url: {type: str, description: "Prometheus' C(/api/v1/targets?state=active). Each target that was up before
        must have been scraped again and be up two scrape intervals after; targets that were removed do not count. Takes
        six seconds at least."}
      timeout_seconds: {description: How long to wait after a reload., type: int, default: 20}
      start_timeout_seconds: {description: How long to wait after a start., type: int, default: 120}
attributes:
  check_mode: {description: Nothing changes. The checks run where their programs are installed., support: full}
  diff_mode: {support: full, description: "Every file and directory that would change; never a secret, a password or a
    hash of one."}
"""

EXAMPLES = r"""
- name: configure | Apply Prometheus' configuration
  service_config:
    unit: prometheus.service
    root: /etc/prometheus
    files:
      - path: /etc/prometheus/prometheus.yml
        content: "{{ lookup('ansible.builtin.template', 'prometheus.yml.j2') }}"
        group: prometheus
        mode: "0640"
    unit_files:
      - path: /etc/systemd/system/prometheus.service.d/shiftmaster.conf
        content: "{{ lookup('ansible.builtin.template', 'drop-in.conf.j2') }}"
    checks:
      - [promtool, check, config, "{root}/prometheus.yml"]
    references:
      user: prometheus
      extra_groups: [ssl-cert]
    verify:
      url: http://127.0.0.1:9090/metrics
      metric: prometheus_config_last_reload_successful
"""

RETURN = r"""
action: {description: What was (in check mode would be) done to the service., returned: always, type: str}
reasons: {description: Why., returned: always, type: list, elements: str}
checked: {description: "The checks that ran, as they were typed.", returned: always, type: list, elements: str}
refused: {returned: always, type: list, elements: str, description: What the checks and the inspection of the named
  files rejected; fails the task except in check mode.}
enabled: {description: Whether the unit was (would be) enabled to start at boot., returned: always, type: bool}
"""

import contextlib
import fnmatch
import hashlib
import os
import re
import shutil
import stat
import subprocess
import time
from calendar import timegm

from ansible.module_utils.shiftmaster.host import configuration, points, service_user, units, webconfig
from ansible.module_utils.shiftmaster.host.configuration import Failed, Rejected
from ansible.module_utils.shiftmaster.host.quiet import PATH, SECRET, TEXT, QuietModule, dict_of, given, list_of
from ansible.module_utils.shiftmaster.monitoring import metrics, prometheus

# Where a test holds a run (module_utils/shiftmaster/host/points.py); no point of a deploy.
SWAPPED = "service_swapped"
NAMED_FILE = re.compile(r"(?<!\w)(?P<key>\w+_file)\s*:\s*(?P<value>'[^'\n]*'|\"[^\"\n]*\"|[^\s'\",}\]#]+)")
# Files that everybody may read.
PUBLIC = ("ca_file", "cert_file", "client_ca_file")
# Without a verify of its own a unit must be active for so long, and has so long to become that.
STABLE_SECONDS = 1.0
START_SECONDS = 120
# The stop of the earlier process may take so long on top of a start.
STOP_SECONDS = 120
# Prometheus hands new targets to its scrapers every five seconds.
DISCOVERY_SECONDS = 6.0
PROPERTIES = (
    *("LoadState", "ActiveState", "MainPID", "InvocationID", "NRestarts", "NeedDaemonReload", "UnitFileState"),
    "ExecMainStartTimestamp",
)


def set_hash(items):
    """Return the hash of files in their wanted state; their order does not count."""
    digest = hashlib.sha256()
    for path, state in sorted(items):
        digest.update(repr((path,) + tuple(state[:3])).encode())
    return digest.hexdigest()[:32]


def named_files(text):
    """Yield (key, path) for every `*_file` of a YAML text that is not commented out."""
    for line in text.splitlines():
        if not line.lstrip().startswith("#"):
            for match in NAMED_FILE.finditer(line):
                value = match["value"].strip("'\"")
                if value and "{{" not in value:
                    yield match["key"], value


def mask_hashes(before, after):
    """Show a web configuration in a diff without hashes."""
    shown = [webconfig.without_hashes(text or "") for text in (before, after)]
    if before is not None and not set(webconfig.HASH.findall(before)).issuperset(webconfig.HASH.findall(after or "")):
        shown[1] = shown[1].replace("(hash of a password)", "(hash of a password, not all as before)")
    return shown


def may_read(path, reader):
    """Return whether the service's user can open the file: tried by a process, since modes alone do not show it."""
    return subprocess.run(["test", "-r", path], check=False, **(reader if os.geteuid() == 0 else {})).returncode == 0


def unit_facts(unit):
    return {**dict.fromkeys(PROPERTIES, ""), **units.properties(unit, *PROPERTIES)}


def timestamp(text):
    """Seconds since 1970 of systemd's `Thu 2026-11-26 12:22:42.647422 UTC`; 0 where there is none."""
    match = re.search(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)? UTC", text)
    if not match:
        return 0.0
    return timegm(time.strptime(match.group(1), "%Y-%m-%d %H:%M:%S")) + float(match.group(2) or 0)


class Service:
    def __init__(self, module):
        self.module = module
        self.p = module.params
        self.unit, self.expects = self.p["unit"], self.p["verify"]
        self.root = self.p["root"].rstrip("/")
        self.files = configuration.FileSet(module.check_mode)
        # The need of each path that changes; paths whose content is not rewritten for the checks; those of the unit.
        self.apply, self.secret, self.unit_paths = {}, set(), set()
        self.web_path = self.p["web_config"]["path"] if self.p["web_config"] else None
        self.collect()

    def collect(self):
        p = self.p
        for item in p["directories"]:
            self.files.add_directory(item)
        for item in p["files"]:
            self.add(item)
        for item in p["secrets"]:
            self.add_secret(item)
        for item in p["copies"]:
            try:
                with open(item["src"], encoding="utf-8") as stream:
                    self.add_secret(dict(item, content=stream.read()))
            except (OSError, UnicodeDecodeError) as error:
                if not (self.module.check_mode and isinstance(error, FileNotFoundError)):
                    raise Rejected("%s cannot be copied: %s" % (item["src"], error))
        for item in p["unit_files"]:
            self.add(dict(item, apply="restart"))
            self.unit_paths.add(item["path"])
        if p["web_config"]:
            self.add_web_config(p["web_config"])
        for item in p["managed"]:
            try:
                names = os.listdir(item["directory"])
            except (FileNotFoundError, NotADirectoryError):
                names = []
            for name in fnmatch.filter(names, item["pattern"]):
                path = os.path.join(item["directory"], name)
                # Hidden names are the temporary ones of a swap.
                if path not in self.files.wanted and not name.startswith(".") and not os.path.isdir(path):
                    self.files.want(path, ("none",))

    def add(self, item, mask=None):
        self.files.add(item, mask)
        self.apply[item["path"]] = item["apply"] or self.p["apply"]

    def add_secret(self, item):
        self.add(item, configuration.hide)
        self.secret.add(item["path"])

    def add_web_config(self, web):
        names = [user["name"] for user in web["users"]]
        if len(set(names)) != len(names):
            raise Rejected("web_config names a user twice")
        if bool(web["certificate"]) != bool(web["key"]):
            raise Rejected("web_config needs both a certificate and a key, or neither")
        try:
            hashes = webconfig.hashes(web["users"], configuration.read_text(web["path"]), web["cost"])
        except webconfig.PasswordError as error:
            raise Rejected(str(error))
        content = webconfig.render(web["certificate"], web["key"], hashes, web["settings"])
        self.add(dict(web, content=content), mask_hashes)

    # -- deciding --------------------------------------------------------------------------------------------
    def needs(self, path):
        return self.apply.get(path, self.p["apply"])

    def loaded_set(self, kind):
        """Return what a process must have loaded: the files whose change needs this."""
        files = [(path, state) for path, state in self.files.wanted.items() if state[0] == "file"]
        return [(path, state) for path, state in files if self.needs(path) == kind]

    def hashes(self):
        watched = []
        for path in self.p["watch"]:
            state = configuration.read_state(os.path.realpath(path))
            watched.append((path, state if state[0] == "file" else ("file", b"", 0)))
        return {
            kind: set_hash(self.loaded_set(kind) + (watched if self.p["apply"] == kind else []))
            for kind in ("restart", "reload")
        }

    def youngest(self, kind):
        """Return when a file that needs this changed last; only the directory shows a removal."""
        times = [(path, "st_ctime") for path, _state in self.loaded_set(kind)]
        if self.p["apply"] == kind:
            times += [(os.path.realpath(path), "st_ctime") for path in self.p["watch"]]
            times += [(item["directory"], "st_mtime") for item in self.p["managed"]]
        latest = 0.0
        for path, name in times:
            with contextlib.suppress(OSError):
                latest = max(latest, getattr(os.stat(path), name))
        return latest

    def get(self, url, stranger=False, timeout=10.0):
        user = None if stranger else self.expects["user"]
        return prometheus.get(url, self.expects["ca_file"], user, self.expects["password"], timeout)

    def own_metrics(self):
        """Return (value of the metric, time of the last reload) of the process; None for what is unknown."""
        names = [self.expects[name] for name in ("metric", "timestamp_metric")] if self.expects else []
        if any(names):
            with contextlib.suppress(OSError):
                status, text = self.get(self.expects["url"])
                if status == 200:
                    return [metrics.value_of(text, name) if name else None for name in names]
        return None, None

    def targets(self):
        """Return the targets as they are, or {} where that cannot be known."""
        if self.expects and self.expects["targets_url"]:
            with contextlib.suppress(OSError):
                status, text = self.get(self.expects["targets_url"], timeout=30.0)
                return metrics.targets_of(text) if status == 200 else {}
        return {}

    def decide(self, facts):
        """Return what has to happen to the service, and why."""
        changes = self.files.changes
        reasons = ["files differ: %s" % ", ".join(sorted(changes))] if changes else []
        if facts["LoadState"] != "loaded":
            return "start", reasons + ["there is no unit %s yet" % self.unit]
        if facts["ActiveState"] not in ("active", "reloading"):
            return "start", reasons + ["%s does not run (%s)" % (self.unit, facts["ActiveState"])]
        needs = {self.needs(path) for path in changes}
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
        """Return what the process has not loaded of the set: (restart, reload or none, reasons)."""
        note, hashes = configuration.read_note(self.unit), self.hashes()
        value, loaded = self.own_metrics()
        if self.p["apply"] == "reload" and value is not None and value != self.expects["value"]:
            return "reload", ["the running service reports %s %g" % (self.expects["metric"], value)]
        started = timestamp(facts["ExecMainStartTimestamp"])
        same = note.get("invocation") == facts["InvocationID"] and (
            loaded is None or note.get("timestamp") is None or note["timestamp"] == loaded
        )
        for kind, since in (("restart", started), ("reload", max(started, loaded or 0.0))):
            clean = note.get(kind) == hashes[kind] if same else self.youngest(kind) <= since
            if not clean:
                return kind, ["the running service has not loaded the present files"]
        return "none", []

    # -- checking in a copy ----------------------------------------------------------------------------------
    def check(self):
        """Run the checks on a copy. Return (those that ran, what was rejected)."""
        ran, given = [], self.p["check_as"]
        try:
            reader = service_user.process_of(given["user"], given["extra_groups"]) if given else None
        except KeyError:
            # In check mode the package that brings the user may still be to come.
            return ran, [] if self.module.check_mode else ["there is no user %s" % given["user"]]
        with self.files.staged(self.root, self.unit, reader, lambda path: path not in self.secret) as (tree, work):
            for argv in self.p["checks"]:
                typed = [str(word) for word in argv]
                words = [word.replace("{root}", tree).replace("{work}", work) for word in typed]
                shown = " ".join(word.replace("{root}", self.root) for word in typed)
                if not shutil.which(words[0]):
                    if not self.module.check_mode:
                        return ran, ["%s: there is no %s" % (shown, words[0])]
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
                        **(reader or {}),
                    )
                except subprocess.TimeoutExpired:
                    return ran, ["%s did not end within %d s" % (shown, self.p["check_timeout_seconds"])]
                if done.returncode != 0:
                    output = done.stdout.decode("utf-8", "replace").replace(tree, self.root).strip()
                    return ran, ["%s: %s" % (shown, output[-4000:] or "it ended with %d" % done.returncode)]
        return ran, []

    def reference_problems(self):
        """Return what is wrong with the files that the new set names."""
        given = self.p["references"]
        if not given:
            return []
        try:
            reader = service_user.process_of(given["user"], given["extra_groups"])
        except KeyError:
            return [] if self.module.check_mode else ["there is no user %s" % given["user"]]
        problems = []
        for source, state in sorted(self.files.wanted.items()):
            if state[0] != "file" or source in self.secret or not source.endswith((".yml", ".yaml")):
                continue
            for key, path in named_files(state[1].decode("utf-8", "replace")):
                path = os.path.normpath(os.path.join(self.root, path))
                problem = self.reference_problem(path, key in PUBLIC, reader)
                if problem:
                    problems.append("%s: %s %s %s" % (source, key, path, problem))
        return problems

    def reference_problem(self, path, public, reader):
        planned = self.files.wanted.get(path)
        if planned and planned[0] == "file":
            mode, empty = planned[2], not planned[1].strip()
            readable = configuration.lets_read(planned, reader)
        elif planned or not os.path.exists(path):
            return "does not exist"
        else:
            info = os.stat(path)
            if not stat.S_ISREG(info.st_mode):
                return "is no file"
            mode, empty = stat.S_IMODE(info.st_mode), info.st_size == 0
            readable = may_read(path, reader)
        if not readable:
            return "cannot be read by %s (mode %04o)" % (self.p["references"]["user"], mode)
        if not public and mode & 0o007:
            return "can be read by everybody (mode %04o)" % mode
        return "is empty" if empty else None

    # -- verifying -------------------------------------------------------------------------------------------
    def verify(self, action, since, restarts, lenient=False):
        """Wait until the service reports the written configuration; Failed names the difference."""
        verify = self.expects
        name = "timeout_seconds" if action in ("reload", "none") else "start_timeout_seconds"
        seconds = verify[name] if verify else START_SECONDS
        deadline = time.monotonic() + seconds
        stable, pause = None, 0.1
        while True:
            facts = unit_facts(self.unit)
            if facts["ActiveState"] in ("failed", "inactive"):
                raise Failed("%s is %s" % (self.unit, facts["ActiveState"]))
            if int(facts["NRestarts"] or 0) > restarts:
                raise Failed("%s ends and is started again and again" % self.unit)
            if facts["ActiveState"] != "active":
                missing, stable = "%s is %s" % (self.unit, facts["ActiveState"]), None
            elif not verify:
                if stable is None or stable[0] != facts["MainPID"]:
                    stable = (facts["MainPID"], time.monotonic())
                missing = None if time.monotonic() - stable[1] >= STABLE_SECONDS else "%s does not stay" % self.unit
            else:
                missing = self.unverified(action, since, lenient)
            if missing is None:
                return
            if time.monotonic() >= deadline:
                raise Failed("%s (waited %d s)" % (missing, seconds))
            time.sleep(pause)
            pause = min(1.0, pause * 1.5)

    def unverified(self, action, since, lenient):
        """Return what of the service's report is not as it must be, None where all is."""
        verify = self.expects
        try:
            status, text = self.get(verify["url"])
            if lenient and status == 401:
                # The earlier files have other passwords; that it requires one is all that can be seen.
                return None
            if status != 200:
                return "%s returns %s" % (verify["url"], status)
            if verify["metric"]:
                value = metrics.value_of(text, verify["metric"])
                if value != verify["value"]:
                    shown = "absent" if value is None else "%g" % value
                    return "%s is %s instead of %g" % (verify["metric"], shown, verify["value"])
            if verify["timestamp_metric"] and action != "none":
                value = metrics.value_of(text, verify["timestamp_metric"])
                if value is None or value < since:
                    return "%s is not younger than the swap" % verify["timestamp_metric"]
            if lenient:
                return None
            for expected in verify["responses"]:
                status, text = self.get(expected["url"])
                value = metrics.at_path(text, expected["path"]) if status == 200 else "without a response (%s)" % status
                if str(value) != expected["value"]:
                    place = ".".join(expected["path"])
                    return "%s: %s is %s instead of %s" % (expected["url"], place, value, expected["value"])
            if verify["closed"]:
                status, _text = self.get(verify["url"], stranger=True)
                if status != 401:
                    return "%s returns %s without a login" % (verify["url"], status)
        except prometheus.Untrusted as error:
            raise Failed("%s: %s" % (verify["url"], error))
        except OSError as error:
            return "%s: %s" % (verify["url"], error)
        return None

    def verify_targets(self, before, since):
        """No target that was up before may be down two scrape intervals after."""
        known = [target for target in before.values() if target["health"] == "up"]
        if not known:
            return
        # Until then the targets of before may still be the ones that are scraped, or none.
        time.sleep(max(0.0, since + DISCOVERY_SECONDS - time.time()))
        deadline = time.monotonic() + 2 * max(target["interval"] for target in known)
        while True:
            now = self.targets()
            lost = metrics.lost(before, now, since)
            if now and not lost:
                return
            if time.monotonic() >= deadline:
                break
            time.sleep(1.0)
        if not now:
            raise Failed("its targets cannot be read any more")
        shown = [
            "%s %s (%s)" % (key[0], key[1], target["error"] or target["health"]) for key, target in sorted(lost.items())
        ]
        raise Failed("targets that were up are down: %s%s" % ("; ".join(shown[:10]), "; …" if len(shown) > 10 else ""))

    # -- changing --------------------------------------------------------------------------------------------
    def bring_up(self, action, unit_changed):
        """Start, restart or reload. Return (time of it, restarts of the unit before)."""
        if unit_changed:
            units.systemctl("daemon-reload")
        if action in ("start", "restart"):
            with contextlib.suppress(units.UnitError):
                units.systemctl("reset-failed", self.unit)
        restarts = int(unit_facts(self.unit)["NRestarts"] or 0)
        since = time.time()
        if action != "none":
            # A start by hand meanwhile may have loaded half of the set: restart, whatever runs. systemctl waits for a
            # unit that shows when it is ready, and for the one before to stop.
            seconds = self.expects["start_timeout_seconds"] if self.expects else START_SECONDS
            verb = "reload" if action == "reload" else "restart"
            units.systemctl(verb, self.unit, timeout=seconds + STOP_SECONDS)
        return since, restarts

    def change(self, action, facts):
        """Swap the set in, and load and verify it; or roll back."""
        ran = facts["ActiveState"] in ("active", "reloading")
        unit_changed = bool(self.unit_paths & set(self.files.changes)) or facts["NeedDaemonReload"] == "yes"
        unit_changed = unit_changed or facts["LoadState"] != "loaded"
        began, before = time.time(), {}

        def first():
            # The web configuration is in use as soon as it is written: with it, the targets of before can be read.
            self.files.swap(lambda path: path == self.web_path)
            before.update(self.targets() if ran else {})

        def load():
            points.reach(SWAPPED)
            try:
                since, restarts = self.bring_up(action, unit_changed)
                self.verify(action, since, restarts)
                self.verify_targets(before, since)
            except (Failed, units.UnitError) as error:
                logged = units.journal(self.unit, since=began)
                raise Failed(
                    "the %s did not take effect: %s%s"
                    % (action if action != "none" else "change", error, "\nIt logged:\n%s\n" % logged if logged else "")
                )

        def restore():
            if ran:
                return self.verify(action, *self.bring_up(action, unit_changed), lenient=True)
            if unit_changed:
                units.systemctl("daemon-reload")
            units.systemctl("stop", self.unit)
            return "; the service is stopped, as before"

        configuration.write_note(self.unit, None)
        self.files.apply(load, restore, first)
        note = dict(self.hashes(), invocation=unit_facts(self.unit)["InvocationID"], timestamp=self.own_metrics()[1])
        configuration.write_note(self.unit, note)

    def run(self):
        module, unit, files = self.module, self.unit, self.files
        files.compare()
        facts = unit_facts(unit)
        action, reasons = self.decide(facts)
        enable = not units.is_enabled(facts)
        result = {
            "changed": bool(reasons or files.directory_changes or enable),
            "action": action,
            "reasons": reasons + (["%s is not enabled" % unit] if enable else []),
            "enabled": enable,
            "checked": [],
            "refused": [],
            "diff": files.diff(),
        }
        if files.changes or action != "none":
            result["refused"] = self.reference_problems()
            result["checked"], rejected = self.check()
            result["refused"] += rejected
        if module.check_mode:
            for problem in result["refused"]:
                module.warn("%s would be rejected: %s" % (unit, problem))
            return result
        if result["refused"]:
            raise Rejected("; ".join(result["refused"]))
        if facts["LoadState"] != "loaded" and not any(path.endswith("/" + unit) for path in self.unit_paths):
            raise Rejected("there is no unit %s" % unit)
        files.make_directories()
        if files.changes or action != "none":
            self.change(action, facts)
        if enable:
            units.systemctl("enable", unit)
        return result


def argument_spec():
    owner = {name: given("root") for name in ("owner", "group")}
    apply = {"type": "str", "choices": ["reload", "restart", "none"]}
    public, private = given("0644"), given("0640")
    # Secrets are marked, not the complete text: the paths may be shown.
    secrets = list_of(path=PATH, content=SECRET, **owner, mode=private, apply=apply)
    service_user = dict_of(user=TEXT, extra_groups=given([], elements="str"))
    paths = given([], elements="path")
    return {
        "unit": TEXT,
        "root": PATH,
        "directories": list_of(path=PATH, **owner, mode=given("0755")),
        "files": list_of(path=PATH, content=TEXT, **owner, mode=public, apply=apply),
        "secrets": dict(secrets, no_log=False),
        "copies": list_of(src=PATH, path=PATH, **owner, mode=private, apply=apply),
        "unit_files": list_of(path=PATH, content=TEXT, **owner, mode=public),
        "managed": list_of(directory=PATH, pattern=TEXT),
        "web_config": dict_of(
            path=PATH, certificate={"type": "path"}, key={"type": "path", "no_log": False},
            users=list_of(name=TEXT, password=SECRET), settings=given({}), cost=given(10), **owner, mode=private,
            apply=dict(apply, default="none"),
        ),
        "watch": paths,
        "checks": given([], elements="list"),
        "check_as": service_user,
        "check_timeout_seconds": given(60),
        "references": service_user,
        "apply": dict(apply, default="reload"),
        "verify": dict_of(
            url=TEXT, ca_file={"type": "path"}, user={"type": "str"}, password={"type": "str", "no_log": True},
            closed=given(False), metric={"type": "str"}, value={"type": "float", "default": 1},
            timestamp_metric={"type": "str"},
            responses=list_of(url=TEXT, path={"type": "list", "elements": "str", "required": True}, value=TEXT),
            targets_url={"type": "str"}, timeout_seconds=given(20), start_timeout_seconds=given(120),
        ),
    }  # fmt: skip


def main():
    module = QuietModule(argument_spec=argument_spec(), supports_check_mode=True)
    configuration.run(module, module.params["unit"], lambda: Service(module).run())


if __name__ == "__main__":
    main()
