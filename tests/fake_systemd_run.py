"""A stub of systemd-run for machines without systemd: user, environment, directory and end of a transient unit.

It knows nothing of sandboxes; those are tested in scenario hostile.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "module_utils"))
from shiftmaster.host import envfile

PR_SET_CHILD_SUBREAPER = 36


def main(words: list) -> int:
    split = words.index("--")
    properties = [word[len("--property=") :].split("=", 1) for word in words[:split] if word.startswith("--property=")]
    options = dict(properties)
    entry = pwd.getpwnam(options["User"])
    with open(options["EnvironmentFile"], encoding="utf-8") as stream:
        environment = envfile.parse(stream.read())
    argv = [word.replace("$$", "$") for word in words[split + 1 :]]
    # It adopts the processes of its children.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(options["WorkingDirectory"])
        os.setgroups([entry.pw_gid])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
        os.nice(int(options.get("Nice", 0)))
        os.execvpe(argv[0], argv, environment)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as stream:
            left = [int(pid) for pid in stream.read().split()]
        if not left:
            return code if code >= 0 else 1
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
