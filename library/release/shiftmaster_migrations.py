#!/usr/bin/python
"""Ansible module: plan, apply, compare and reverse Django migrations with a release's own code."""

from __future__ import annotations

DOCUMENTATION = r"""
module: shiftmaster_migrations
short_description: Plan, apply, compare and reverse the Django migrations of a release
description:
  - Runs the code of a release directory (its interpreter, its environment, the application's user) to look at its
    migrations and at the rows of C(django_migrations), and to change the database.
  - Each migration is classed by reading its file. V(expand) only adds or loosens, so the code from before it works
    on; V(contract) takes something away from that code, or what it does cannot be known; V(irreversible) is as
    contract and cannot be unapplied either.
  - An author overrules the reader with the comment C(# shiftmaster:) followed by a class in the migration's file, or
    with the attribute C(shiftmaster_class) of its class. V(expand) is ignored for an operation that removes or
    renames what the older code names.
  - Migrations run under a session-level advisory lock of PostgreSQL, held by the migrating process itself on a second
    connection, and with C(lock_timeout). SQLite has neither; there they are skipped.
  - Only the database C(default) is looked at.
options:
  mode:
    description:
      - V(plan) lists what is pending, with classes, and whether it may be applied.
      - V(apply) applies what is pending, unless a class is refused.
      - V(compare) shows whether the code of O(target_release) can run on the database as it is; a rollback must run it.
      - V(reverse) unapplies, with the code of O(release), everything that O(target_release) does not know. What it
        removes is lost, so it needs maintenance mode and a backup before it.
    type: str
    choices: [plan, apply, compare, reverse]
    required: true
  release:
    description:
      - Directory of the release whose code runs. For V(reverse) it is the newer one.
      - For V(compare) it is optional, and used only to read the rows where the code of O(target_release) does not run.
      - Required for V(plan), V(apply) and V(reverse).
    type: path
  target_release:
    description:
      - Directory of the older release, for V(compare) and V(reverse).
      - For V(plan) it is optional, the release that is live, and only its manifest is read.
    type: path
  allow_contract:
    description: Whether V(apply) may apply contract and irreversible migrations. Only true where no older code is live.
    type: bool
    default: false
  first_deploy:
    description: Whether no release is live yet. Then every class may be applied.
    type: bool
    default: false
  run_handlers:
    description:
      - Whether V(apply) runs Django's C(migrate) also where nothing is pending. Its signal handlers then make the
        permissions and content types that a run did not reach because it was killed after its last migration.
      - What handlers do is not seen, so it does not count as a change.
    type: bool
    default: false
  lock_wait_seconds: {description: How long to wait for another process that migrates., type: int, default: 60}
  lock_timeout_seconds:
    description: How long a statement of a migration waits for a lock on a table. Every later statement on that table
      waits as long, so keep it short.
    type: float
    default: 5
  timeout_seconds:
    description:
      - How long all of it may take. After that the process is killed, and the server rolls back what was not finished.
    type: int
    default: 1800
  user:
    description: Who runs the release's code. An empty string stands for the user that the module runs as.
    type: str
    default: shiftmaster
attributes:
  check_mode:
    description: V(apply) and V(reverse) return what they would do and change nothing.
    support: full
  diff_mode:
    description: The migrations by which the rows of C(django_migrations) change, with their operations.
    support: full
notes:
  - The advisory lock needs a connection to PostgreSQL itself. A connection through a pooler is recognised and refused.
  - A run that was killed, or that failed, is repeated as it is, in the same or the other direction. A migration that is
    no transaction continues after its last operation that is done; the table C(shiftmaster_migration_progress) knows it
    and is there for as long as such a migration is half done. An operation shares a transaction with that mark where
    PostgreSQL allows it; a C(RunPython) and a C(RunSQL) of several statements are run again from their beginning.
  - Indexes that C(CREATE INDEX CONCURRENTLY) of an interrupted migration left, complete or not, are dropped and built
    again.
"""

EXAMPLES = r"""
- name: Report the changes of a new release
  shiftmaster_migrations:
    mode: plan
    release: /var/www/shiftmaster/releases/20250801T120000Z-0a1b2c3
  register: plan

- name: Revert the schema, in maintenance mode and after a backup
  shiftmaster_migrations:
    mode: reverse
    release: /var/www/shiftmaster/releases/20250801T120000Z-0a1b2c3
    target_release: /var/www/shiftmaster/releases/20250701T120000Z-9f8e7d6
"""

RETURN = r"""
pending:
  description: Migrations that the release holds and the database does not, in the order of application.
  returned: plan and apply
  type: list
  elements: dict
  sample:
    - {app: shifts, name: 0002_roster_note, class: expand, reversible: true, atomic: true, reasons: [], warnings: [],
       describe: ["Add field note to roster"]}
unchanged: {description: Whether the database has what O(target_release) went live with., returned: plan, type: bool}
ahead:
  description: Migrations that the database holds and the target release (at V(plan) O(release)) does not, with
    C(found_in), the retained release that holds the file.
  returned: plan, compare and reverse
  type: list
  elements: dict
unapplied:
  description: Migrations that the target release holds and the database does not, or only half, as C(app.name).
  returned: compare
  type: list
  elements: str
half: {description: What an earlier run left half done., returned: "plan, apply and compare", type: list, elements: str}
applied: {description: "All rows of C(django_migrations), at the end.", returned: always, type: list, elements: str}
done: {description: "What this run applied or unapplied.", returned: apply and reverse, type: list, elements: str}
repaired: {description: What of an interrupted run was cleaned up., returned: apply, type: list, elements: str}
worst_class: {description: "The gravest class; V(expand) for none.", returned: always, type: str, sample: contract}
allowed: {description: Whether what is pending may be applied., returned: plan and apply, type: bool}
safe_to_rollback:
  description: Whether the code of the target release can run on the database as it is. After plan and apply, whether
    the code from before could, once everything pending is applied.
  returned: always
  type: bool
reason:
  description: A sentence for people that shows why, and names the migrations.
  returned: always
  type: str
  sample: "The live code now may not work after shifts.0003_drop (contract: RemoveField roster.note: the old code
    still selects the column note of roster)."
locking: {description: "What they lock, and for what.", returned: plan and apply, type: list, elements: str}
loses: {description: What V(reverse) cannot bring back., returned: reverse, type: list, elements: str}
failure:
  description: Where and why it failed, with C(kind), C(message), C(app), C(name), C(operation), C(operations_done),
    C(half_applied), C(hint), C(sqlstate), C(blockers), C(invalid_indexes).
  returned: on failure inside the database
  type: dict
"""

import os  # noqa: E402

from ansible.module_utils.basic import AnsibleModule  # noqa: E402
from ansible.module_utils.shiftmaster.host.printable import printable, printable_tree  # noqa: E402
from ansible.module_utils.shiftmaster.host.quiet import TEXT, given  # noqa: E402
from ansible.module_utils.shiftmaster.release import django_driver, migrations  # noqa: E402
from ansible.module_utils.shiftmaster.release.releasecode import Driver, ReleaseCode, ReleaseCodeError  # noqa: E402

PLAN_SECONDS = 120
GRACE_SECONDS = 5  # How much later than this module's own limit the driver ends by itself.
PUBLIC = "app name class reversible atomic reasons warnings loses describe found_in annotation".split()
# Characters of a message.
MESSAGE = 8000


HEADERS = {"before_header": "django_migrations", "after_header": "django_migrations"}


class Refused(Exception):
    """Something must not or could not be done; details go into the module's result."""

    def __init__(self, message, **details):
        # They quote the output of the release's code.
        super().__init__(printable(message)[:MESSAGE])
        self.details = printable_tree(details)


def public(records):
    """Leave out what only the reader needs."""
    return [{name: record[name] for name in PUBLIC if name in record} for record in records]


def listing(records):
    """Write migrations as lines, for a diff."""
    lines = []
    for record in records:
        lines.append("%s (%s)" % (migrations.key(record), record["class"]))
        lines.extend("    %s" % text for text in record.get("describe", ()))
    return "".join(line + "\n" for line in lines)


def names(rows):
    return [migrations.key(row) for row in rows]


class Runner:
    """The four modes, over the drivers of one or two releases."""

    def __init__(self, options, check_mode=False, driver=Driver):
        self.options = options
        self.check_mode = check_mode
        self.driver = driver
        self.drivers = {}  # By release: loading its code takes longer than what is asked of it.

    def call(self, release, request, timeout):
        request = dict(request, limit_seconds=timeout + GRACE_SECONDS)
        if release not in self.drivers:
            seconds = PLAN_SECONDS + self.options["timeout_seconds"]
            code = ReleaseCode(release, self.options["user"] or None)
            self.drivers[release] = self.driver(code, django_driver, None, seconds)
        response = self.drivers[release].call(request, timeout)
        if "failure" in response:
            failure, done, repaired = response["failure"], names(response["done"]), response["repaired"]
            message = " ".join(filter(None, (failure["message"], failure.get("hint"))))
            changed, applied = bool(done or repaired or failure.get("half_applied")), names(response.get("applied", ()))
            raise Refused(message, failure=failure, done=done, repaired=repaired, applied=applied, changed=changed)
        return response

    def read(self, release, sources=False):
        return self.call(
            release, {"op": "plan", "sources": sources}, min(PLAN_SECONDS, self.options["timeout_seconds"])
        )

    def timing(self):
        return {name: self.options[name] for name in ("lock_wait_seconds", "lock_timeout_seconds")}

    def run(self):
        try:
            return getattr(self, self.options["mode"])()
        finally:
            for driver in self.drivers.values():
                driver.close()

    def plan(self):
        response = self.read(self.options["release"], sources=True)
        pending = migrations.plan(response)
        allowed, reason = migrations.deploy_result(
            pending, self.options["allow_contract"], self.options["first_deploy"]
        )
        worst = migrations.worst_class(pending)
        live = self.options["target_release"]
        lived_with = migrations.applied_when_live(live) if live else []
        return {
            "changed": False,
            "pending": public(pending),
            "ahead": public(self._compared(response, self.options["release"])["ahead"]),
            "unchanged": bool(lived_with)
            and not response.get("half")
            and set(lived_with) == set(names(response["applied"])),
            "applied": names(response["applied"]),
            "half": names(response.get("half", ())),
            "worst_class": worst,
            "allowed": allowed,
            "safe_to_rollback": worst == migrations.EXPAND,
            "reason": reason,
            "locking": ["%s: %s" % (migrations.key(r), warning) for r in pending for warning in r["warnings"]],
            "diff": dict(HEADERS, before="", after=listing(pending)),
        }

    def apply(self):
        result = self.plan()
        result.update(done=[], repaired=[])
        if not result["allowed"]:
            raise Refused(result["reason"], **{k: v for k, v in result.items() if k != "diff"})
        handlers = self.options["run_handlers"]
        if self.check_mode or not (result["pending"] or handlers):
            return dict(result, changed=bool(result["pending"]))
        expected = [[record["app"], record["name"]] for record in result["pending"]]
        request = dict(self.timing(), op="apply", handlers=handlers, expected=expected)
        response = self.call(self.options["release"], request, self.options["timeout_seconds"])
        done, repaired, applied = names(response["done"]), response["repaired"], names(response["applied"])
        return dict(result, changed=bool(done or repaired), done=done, repaired=repaired, applied=applied)

    def _target(self):
        """Return {applied, known} as the target release sees them, and a warning where it had to be read from files."""
        target = self.options["target_release"]
        try:
            return self.read(target), []
        except (ReleaseCodeError, Refused) as error:
            if not self.options["release"]:
                raise
            found = self.read(self.options["release"])
            warning = "The code of %s could not be queried (%s), so its migrations were read from its files."
            known = migrations.known_statically(target)
            rows = {"applied": found["applied"], "half": found.get("half", ()), "known": known}
            return rows, [warning % (os.path.basename(target), error)]

    def _root(self):
        return os.path.dirname(os.path.realpath(self.options["target_release"]))

    def _compared(self, response, release):
        """Compare the database with the release whose code has answered."""
        # What is half done is neither there for the code that needs it, nor away for the code that must do without.
        known, half = set(names(response["known"])), list(response.get("half", ()))
        beyond = [row for row in half if migrations.key(row) not in known]
        root = os.path.dirname(os.path.realpath(release))
        result = migrations.compare(
            dict(response, applied=response["applied"] + beyond), root, migrations.applied_when_live(release)
        )
        missing = [row for row in half if migrations.key(row) in known]
        return dict(result, unapplied=sorted({*names(result["unapplied"]), *names(missing)}))

    def compare(self):
        response, warnings = self._target()
        result = self._compared(response, self.options["target_release"])
        return {
            "changed": False,
            "ahead": public(result["ahead"]),
            "unapplied": result["unapplied"],
            "half": names(response.get("half", ())),
            "applied": names(response["applied"]),
            "worst_class": migrations.worst_class(result["ahead"]),
            "safe_to_rollback": result["safe_to_rollback"],
            "reason": result["reason"],
            "warnings": warnings,
            "known": [[m["app"], m["name"]] for m in response["known"]],
        }

    def reverse(self):
        result = self.compare()
        tolerated = set(migrations.applied_when_live(self.options["target_release"]))
        keep = result.pop("known") + [name.split(".", 1) for name in sorted(tolerated)]
        request = dict(self.timing(), op="reverse", keep=keep, dry_run=self.check_mode)
        ahead, release = result["ahead"], self.options["release"]
        # A squashed migration stands for those that it replaces.
        held = {migrations.key(row) for one in migrations.known_statically(release) for row in [one, *one["replaces"]]}
        # A migration of a release that was never live, complete or not: that release alone has its code.
        for record in ahead:
            name = migrations.key(record)
            if (name in result["half"] or name not in held) and record.get("found_in"):
                release = os.path.join(self._root(), record["found_in"])
        response = self.call(release, request, self.options["timeout_seconds"])
        done = names(response["done"])
        if self.check_mode:
            would = names(response["pending"])
            changed, reason = bool(would), "Would unapply %s." % (", ".join(would) or "nothing")
        else:
            changed, reason = bool(done), "Unapplied %s." % (", ".join(done) or "nothing: the database is not ahead")
        result.update(
            changed=changed,
            done=done,
            repaired=response["repaired"],
            applied=names(response["applied"]),
            reason=reason,
            loses=["%s: %s" % (migrations.key(r), lost) for r in ahead for lost in r.get("loses", ())],
            diff=dict(HEADERS, before=listing(ahead), after=""),
        )
        if not self.check_mode:
            result["safe_to_rollback"] = True
        if response.get("warning"):
            result["warnings"] = result["warnings"] + [response["warning"]]
        return result


def main():
    module = AnsibleModule(
        argument_spec={
            "mode": dict(TEXT, choices=["plan", "apply", "compare", "reverse"]),
            "release": {"type": "path"},
            "target_release": {"type": "path"},
            "allow_contract": given(False),
            "first_deploy": given(False),
            "run_handlers": given(False),
            "lock_wait_seconds": given(60),
            "lock_timeout_seconds": given(5.0),
            "timeout_seconds": given(1800),
            "user": given("shiftmaster"),
        },
        required_if=[
            ("mode", "plan", ("release",)),
            ("mode", "apply", ("release",)),
            ("mode", "compare", ("target_release",)),
            ("mode", "reverse", ("release", "target_release")),
        ],
        supports_check_mode=True,
    )
    for name in ("release", "target_release"):
        if module.params[name] and not os.path.isdir(module.params[name]):
            module.fail_json(msg="%s is no release: the directory does not exist." % module.params[name])
    try:
        # The release's code chooses names and descriptions.
        result = printable_tree(Runner(module.params, module.check_mode).run())
    except Refused as error:
        module.fail_json(msg=str(error), **error.details)
    except (ReleaseCodeError, KeyError) as error:
        module.fail_json(msg=str(error))
    for warning in result.pop("warnings", ()):
        module.warn(warning)
    result.pop("known", None)
    if not module._diff:
        result.pop("diff", None)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
