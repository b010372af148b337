#!/usr/bin/python
# Releases of a host; what it does is in module_utils/shiftmaster/{releases,cutover,watch}.py.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_release
short_description: Build, activate, watch, revert and prune releases of ShiftMaster on a host
description:
  - A release is an immutable directory below C(releases/). Two slots of units exist, each linked to a release; the link
    C(active) names the live slot. One C(rename()) of it moves the traffic.
  - Each step of a cutover is written to C(state.json) before it begins, so that O(state=recovered) can finish or revert
    what a killed run or a reboot left.
options:
  state:
    description:
      - V(query) lists the releases and the links, whether V(recovered) has anything to do, and whether a run that
        requests O(revision) with O(build) has.
      - V(target) chooses the release of a rollback, O(release) or what served before the current one was deployed.
        One that never was live or is bad is refused.
      - V(present) builds a release of O(revision) with this configuration, or finds the one that there is.
      - V(recovered) finishes or reverts a cutover that a interrupted run left, removes unfinished builds and starts
        what such a run had stopped for its maintenance.
      - V(active) starts O(release) next to the old one, verifies it on its socket, moves the traffic and gives the
        background work over. A release that is active already and healthy is left alone.
      - V(watched) evaluates the traffic for a while and puts the old release back at a breach.
      - V(finished) stops the old slot; the release is live.
      - V(traffic_reverted) gives the traffic back to the old release where O(run_id) has switched, and ends the new
        one's background work. In an installation with several hosts it comes before V(restored), on every host.
      - V(restored) puts the old release back, with the units that belong to it, where O(run_id) has switched.
      - V(held) stops worker and beat of the live release, since the schema will change, and keeps a boot from starting
        them, and scheduled tasks, until V(finished), or V(restored) with O(background).
      - V(hook) runs the hooks of O(phase).
      - V(suspect) lets the next deploy build a release again that was live; a rollback may still lead to it.
      - V(bad) marks a release, so that no automatic way leads to it.
      - V(absent) removes a release that is neither current nor of use.
      - V(pruned) removes the releases that nobody needs.
      - V(audited) appends a line to the audit log.
    type: str
    choices:
      [query, target, present, recovered, active, watched, finished, traffic_reverted, restored, held, hook, suspect,
       bad, absent, pruned, audited]
    default: query
  root: {description: The application's root., type: path, default: /var/www/shiftmaster}
  release:
    description: A release by its directory's name, its version or the start of its revision (7 digits or more).
    type: str
  revision: {description: "The commit, 40 hexadecimal digits. Required for O(state=present).", type: str}
  version: {description: "The branch, tag or commit as it was requested.", type: str, default: ""}
  stamp:
    description: UTC time (C(yyyymmddThhmmssZ)) that begins a new release's name on every host; empty for now.
    type: str
    default: ""
  archive:
    description: Tar archive of the source at O(revision), on the host. Not needed where the release exists.
    type: path
  build:
    description: How a release is built; all of it goes into the configuration's hash.
    type: dict
    default: {}
    suboptions:
      environment:
        description: Names and values of the application's environment.
        type: dict
        default: {}
      secret_environment:
        description: The part of it that must not be seen in any output.
        type: dict
        default: {}
      files:
        description: Text files by their path below the release; C(site/) is on the application's import path.
        type: dict
        default: {}
      requirements_file:
        description: The application's locked requirements below its source; empty for none.
        type: str
        default: requirements.txt
      extra_requirements:
        description: Requirements that the application needs and does not name, as pip takes them.
        type: list
        elements: str
        default: []
      linked_directories:
        description: Directories below the source that are links into C(shared/).
        type: list
        elements: str
        default: []
      python:
        description: The interpreter that the virtual environment is made with.
        type: path
        default: /usr/bin/python3
      check: {description: Whether C(manage.py check) must pass., type: bool, default: true}
      collectstatic: {description: Whether C(manage.py collectstatic) runs., type: bool, default: true}
      salt:
        description: Text that stands for configuration outside of the release, for example the units.
        type: str
        default: ""
  pip_environment:
    description: Environment of pip, for example C(PIP_INDEX_URL) or C(HTTPS_PROXY).
    type: dict
    default: {}
  wheels_dir:
    description: Directory of the host with wheels. pip then takes everything from it and uses no index. Where packages
      come from is no part of the configuration's hash.
    type: path
    default: ""
  build_user: {description: "The user that unpacks, installs and compiles.", type: str, default: shiftmaster-build}
  user: {description: The user that the application runs as., type: str, default: shiftmaster}
  celery_application:
    description: The name that C(celery -A) takes; empty for an application without Celery.
    type: str
    default: ""
  celery_queues:
    description: The queues that the workers take tasks from; empty for those that the application names itself.
    type: list
    elements: str
    default: []
  beat: {description: Whether this host runs the scheduler., type: bool, default: true}
  part:
    description:
      - The part of O(state=active) that is done. In an installation with several hosts the parts follow one another on
        all hosts.
      - V(prepare) starts the release next to the old one, verifies it, and lets the old workers take no more tasks.
      - V(move) moves the traffic and hands the background work over, V(traffic) moves the traffic alone.
      - V(end_tasks) ends the old release's background work, V(tasks) hands it over.
    type: str
    choices: [complete, prepare, move, traffic, end_tasks, tasks]
    default: complete
  several_hosts:
    description: Whether other hosts work on the same queues. What fails here then gives only its traffic back;
      background work waits for O(state=restored), which comes when the new code is live on no host any more.
    type: bool
    default: false
  kind:
    description: What O(state=active) is done for; it is recorded.
    type: str
    choices: [deploy, rollback, restart]
    default: deploy
  health:
    description: The gate.
    type: dict
    default: {}
    suboptions:
      path: {description: What is queried on the private socket; 200 is healthy., type: str, default: /health/deep/}
      host: {description: The Host header., type: str, default: localhost}
      attempts: {description: How often it is queried., type: int, default: 5}
      delay_seconds: {description: How long to wait between two attempts., type: float, default: 10}
      timeout_seconds: {description: How long one attempt may take., type: float, default: 10}
      worker_seconds: {description: How long a worker may take to respond and to run a task., type: int, default: 60}
  drain_grace_seconds:
    description: How long the old socket's queue must stay empty until its requests count as taken.
    type: float
    default: 0.2
  drain_limit_seconds:
    description: How long the old socket's queue may take to become empty.
    type: float
    default: 30
  web_stop_seconds:
    description: How long the requests of web processes that are stopped may take; the unit's own limit.
    type: int
    default: 70
  worker_stop_seconds:
    description: How long a worker's running tasks may take; the unit's own limit.
    type: int
    default: 300
  watch:
    description: What O(state=watched) evaluates.
    type: dict
    default: {}
    suboptions:
      seconds: {description: How long., type: int, default: 60}
      enough: {description: "After so many requests it ends earlier, but not before 10 s.", type: int, default: 1000}
      target: {description: Where our own requests go., type: str, default: "http://localhost:8000"}
      paths: {description: The pages that are requested each second., type: list, elements: str, default: [/]}
      access_log: {description: nginx's JSON access log., type: path, default: /var/log/nginx/shiftmaster_access.log}
      errors_min: {description: So many 5xx responses at least make a breach., type: int, default: 3}
      error_percent: {description: A larger share of 5xx responses is a breach., type: float, default: 1}
      p95_ms:
        description: A slower 95th percentile is a breach.
        type: float
        default: 2000
      requests_min: {description: Minimum number of responses for the percentile., type: int, default: 20}
  hooks:
    description: Commands of the site at named phases.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name in messages., type: str, required: true}
      phase:
        description: When it runs.
        type: str
        required: true
        choices: [after_build, before_migrate, after_migrate, before_cutover, after_cutover, after_rollback]
      command:
        description: A shell command, run in the release's source with its environment.
        type: str
        required: true
      timeout_seconds: {description: How long it may take., type: int, default: 300}
      user:
        description: The user it runs as; empty for the application's (at C(after_build) the build's).
        type: str
        default: ""
  phase: {description: Whose hooks O(state=hook) runs., type: str}
  keep: {description: How many of the newest releases O(state=pruned) keeps in any case., type: int, default: 5}
  applied_migrations:
    description:
      - C(app.name) of the migrations that the database has, or a part of which it has. Without it no holder of
        migrations is pruned.
      - At O(state=finished) those that the release's code knows; they are noted in its manifest when it goes live for
        the first time, for later rollbacks to it.
    type: list
    elements: str
  reason: {description: "Why, for V(bad), V(restored) and V(audited).", type: str, default: ""}
  background:
    description: With V(recovered), V(restored) and V(finished), whether worker and beat of the live release run, too.
      Where a page is up because of the schema, its tasks would meet one that is not its own.
    type: bool
    default: true
  event: {description: The event's name for V(audited)., type: str, default: note}
  log_dir: {description: Where the application's and the builds' logs lie., type: path, default: /var/log/shiftmaster}
  build_timeout_seconds: {description: How long one step of a build may take., type: int, default: 900}
  run_id: {description: "The run, for the audit log.", type: str, default: ""}
  who: {description: "The requester, for the audit log.", type: str, default: ""}
attributes:
  check_mode:
    support: full
    description: Reports which release would be built or activated and how its configuration differs; changes nothing.
  diff_mode:
    support: full
    description: Version, revision and environment before and after; secrets are replaced by digits of their hash.
"""

EXAMPLES = r"""
- name: Build a release
  shiftmaster_release:
    state: present
    revision: 2f1c8a0c5b1e4b2f9c1f0a3b4c5d6e7f8091a2b3
    version: 2.1.0
    archive: /var/cache/shiftmaster/source.tar
    build:
      environment: "{{ shiftmaster_environment }}"
      secret_environment: "{{ shiftmaster_secret_environment }}"
"""

RETURN = r"""
release: {description: "What was built, activated, chosen or marked.", returned: except for pruned, type: str}
revision: {description: Its revision., returned: for target, type: str}
version: {description: Its version., returned: for target, type: str}
current: {description: "The release that was live before this call; empty for none.", returned: always, type: str}
current_version: {description: Its version., returned: always, type: str}
current_revision: {description: Its revision., returned: always, type: str}
current_is_complete: {description: Whether it has a manifest., returned: always, type: bool}
active_slot: {description: "Its slot, V(blue) or V(green).", returned: always, type: str}
timings: {description: Seconds of each phase., returned: always, type: dict}
notes: {description: Sentences about what happened on the way., returned: always, type: list, elements: str}
reverted: {description: Whether the old release was restored., returned: on failure of active and watched, type: bool}
old_tasks: {description: Tasks that the new release does not know., returned: for active, type: list, elements: str}
prunable: {description: Whether V(pruned) may have anything to do., returned: for finished, type: bool}
releases:
  description: name, version, revision, status, was_live, reason, since and current of each, oldest first.
  returned: for query
  type: list
  elements: dict
previous: {description: The automatic target of a rollback; empty for none., returned: for query, type: str}
environment_differs:
  description: Whether the environment of that target differs from the live release's, but for what each build sets.
  returned: for query and target
  type: bool
transition: {description: "The cutover that is under way, or an empty dict.", returned: for query, type: dict}
switched: {description: Whether its traffic has moved., returned: for query and active, type: bool}
running: {description: Whether the web processes of the live release run., returned: for query, type: bool}
enabled: {description: Whether shiftmaster.service is active and enabled., returned: for query, type: bool}
unfinished: {description: Whether V(recovered) has anything to do., returned: for query, type: bool}
background_held: {description: Whether V(held) is in effect., returned: for query, type: bool}
found: {description: What V(present) would find; empty for none., returned: for query with O(revision), type: str}
pending_changes:
  description:
    - Why a run that requests O(revision) with O(build) has something to do here, as sentences. Empty where that release
      is live, healthy and with all its units, and nothing is unfinished or to be pruned.
  returned: for query with O(revision)
  type: list
  elements: str
migrated:
  description: Whether the live release reports in its health response (check C(migrations)) that none is pending.
  returned: for query with O(revision)
  type: bool
"""

import contextlib
import errno
import json
import os
import time

from ansible.module_utils.shiftmaster.host.quiet import TEXT, QuietModule, dict_of, given, list_of
from ansible.module_utils.shiftmaster.host.units import UnitError, active_state, properties, unit
from ansible.module_utils.shiftmaster.release import releases
from ansible.module_utils.shiftmaster.release.cutover import Cutover
from ansible.module_utils.shiftmaster.release.layout import Layout
from ansible.module_utils.shiftmaster.release.migrations import classify_tree
from ansible.module_utils.shiftmaster.release.releasecode import ReleaseCodeError
from ansible.module_utils.shiftmaster.release.slots import CutoverError
from ansible.module_utils.shiftmaster.release.state import State, StateError, audit, epoch, exclusive, last_switch
from ansible.module_utils.shiftmaster.release.watch import watch


class Refused(Exception):
    """What was queried cannot be done; str() shows why. result: what the caller learns besides."""

    def __init__(self, message, **result):
        super().__init__(message)
        self.result = result


def migrated(body):
    """Whether a health response reports that no migration is pending; one that lies harms its application alone."""
    try:
        check = json.loads(body)["checks"]["migrations"]
        return check["status"] == "healthy" and check.get("pending") in (None, [])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


class Operation:
    """One call of the module on one host."""

    def __init__(self, params, check_mode):
        self.params, self.check_mode = params, check_mode
        self.layout = Layout(params["root"])
        self.state = State(self.layout)
        self.current = self.layout.current()

    def result(self, changed=False, **more):
        data = releases.manifest(self.layout, self.current) if self.current else {}
        common = {
            "changed": changed,
            "current": self.current or "",
            "current_version": data.get("version", ""),
            "current_revision": data.get("revision", ""),
            "current_is_complete": bool(data),
            "active_slot": self.layout.active_slot() or "",
            "timings": {},
            "notes": [],
        }
        return {**common, **more}

    def audit(self, event, **fields):
        audit(self.layout, event, run_id=self.params["run_id"], who=self.params["who"], **fields)

    def one(self, wanted):
        """Return the directory name of the one release that a person means."""
        found = releases.choose(self.layout, self.state, wanted)
        if found is None:
            raise Refused("there is no release %s on this host; there are: %s" % (wanted, self.listing() or "none"))
        return found

    def listing(self):
        def status(entry):
            return "was live" if entry["status"] == "live" and not entry["current"] else entry["status"]

        return ", ".join(
            "%s (%s, %s)" % (entry["name"], entry["version"], status(entry))
            for entry in releases.describe(self.layout, self.state)
        )

    def cutover(self):
        health, logs = self.params["health"], [os.path.join(self.layout.shared, "logs", "*.log")]
        options = {
            **self.params,
            "health_path": health["path"],
            "health_host": health["host"],
            "watch_paths": self.params["watch"]["paths"],
            "gate_attempts": health["attempts"],
            "gate_delay_seconds": health["delay_seconds"],
            "gate_timeout_seconds": health["timeout_seconds"],
            "worker_gate_seconds": health["worker_seconds"],
            "logs": [os.path.join(self.params["log_dir"], name) for name in ("error.log", "app.log")] + logs,
        }
        return Cutover(self.layout, self.state, options)

    # -- states ------------------------------------------------------------------------------------------------------

    def query(self):
        release = self.one(self.params["release"]) if self.params["release"] else ""
        requested = {"release": release}
        if self.params["revision"]:
            try:
                found = self.find() or ""
                pending, requested["migrated"] = self.pending_changes(found)
                requested.update(release=self.current or "", found=found, pending_changes=pending)
            except (StateError, UnitError, OSError, ValueError) as error:
                # The task that does the work finds it again and reports it.
                requested["pending_changes"] = [str(error)]
        previous = self.state.rollback_target(self.current) or ""
        # Otherwise target() refuses it with the reason.
        previous = previous if previous and not releases.lacks_interpreter(self.layout, previous) else ""
        return self.result(
            releases=releases.describe(self.layout, self.state),
            previous=previous,
            environment_differs=bool(previous) and self.environment_differs(previous),
            transition=self.state.transition or {},
            switched=self.layout.active_slot() == (self.state.transition or {}).get("to_slot", ""),
            unfinished=self.unfinished(),
            background_held=os.path.exists(self.layout.held),
            enabled=self.current is not None and not self.unit_problem(),
            running=self.current is not None
            and active_state(unit("web", self.layout.active_slot())) in ("active", "reloading"),
            **requested,
        )

    def find(self):
        """Return the release of this revision and configuration, None where there is none."""
        digest = releases.config_hash(self.configuration())
        return releases.find(self.layout, self.state, self.params["revision"], digest)

    def unit_problem(self):
        """Return in a sentence what is wrong with shiftmaster.service, "" where it is active and enabled."""
        found = properties("shiftmaster.service", "ActiveState", "UnitFileState")
        if found == {"ActiveState": "active", "UnitFileState": "enabled"}:
            return ""
        return "shiftmaster.service is %(ActiveState)s, %(UnitFileState)s" % found

    def unfinished(self):
        """Whether recovered() has anything to do: what it does begins with one of these."""
        if self.state.transition is not None or self.current is None:
            return True
        cutover = self.cutover()
        return bool(cutover.missing() or cutover.others() or releases.unfinished(self.layout, self.state))

    def pending_changes(self, found):
        """Return why a run that requests this revision and configuration has something to do here, as sentences.

        And whether the live release reports that no migration is pending.
        """
        if self.current is None:
            return ["no release is live"], False
        cutover, health = self.cutover(), self.health()
        status, unit_problem = self.state.status(self.current), self.unit_problem()
        missing, others = cutover.missing(), cutover.others()
        left = releases.unfinished(self.layout, self.state)
        reasons = {
            "a cutover is under way": self.state.transition is not None,
            "another release was requested": found != self.current,
            "release %s is %s" % (self.current, status): status != "live",
            unit_problem: unit_problem,
            "%s does not run" % ", ".join(missing): missing,
            "%s runs although its slot is not live" % ", ".join(others): others,
            "background work is held": os.path.exists(self.layout.held),
            "%s is unfinished" % ", ".join(left): left,
            "a release may go": self.prunable(),
            "its health is bad": health.status != 200,
        }
        with exclusive(self.layout, wait_seconds=0):
            return [reason for reason, holds in reasons.items() if holds], migrated(health.body)

    def environment(self):
        build = self.params["build"]
        return {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in dict(build["environment"], **build["secret_environment"]).items()
        }

    def target(self):
        wanted = self.params["release"]
        if self.current is None:
            raise Refused("no release is live on this host, so there is nothing to roll back")
        name = self.one(wanted) if wanted else self.state.rollback_target(self.current)
        if not name:
            raise Refused(
                "there is no older release to go back to: nothing that is still here and not bad served before the one"
                " that is live; there are: %s. -e to=<version> names one of them" % self.listing()
            )
        if self.state.status(name) == "bad":
            raise Refused("release %s is marked bad: %s" % (name, self.state.releases[name].get("reason")))
        if not self.state.was_live(name):
            raise Refused("release %s was never live, so it is not known to work; deploy it instead" % name)
        data = releases.manifest(self.layout, name)
        if releases.lacks_interpreter(self.layout, name):
            words = (name, data.get("version", name))
            raise Refused(
                "release %s was built for a Python that this host does not have any more; a deploy builds it again:"
                " ansible-playbook deploy.yml --tags release -e shiftmaster_version=%s" % words
            )
        return self.result(
            release=name,
            version=data.get("version", ""),
            revision=data.get("revision", ""),
            environment_differs=self.environment_differs(name),
        )

    def environment_differs(self, name):
        """Whether a release's environment differs from the live release's, but for what each build sets."""
        its, current = (releases.environment(self.layout, each) for each in (name, self.current))
        names = (its.keys() | current.keys()) - set(releases.OWN_ENVIRONMENT)
        return any(its.get(key) != current.get(key) for key in names)

    def configuration(self):
        build = self.params["build"]
        return dict(
            build,
            hooks=[hook for hook in self.params["hooks"] if hook["phase"] == "after_build"],
            celery_application=self.params["celery_application"],
        )

    def present(self):
        params = self.params
        digest = releases.config_hash(self.configuration())
        if self.state.is_suspect(self.current) and not self.check_mode and self.healthy():
            # What it lacked is there again.
            self.state.set_suspect(self.current, False)
        found = self.find()
        diff = self.difference(digest)
        if found:
            return self.result(release=found, diff=diff, migrations=[])
        if self.check_mode or not params["archive"]:
            # The caller ships the archive only where it is needed.
            return self.result(self.check_mode, release="", diff=diff)
        spec = {
            **params,
            **params["build"],
            "environment": self.environment(),
            "version": params["version"] or params["revision"][:10],
            "config_sha256": digest,
            "timeout_seconds": params["build_timeout_seconds"],
            "classify": classify_tree,
        }
        build = releases.Build(self.layout, self.state, spec)
        name = build.run()
        migrations = releases.manifest(self.layout, name).get("migrations", [])
        return self.result(True, release=name, timings=build.timings, diff=diff, migrations=migrations)

    def difference(self, digest):
        """Return the diff between the live release and the one that was requested."""
        build = self.params["build"]
        before = releases.masked(releases.environment(self.layout, self.current))
        after = releases.masked(self.environment(), build["secret_environment"])
        for key in releases.OWN_ENVIRONMENT:
            before.pop(key, None)
        data = releases.manifest(self.layout, self.current) if self.current else {}
        old_files = releases.read_files(self.layout, self.current, build["files"])

        def text(version, revision, config, environ, files):
            lines = ["version: %s" % version, "revision: %s" % revision, "configuration: %s" % config[:12]]
            lines += ["%s=%s" % item for item in sorted(environ.items())]
            for path in sorted(files):
                lines += ["", "== %s" % path] + files[path].splitlines()
            return "\n".join(lines) + "\n"

        return {
            "before_header": "release %s" % (self.current or "(none)"),
            "after_header": "release to serve",
            "before": text(data["version"], data["revision"], data["config_sha256"], before, old_files) if data else "",
            "after": text(self.params["version"], self.params["revision"], digest, after, build["files"]),
        }

    def recovered(self):
        if self.check_mode:
            left = self.state.transition
            notes = ["an interrupted run's cutover to %s would be recovered" % left["to"]] if left else []
            return self.result(bool(left), notes=notes)
        left = dict(self.state.transition or {})
        # Also while an operator's page is shown: the run that changes the schema leaves that up.
        background = self.params["background"] and not os.path.exists(self.layout.held)
        message = self.cutover().recover()
        notes = [message] if message else []
        if left and not background and self.layout.current() == left["from"] != left["to"]:
            self.cutover().hold_background()
        removed = releases.remove_unfinished(self.layout, self.state)
        notes += ["removed the unfinished build %s" % name for name in removed]
        notes += ["stopped %s, which served nobody" % name for name in self.cutover().stop_others()]
        # One whose files were edited or that lacks its interpreter may be unable to start, and is built again.
        broken = self.current and (
            releases.is_edited(self.layout, self.current) or releases.lacks_interpreter(self.layout, self.current)
        )
        if not broken:
            started = self.cutover().ensure_running(background)
            notes += ["started %s, which was left stopped" % name for name in started]
        return self.result(bool(notes), notes=notes)

    def ensure_running(self):
        return self.cutover().ensure_running(self.params["background"])

    def health(self):
        """Return the response of the live release to the gate's request, on its own socket."""
        return self.cutover().deep_health(self.layout.active_slot())

    def healthy(self):
        return self.health().status == 200

    def active(self):
        target = self.one(self.params["release"])
        if self.state.status(target) == "bad":
            raise Refused("release %s is marked bad: %s" % (target, self.state.releases[target].get("reason")))
        data = releases.manifest(self.layout, target)
        before = releases.manifest(self.layout, self.current) if self.current else {}
        diff = {
            "before": "%s %s\n" % (self.current or "(none)", before.get("version", "")),
            "after": "%s %s\n" % (target, data.get("version", "")),
        }
        part = self.params["part"]
        nothing = {"release": target, "switched": False, "old_tasks": []}
        if part in ("complete", "prepare"):
            if target == self.current and self.params["kind"] != "restart" and self.healthy():
                return self.result(**nothing)
            if self.check_mode:
                return self.result(True, diff=diff, **nothing)
        elif self.check_mode or not self.prepared(target):
            return self.result(**nothing)
        cutover = self.cutover()
        try:
            if part in ("complete", "prepare"):
                cutover.prepare(target, self.params["kind"])
            old_tasks = cutover.old_tasks()
            if part in ("complete", "move", "traffic"):
                cutover.move(with_tasks=part != "traffic")
            elif part == "end_tasks":
                cutover.end_tasks()
            elif part == "tasks":
                cutover.take_tasks()
        except CutoverError as error:
            raise Refused(str(error), release=target, reverted=error.reverted, **cutover.log())
        switched = part not in ("prepare", "end_tasks")
        return self.result(True, release=target, switched=switched, old_tasks=old_tasks, diff=diff, **cutover.log())

    def prepared(self, target):
        """Whether this run has a cutover to this release under way here; one that is not its own is refused."""
        transition = self.state.transition
        if transition is None:
            return False
        if transition.get("run_id") != self.params["run_id"] or transition["to"] != target:
            raise Refused(
                "a cutover to %s of run %s is under way; this run prepared none to %s"
                % (transition["to"], transition.get("run_id"), target)
            )
        return True

    def watched(self):
        transition = self.state.transition
        nothing = {"release": self.current or "", "requests": 0, "errors": 0, "p95_ms": 0.0}
        if transition is None or self.check_mode:
            return self.result(**nothing)
        page = os.path.join(self.layout.shared, "maintenance", "on")
        nothing.update(
            release=transition["to"],
            notes=["the maintenance page is up, so traffic was not evaluated, and users still see the page"],
        )
        if os.path.exists(page):
            return self.result(**nothing)
        cutover = self.cutover()
        cutover.note_log()
        # The version before, without what an earlier attempt failed with.
        alone_since, switched = last_switch(self.layout) or (0.0, epoch(transition["since"]))
        before = (alone_since, min(switched, epoch(transition["since"])))
        result = watch(dict(self.params["watch"], host=self.params["health"]["host"], before=before))
        by_traffic = bool(result.breach)
        if not by_traffic:
            result = result._replace(breach=cutover.worker_problem())
        if result.breach and self.stopped_by_hand():
            cutover.finish()
            raise Refused(
                "somebody has stopped ShiftMaster during the watch (systemctl stop shiftmaster), so the traffic of %s"
                " could not be evaluated. It stays stopped: systemctl start shiftmaster starts it"
                % cutover.called(transition["to"]),
                release=transition["to"],
            )
        if by_traffic and os.path.exists(page):
            # Somebody has put it up meanwhile; its responses are no fault of the release.
            return self.result(**nothing)
        numbers = {"requests": result.requests, "errors": result.errors, "p95_ms": result.p95_ms}
        if not result.breach:
            return self.result(release=transition["to"], **numbers)
        evidence = cutover.evidence(transition["to_slot"])
        cutover.go_back("after the switch %s" % result.breach, bad=True)
        outcome = "There is no earlier release to go back to"
        if transition["from"]:
            outcome = "%s is live again" % cutover.called(transition["from"])
        words = (cutover.called(transition["to"]), result.breach, outcome, evidence)
        message = "%s broke under traffic: %s. %s\n%s" % words
        raise Refused(message, release=transition["to"], reverted=True, **cutover.log(), **numbers)

    def stopped_by_hand(self):
        """Whether somebody has stopped the entire application; a stop that is under way is waited for.

        It ends the worker first, warm, and the web processes last: people meet errors before it is done.
        """
        deadline = time.monotonic() + self.params["worker_stop_seconds"] + self.params["web_stop_seconds"] + 90
        while active_state("shiftmaster.service") == "deactivating" and time.monotonic() < deadline:
            time.sleep(0.5)
        return active_state("shiftmaster.service") == "inactive"

    def finished(self):
        if self.state.transition is None:
            return self.result(bool(self.repair()), release=self.current or "", prunable=self.prunable())
        target = self.state.transition["to"]
        if not self.check_mode:
            self.cutover().finish()
            first = "applied_when_live" not in releases.manifest(self.layout, target)
            if first and self.params["applied_migrations"] is not None:
                # Rows whose files are gone for long: a rollback to this release must not stumble over them.
                releases.amend_manifest(self.layout, target, applied_when_live=self.params["applied_migrations"])
        return self.result(True, release=target, prunable=self.prunable())

    def prunable(self):
        # With the database's migrations known fewer of them go.
        return bool(releases.prune_plan(self.layout, self.state, self.params["keep"], ()))

    def repair(self):
        """Put right what an earlier run left of the live release; returns whether anything was."""
        if self.check_mode or not self.current:
            return False
        # It was put in service by a run that failed after its switch and had nothing to go back to.
        served = self.state.status(self.current) == "ready"
        if served:
            self.state.set_status(self.current, "live")
        return bool(self.ensure_running()) or served

    def finish_begun(self):
        """Whether this host was letting go of the old release; every host had switched then, so it is finished."""
        if self.state.transition["phase"] != "finish":
            return False
        self.cutover().finish()
        return True

    def traffic_reverted(self):
        transition = self.state.transition
        if transition is None or transition.get("run_id") != self.params["run_id"]:
            return self.result(release=self.current or "")
        if not self.check_mode:
            if self.finish_begun():
                return self.result(True, release=transition["to"])
            self.cutover().revert_traffic(self.params["reason"] or "requested")
        return self.result(True, release=transition["from"] or "")

    def restored(self):
        transition = self.state.transition
        if self.check_mode:
            return self.result(bool(transition), release=(transition or {}).get("from") or "")
        if transition is None:
            notes = ["started %s again" % name for name in self.ensure_running()]
            return self.result(bool(notes), release=self.current or "", notes=notes)
        if transition.get("run_id") != self.params["run_id"]:
            notes = ["the cutover that is under way belongs to run %s" % transition.get("run_id")]
            return self.result(release=self.current or "", notes=notes)
        if self.finish_begun():
            return self.result(True, release=transition["to"])
        cutover = self.cutover()
        cutover.revert(self.params["reason"] or "requested", bad=False)
        if not self.params["background"]:
            cutover.hold_background()
        return self.result(True, release=transition["from"] or "", **cutover.log())

    def held(self):
        if not self.check_mode:
            self.cutover().hold_background()
        return self.result(True, release=self.current or "")

    def hook(self):
        target = self.one(self.params["release"])
        mine = [hook for hook in self.params["hooks"] if hook["phase"] == self.params["phase"]]
        if not mine or self.check_mode:
            return self.result(bool(mine), release=target, notes=["hook %s would run" % hook["name"] for hook in mine])
        done = releases.run_hooks(self.layout.release(target), mine, self.params["phase"], self.params["user"])
        notes = ["hook %s: %s" % (hook["name"], hook["output"] or "done") for hook in done]
        return self.result(True, release=target, notes=notes)

    def suspect(self):
        """Let the next deploy build a release again that was found, not built, in a run that failed.

        Its files may be damaged. Where something else was wrong, that costs a build.
        """
        target = self.one(self.params["release"])
        fine = target == self.current and self.healthy()
        if self.state.status(target) != "live" or self.state.is_suspect(target) or fine:
            return self.result(release=target)
        if not self.check_mode:
            self.state.set_suspect(target, True)
        return self.result(True, release=target)

    def bad(self):
        target = self.one(self.params["release"])
        if self.state.status(target) == "bad":
            return self.result(release=target)
        if not self.check_mode:
            self.state.set_status(target, "bad", self.params["reason"])
            self.audit("marked_bad", release=target, reason=self.params["reason"])
        return self.result(True, release=target)

    def absent(self):
        found = releases.resolve(self.layout, self.params["release"])
        if not found:
            return self.result(release=self.params["release"])
        if len(found) > 1:
            raise Refused("%s means several releases: %s" % (self.params["release"], ", ".join(found)))
        if found[0] in (self.layout.release_of("blue"), self.layout.release_of("green")):
            raise Refused("release %s is live, or its worker may still be finishing tasks" % found[0])
        if not self.check_mode:
            releases.discard(self.layout, self.state, found[0])
            releases.publish_static(self.layout, self.state)
            self.audit("removed", release=found[0])
        return self.result(True, release=found[0])

    def pruned(self):
        going = releases.prune_plan(self.layout, self.state, self.params["keep"], self.params["applied_migrations"])
        if not self.check_mode:
            for name in going:
                releases.discard(self.layout, self.state, name)
                self.audit("pruned", release=name)
            if going:
                releases.publish_static(self.layout, self.state)
        return self.result(bool(going), removed=going)

    def audited(self):
        if not self.check_mode:
            # Before a first deploy there is no such directory.
            os.makedirs(self.layout.state, 0o700, exist_ok=True)
            self.audit(self.params["event"], reason=self.params["reason"], release=self.params["release"] or "")
        return self.result()


STATES = (
    "query target present recovered active watched finished traffic_reverted restored held hook suspect bad absent"
    " pruned audited"
).split()
PHASES = "after_build before_migrate after_migrate before_cutover after_cutover after_rollback".split()


def argument_spec():
    names = given([], elements="str")
    build = dict_of(
        environment=given({}),
        secret_environment=given({}, no_log=True),
        files=given({}),
        requirements_file=given("requirements.txt"),
        extra_requirements=names,
        linked_directories=names,
        python=given("/usr/bin/python3", type="path"),
        check=given(True),
        collectstatic=given(True),
        salt=given(""),
    )
    health = dict_of(
        path=given("/health/deep/"),
        host=given("localhost"),
        attempts=given(5),
        delay_seconds=given(10.0),
        timeout_seconds=given(10.0),
        worker_seconds=given(60),
    )
    watched = dict_of(
        seconds=given(60),
        enough=given(1000),
        target=given("http://localhost:8000"),
        paths=given(["/"], elements="str"),
        access_log=given("/var/log/nginx/shiftmaster_access.log", type="path"),
        errors_min=given(3),
        error_percent=given(1.0),
        p95_ms=given(2000.0),
        requests_min=given(20),
    )
    phase = dict(TEXT, choices=PHASES)
    hooks = list_of(name=TEXT, phase=phase, command=TEXT, timeout_seconds=given(300), user=given(""))
    return {
        "state": given("query", choices=STATES),
        "root": given("/var/www/shiftmaster", type="path"),
        "release": {"type": "str"},
        "revision": {"type": "str"},
        "version": given(""),
        "stamp": given(""),
        "archive": {"type": "path"},
        "build": dict(build, default={}, apply_defaults=True),
        "pip_environment": given({}, no_log=True),
        "wheels_dir": given("", type="path"),
        "build_user": given("shiftmaster-build"),
        "user": given("shiftmaster"),
        "celery_application": given(""),
        "celery_queues": names,
        "beat": given(True),
        "part": given("complete", choices=["complete", "prepare", "move", "traffic", "end_tasks", "tasks"]),
        "several_hosts": given(False),
        "kind": given("deploy", choices=["deploy", "rollback", "restart"]),
        "health": dict(health, default={}, apply_defaults=True),
        "drain_grace_seconds": given(0.2),
        "drain_limit_seconds": given(30.0),
        "web_stop_seconds": given(70),
        "worker_stop_seconds": given(300),
        "watch": dict(watched, default={}, apply_defaults=True),
        "hooks": hooks,
        "phase": {"type": "str"},
        "keep": given(5),
        "applied_migrations": {"type": "list", "elements": "str"},
        "reason": given(""),
        "background": given(True),
        "event": given("note"),
        "log_dir": given("/var/log/shiftmaster", type="path"),
        "build_timeout_seconds": given(900),
        "run_id": given(""),
        "who": given(""),
    }


def main():
    module = QuietModule(
        argument_spec=argument_spec(),
        required_if=[("state", "present", ("revision",))]
        + [("state", state, ("release",)) for state in ("active", "hook", "suspect", "bad", "absent")],
        supports_check_mode=True,
    )
    params = module.params
    readonly = module.check_mode or params["state"] == "query"
    try:
        # A line of the audit log is one write: also while a interrupted run's module is still at work on this host.
        free = readonly or params["state"] == "audited"
        with contextlib.nullcontext() if free else exclusive(Layout(params["root"])):
            module.exit_json(**getattr(Operation(params, readonly), params["state"])())
    except Refused as error:
        module.fail_json(msg=str(error), **error.result)
    except (CutoverError, StateError, UnitError, ReleaseCodeError, releases.BuildError, ValueError, OSError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ". Make room there (df -h, df -i; du -xsh /var/* lists directories by size), then run this again"
        module.fail_json(msg=str(error) + (advice if full else ""), reverted=False)


if __name__ == "__main__":
    main()
