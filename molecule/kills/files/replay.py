"""A run of deploy.yml or rollback.yml on its host alone: the module calls of a real run, in the same order.

A run with ANSIBLE_KEEP_REMOTE_FILES leaves each call that it makes, with its arguments. The machine that runs ansible,
which takes most of a run's time, has no part in what a killed run leaves on the host.

  ansible-playbook keep                take the calls that a run has left
  ansible-playbook deploy OPTIONS      a run, from its lock to its end
  ansible-playbook rollback OPTIONS
  ansible-playbook look OPTIONS        why a deploy would have something to do, as JSON

OPTIONS is JSON: keep and hooks as the modules take them, salt (another configuration), watch_seconds; to and reverse of
a rollback; take_over, the run whose lock is taken over. This file has to be called ansible-playbook: by that name a run
finds its own process (module_utils/shiftmaster/release/lock.py).
"""

import glob
import json
import os
import secrets
import shutil
import subprocess
import sys
import time

CALLS = "/root/replay/calls"
RELEASES = "/var/www/shiftmaster/releases/"
WHO = "replay"
# By the kind of a call or its module: whose arguments it takes.
LIKE = {"release": "query", "migrations": "plan", "reverse": "apply", "present": "present.build"}


def keep():
    """Sort what a run has left by module and state; the first of a kind is kept. Prints all of them in their order."""
    shutil.rmtree(CALLS, ignore_errors=True)
    for path in sorted(glob.glob("/root/.ansible/tmp/*/AnsiballZ_shiftmaster_*.py"), key=os.path.getmtime):
        module = os.path.basename(path)[len("AnsiballZ_") : -len(".py")]
        subprocess.run([sys.executable, path, "explode"], check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(os.path.dirname(path), "debug_dir", "args"), encoding="utf-8") as stream:
            arguments = json.load(stream)["ANSIBLE_MODULE_ARGS"]
        name = module + "." + arguments.get("state", arguments.get("mode", ""))
        if arguments.get("archive"):
            name += ".build"
        print(name)
        if not os.path.exists(os.path.join(CALLS, module)):
            shutil.copytree(os.path.dirname(path), os.path.join(CALLS, module))
        if not os.path.exists(os.path.join(CALLS, name)):
            shutil.copy(os.path.join(os.path.dirname(path), "debug_dir", "args"), os.path.join(CALLS, name))


class Run:
    def __init__(self, options, operation):
        self.options, self.operation = options, operation
        self.id = "%s-%s" % (time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), secrets.token_hex(3))

    def call(self, module, kind, /, **changes):
        """Call a module with the arguments of the recorded run and these changes; a failure ends this run.

        A call that the recorded run had no reason for takes the arguments of another one.
        """
        like = os.path.join(CALLS, "shiftmaster_%s.%s" % (module, kind))
        if not os.path.exists(like):
            like = os.path.join(CALLS, "shiftmaster_%s.%s" % (module, LIKE.get(kind, LIKE[module])))
        module = "shiftmaster_" + module
        with open(like, encoding="utf-8") as stream:
            arguments = json.load(stream)
        given = arguments["ANSIBLE_MODULE_ARGS"]
        given["mode" if module == "shiftmaster_migrations" else "state"] = kind.split(".")[0]
        given.update(changes)
        for name in ("run_id", "who"):
            if name in given:
                given[name] = {"run_id": self.id, "who": WHO}[name]
        if "build" in given and "salt" in self.options:
            given["build"]["salt"] = self.options["salt"]
        if "watch" in given:
            given["watch"]["seconds"] = self.options.get("watch_seconds", 3)
        for name in ("hooks", "keep"):
            if name in given and name in self.options:
                given[name] = self.options[name]
        directory = os.path.join(CALLS, module)
        with open(os.path.join(directory, "debug_dir", "args"), "w", encoding="utf-8") as stream:
            json.dump(arguments, stream)
        done = subprocess.run(
            [sys.executable, os.path.join(directory, "AnsiballZ_%s.py" % module), "execute"],
            stdout=subprocess.PIPE,
            check=False,
        )
        result = json.loads(done.stdout)
        print("%s.%s %s" % (module, kind, "changed" if result.get("changed") else "ok"), flush=True)
        if result.get("failed"):
            sys.exit("FAILED %s" % result["msg"])
        return result

    # roles/release/tasks/lock.yml, unlock.yml
    def lock(self):
        # As the action shiftmaster_lock does.
        sys.path.insert(0, os.path.join(CALLS, "shiftmaster_lock", "debug_dir"))
        from ansible.module_utils.shiftmaster.release import lock as controller

        options = {"controller": controller.controller_identity(), "operation": self.operation, "owner": WHO}
        lock = self.call("lock", "present", **options)
        if not lock["acquired"]:
            holder = lock["holder"]
            alive = controller.controller_alive(holder["controller"])
            dead = holder["run_id"] if alive is False else self.options.get("take_over", "")
            lock = self.call("lock", "present", interrupted_run_id=dead, **options)
        if not lock["acquired"]:
            sys.exit("FAILED %s" % lock["holder_text"])
        if lock["taken_over"]:
            self.call("release", "audited", event="lock_taken_over", reason=json.dumps(lock["taken_over"]))

    def unlock(self):
        self.call("lock", "absent")

    # plan.yml
    def plan(self, **options):
        """Query the live release, and the reasons for which a deploy would have something to do."""
        self.left = self.call("release", "query", **options)
        reasons = self.left.get("pending_changes", [])
        if "pending_changes" in self.left and not reasons:
            plan = self.call("migrations", "plan", release=RELEASES + self.left["release"], target_release=None)
            reasons = ["%s.%s is pending" % (one["app"], one["name"]) for one in plan["pending"]]
        return reasons

    def look(self):
        return self.plan()

    # recover.yml
    def recover(self):
        return self.left["unfinished"] and self.call("release", "recovered", background=True)["changed"]

    # build.yml
    def build(self, recovered):
        found = self.call("release", "present", archive=None)["release"] if recovered else self.left["found"]
        if not found:
            found = self.call("release", "present.build", stamp=self.id.split("-")[0])["release"]
        return found

    # migrate.yml
    def migrate(self, name, recovered):
        release, current = RELEASES + name, RELEASES + self.left["current"]
        plan = self.call("migrations", "plan", release=release, target_release=current)
        if release != current and plan["ahead"]:
            compare = self.call("migrations", "compare", release=current, target_release=release)
            if not compare["safe_to_rollback"]:
                sys.exit("FAILED %s" % compare["reason"])
        if not plan["allowed"]:
            sys.exit("FAILED %s" % plan["reason"])
        applied = plan["applied"]
        if plan["pending"] or recovered:
            if plan["pending"]:
                own = plan["unchanged"]
                if not own:
                    whose = self.call("migrations", "compare", release=None, target_release=current)
                    own = whose["safe_to_rollback"] and not whose["unapplied"]
                dump = {"name": "before-" + name, "release": self.left["current"] if own else ""}
                self.call("dump", "present", **dump)
            applied = self.call("migrations", "apply", release=release, run_handlers=recovered)["applied"]
        return applied

    # cutover.yml, finish.yml
    def switch(self, release, applied):
        active = self.call("release", "active", release=release, kind=self.operation)
        subprocess.run(["systemctl", "enable", "--quiet", "--now", "shiftmaster.service"], check=True)
        if active["changed"]:
            print("watch", flush=True)
            self.call("release", "watched")
        if self.call("release", "finished", applied_migrations=applied)["prunable"]:
            self.call("release", "pruned", applied_migrations=applied)

    def deploy(self):
        self.lock()
        if self.plan():
            recovered = self.recover()
            name = self.build(recovered)
            self.switch(name, self.migrate(name, recovered))
        self.unlock()

    # rollback.yml; what reverse reverts is additions: the older code has run next to them.
    def rollback(self):
        self.lock()
        self.plan(revision=None)
        self.recover()
        chosen = self.call("release", "target", release=self.options["to"], revision=None)
        release, current = RELEASES + chosen["release"], RELEASES + chosen["current"]
        compare = self.call("migrations", "compare", release=current, target_release=release)
        if not compare["safe_to_rollback"] or compare["unapplied"]:
            sys.exit("FAILED %s" % compare["reason"])
        self.switch(chosen["release"], compare["applied"])
        if self.options.get("reverse"):
            self.call("migrations", "reverse", release=current, target_release=release)
        self.unlock()


def main():
    if sys.argv[1] == "keep":
        keep()
        return
    run = Run(json.loads(sys.argv[2]), sys.argv[1])
    result = getattr(run, sys.argv[1])()
    if result is not None:
        print(json.dumps(result))


main()
