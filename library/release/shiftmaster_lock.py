#!/usr/bin/python
# The deploy lock; the mechanism is in module_utils/shiftmaster/release/lock.py.
from __future__ import annotations

DOCUMENTATION = r"""
---
module: shiftmaster_lock
short_description: Hold the lock that keeps two deploys of ShiftMaster apart
description:
  - The lock is one file on one designated host. It is put in place complete, by C(link()), so that none is ever without
    an owner, and holds the owner, the run, the controller's process, the time it was taken and its expiry.
  - An expired lock is taken over, and so is one whose controller process is known to be dead, by O(interrupted_run_id).
    The caller then recovers what the owner left (M(shiftmaster_release) with O(ignore:state=recovered)).
  - The action of the same name fills in O(controller), and adds C(owner_alive) where another run holds the lock.
options:
  state:
    description:
      - V(present) takes the lock, or moves its expiry on where O(run_id) holds it already.
      - V(absent) gives it back; the lock of another run is left alone.
      - V(query) reads it.
    type: str
    choices: [present, absent, query]
    default: query
  path: {description: The lock file., type: path, default: /var/www/shiftmaster/shared/state/lock.json}
  owner: {description: "The requester, for the message that another run shows.", type: str, default: ""}
  run_id: {description: The run that requests or releases it; required for V(present) and V(absent)., type: str}
  operation: {description: "What the run does, for the message that another run shows.", type: str, default: deploy}
  controller:
    description: Machine, pid and start time (clock ticks since boot) of the ansible process.
    type: dict
    default: {}
  ttl_seconds:
    description: After so many seconds without a refresh another run may take the lock over.
    type: int
    default: 1800
  wait_seconds: {description: How long to wait for another run's lock., type: int, default: 0}
  interrupted_run_id:
    description: The run of an owner that is known to be dead; its lock is taken over at once.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
    description: In check mode no lock is taken; RV(acquired) shows whether it could be.
  diff_mode:
    support: none
    description: A lock is no configuration.
notes:
  - A lock is a run's own, passing state and no configuration of the host; so C(changed) is true only where a lock was
    taken over from a dead owner.
"""

EXAMPLES = r"""
- name: Acquire the lock
  shiftmaster_lock:
    state: present
    owner: ops@controller
    run_id: "{{ run_id }}"
    wait_seconds: 60
"""

RETURN = r"""
acquired: {description: Whether this run holds the lock now., returned: for present, type: bool}
holder: {description: "The owner of the lock, or an empty dict.", returned: always, type: dict}
stale: {description: Whether the lock that is held has expired., returned: for present and query, type: bool}
taken_over: {description: The dead owner whose lock was taken over., returned: for present, type: dict}
"""

import datetime

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.shiftmaster.host import points
from ansible.module_utils.shiftmaster.host.quiet import given
from ansible.module_utils.shiftmaster.release import lock


def sentence(holder):
    """Describe the holder of a lock, with its begin and end."""
    if not holder:
        return ""

    def when(seconds):
        return datetime.datetime.fromtimestamp(float(seconds)).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")

    return "%s holds the lock for its %s since %s; it expires at %s (run %s)" % (
        holder.get("owner") or "somebody",
        holder.get("operation"),
        when(holder.get("since", 0)),
        when(holder.get("expires", 0)),
        holder.get("run_id"),
    )


def run(params, check_mode):
    """Return the module's result."""
    state, path = params["state"], params["path"]
    if state == "absent":
        if not check_mode:
            lock.release(path, params["run_id"])
        return {"changed": False, "holder": lock.read(path) or {}}
    if state == "query" or check_mode:
        holder = lock.read(path)
        stale = bool(holder) and lock.expired(holder)
        free = not holder or stale or holder.get("run_id") in (params["run_id"], params["interrupted_run_id"] or None)
        outcome = lock.Outcome(state == "present" and free, holder, None)
    else:
        words = ("owner", "run_id", "operation", "controller", "ttl_seconds", "wait_seconds", "interrupted_run_id")
        outcome, stale = lock.acquire(path, *(params[word] for word in words)), False
        if outcome.acquired:
            points.reach("lock")
    return {
        "changed": outcome.taken_over is not None,
        "acquired": outcome.acquired,
        "holder": outcome.holder or {},
        "holder_text": sentence(outcome.holder),
        "stale": stale,
        "taken_over": outcome.taken_over or {},
    }


def main():
    module = AnsibleModule(
        argument_spec={
            "state": given("query", choices=["present", "absent", "query"]),
            "path": given("/var/www/shiftmaster/shared/state/lock.json", type="path"),
            "owner": given(""),
            "run_id": {"type": "str"},
            "operation": given("deploy"),
            "controller": given({}),
            "ttl_seconds": given(1800),
            "wait_seconds": given(0),
            "interrupted_run_id": given(""),
        },
        required_if=[("state", "present", ("run_id",)), ("state", "absent", ("run_id",))],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run(module.params, module.check_mode))
    except FileNotFoundError:
        module.fail_json(msg="nothing was deployed here yet: there is no directory for %s" % module.params["path"])
    except OSError as error:
        module.fail_json(msg="the lock %s cannot be used: %s" % (module.params["path"], error))


if __name__ == "__main__":
    main()
