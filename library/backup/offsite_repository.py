#!/usr/bin/python
"""Module `offsite_repository`."""

from __future__ import annotations

DOCUMENTATION = r"""
module: offsite_repository
short_description: Prune a repository of restic by the time at which its snapshots arrived, or quarantine later ones
description:
  - A client that was taken over chooses every date, host and tag inside of its snapshots. C(restic forget) goes by
    these; with dates in the future it removes all good ones. This module goes by the times of the files, which only the
    server sets.
  - Before it removes anything, restic reads all data. Nothing is removed where a pack does not hold what an index
    names.
  - With O(received_after) it moves keys, indexes, locks and snapshots that arrived later into a directory next to the
    repository. The server lets its clients replace nothing, so what is left is the repository as it was at that time.
  - Run it as the user of the server, while the server is stopped.
options:
  path: {description: Directory of the repository., type: path, required: true}
  password: {description: Password of the repository., type: str, required: true}
  previous_passwords: {type: list, elements: str, default: [], description: Passwords that are to open it no more.}
  received_after: {description: A time such as 20261120000000Z; empty prunes., type: str, default: ""}
  keep_days: {description: Snapshots that arrived within so many days stay., type: int, required: true}
  keep_months: {type: int, required: true, description: "Of each of so many months the first snapshot of files stays.
    Those of the database hold a repository of its own, with all dumps that are kept, so that the newest one is
    enough."}
  keep_years: {description: And the first of each of so many years., type: int, required: true}
attributes:
  check_mode: {description: Reports what would be removed., support: full}
  diff_mode: {description: Shows nothing., support: none}
"""

EXAMPLES = r"""
- name: Prune the off-site copy
  become: true
  become_user: restic-rest-server
  offsite_repository:
    path: /srv/shiftmaster-offsite/shiftmaster
    password: "{{ vault_backup_offsite_password }}"
    keep_days: 30
    keep_months: 12
    keep_years: 7
"""

RETURN = r"""
removed: {returned: always, type: list, elements: str, description: "Ids of the removed snapshots, or quarantined
  paths."}
"""

import calendar
import json
import os
import time

from ansible.module_utils.shiftmaster.backup import retention
from ansible.module_utils.shiftmaster.host.quiet import QuietModule

DAY = 86400
# So many of the newest stay whatever their age: nothing goes while nothing arrives.
NEWEST = 7
TIME = "%Y%m%d%H%M%SZ"
# What decides how a repository is read. Packs (data/) are found by indexes alone.
DECIDE = ("keys", "index", "locks", "snapshots")


def seconds_of(text):
    """Return a time such as 20261120000000Z as seconds. Raises ValueError."""
    return calendar.timegm(time.strptime(text, TIME))


def arrivals(directory):
    """Return {name: seconds} of the files in a directory."""
    return {one.name: one.stat().st_mtime for one in os.scandir(directory) if one.is_file(follow_symlinks=False)}


def going(listed, arrived, now, keep):
    """Return ids of the snapshots that may go; listed is the output of restic, arrived {id: seconds}."""
    kinds = {}
    for snapshot in listed:
        # Each part is a kind of its own: the first snapshot of a month is one of files, and one of the configuration.
        tags = frozenset(tag for tag in snapshot.get("tags") or () if not tag.startswith("run="))
        kinds.setdefault((snapshot["hostname"], tags), []).append((arrived[snapshot["id"]], snapshot["id"]))
    found = []
    for (_host, tags), ones in kinds.items():
        database = "database" in tags
        kept = {name for _when, name in sorted(ones)[-NEWEST:]}
        kept |= {name for when, name in ones if when > now - keep["days"] * DAY}
        kept |= set(() if database else retention.first_of_each(ones, now, keep["months"], keep["years"]))
        found += [name for _when, name in sorted(ones) if name not in kept]
    return found


def quarantine(path, after, check_mode):
    """Move what arrived after a time out of the repository; return the paths. Without an earlier key the keys stay."""
    kept_data, moved = "%s.after-%s" % (path, time.strftime(TIME, time.gmtime(after))), []
    for kind in DECIDE:
        arrived = arrivals(os.path.join(path, kind))
        if kind == "keys" and all(when > after for when in arrived.values()):
            continue
        for name, when in sorted(arrived.items()):
            if when > after:
                moved.append(os.path.join(kind, name))
                if not check_mode:
                    os.makedirs(os.path.join(kept_data, kind), mode=0o700, exist_ok=True)
                    os.rename(os.path.join(path, kind, name), os.path.join(kept_data, kind, name))
    return moved


def keys_back(path, after):
    """Bring quarantined keys back: that of a password which was changed after that time."""
    kept_data = os.path.join("%s.after-%s" % (path, time.strftime(TIME, time.gmtime(after))), "keys")
    for name in os.listdir(kept_data) if os.path.isdir(kept_data) else ():
        os.rename(os.path.join(kept_data, name), os.path.join(path, "keys", name))


def main():
    module = QuietModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "password": {"type": "str", "required": True, "no_log": True},
            "previous_passwords": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "received_after": {"type": "str", "default": ""},
            "keep_days": {"type": "int", "required": True},
            "keep_months": {"type": "int", "required": True},
            "keep_years": {"type": "int", "required": True},
        },
        supports_check_mode=True,
    )
    path, after, keys = module.params["path"], module.params["received_after"], []

    def run(password, *words):
        environment = {"RESTIC_REPOSITORY": path, "HOME": "/nonexistent", "RESTIC_PASSWORD": password}
        return module.run_command(["restic", "--quiet", "--no-cache", *words], environ_update=environment)

    def opening():
        """The first password that opens the repository, None where none does."""
        passwords = [module.params["password"], *module.params["previous_passwords"]]
        found = (one for one in passwords if run(one, "cat", "config", "--no-lock")[0] == 0)
        return next(found, None)

    def restic(*words, password=None):
        code, output, errors = run(password or module.params["password"], *words)
        if code and password and not after:
            return "[]"
        if code and after:
            module.fail_json(
                msg="restic %s failed: %s What arrived after %s is quarantined, and the index has to be made "
                "again: run it again with received_after=%s" % (words[0], errors.strip()[-500:], after, after)
            )
        if code:
            times = [(when, kind, name) for kind in DECIDE for name, when in arrivals(os.path.join(path, kind)).items()]
            when, kind, name = max(times, default=(0, "keys", "none"))
            module.fail_json(
                msg="restic %s failed, and nothing was removed: %s The newest file, %s/%s, arrived at %s. A client that"
                " was taken over may have sent what restic cannot read; received_after quarantines what arrived later."
                % (words[0], errors.strip()[-500:], kind, name, time.strftime(TIME, time.gmtime(when)))
            )
        return output

    try:
        if not os.path.isdir(path):
            module.exit_json(changed=False, removed=[], msg="%s: no backup has arrived yet" % path)
        if after:
            moved = quarantine(path, seconds_of(after), module.check_mode)
            if not module.check_mode:
                password = opening()
                if password is None:
                    keys_back(path, seconds_of(after))
                    password = opening()
                # Each prune writes new indexes in place of the old ones. Also where nothing is moved: an earlier run
                # may have been killed before it.
                restic("repair", "index", password=password)
            module.exit_json(changed=bool(moved), removed=moved, msg="%s: %d files quarantined" % (path, len(moved)))
        arrived = arrivals(os.path.join(path, "snapshots"))
        if not module.check_mode:
            # No client is connected, and a lock of one that was killed stays for ever.
            restic("unlock", "--remove-all")
        listed = json.loads(restic("snapshots", "--json", "--no-lock"))
        # After today's password has opened it.
        for password in module.params["previous_passwords"]:
            opened = json.loads(restic("key", "list", "--json", "--no-lock", password=password))
            keys += [one["id"] for one in opened if one["current"]]
        for key in keys if not module.check_mode else ():
            restic("key", "remove", key)
        keep = {name: module.params["keep_" + name] for name in ("days", "months", "years")}
        found = going(listed, arrived, time.time(), keep)
        if found and not module.check_mode:
            # Of two packs that hold the same data, prune removes one. A client that was taken over can add packs of
            # anything, and an index that names the data of good ones in them.
            restic("check", "--read-data")
            restic("forget", "--prune", *found)
    except (OSError, KeyError, TypeError, ValueError) as error:
        module.fail_json(msg="%s was not pruned: %s" % (path, error))
    message = "%s: %d of %d snapshots and %d earlier passwords removed" % (path, len(found), len(listed), len(keys))
    module.exit_json(changed=bool(found or keys), removed=found, msg=message)


if __name__ == "__main__":
    main()
