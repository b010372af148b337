from __future__ import annotations

import atexit
import os
import re
import time
import zoneinfo
from pathlib import Path

import ansible.module_utils
from ansible import constants, context
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.host.action import runnable
from ansible.module_utils.shiftmaster.host.printable import printable_tree as printable
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES, language_of
from ansible.module_utils.shiftmaster.reports.causes import LONGEST, japanese
from ansible.module_utils.shiftmaster.reports.run_output import Log, Screen, lines_of, message_lines, text_lines
from ansible.module_utils.shiftmaster.reports.run_texts import (
    HINTS,
    HINTS_UNREACHABLE,
    PLAYS,
    RELEASE_FILES,
    TEXTS,
    phase_of,
    phase_of_play,
)  # fmt: skip

DOCUMENTATION = """
name: phases
type: stdout
short_description: One line for each phase of a run, everything else in a log file
description:
  - Shows one line for each phase with its duration and changes, and failures once, at the end.
  - The log file contains the output of P(ansible.builtin.default#callback). What C(no_log) hides is in neither.
  - With C(-v) this plugin is P(ansible.builtin.default#callback) and writes no file.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
options:
  run_language:
    description: Language of the lines, V(en) or V(ja). Without it the locale decides.
    env: [{name: SHIFTMASTER_LANGUAGE}]
    ini: [{section: callback_phases, key: language}]
    vars: [{name: run_language}, {name: language}, {name: health_language}]
  run_log_dir:
    description: Directory of the log files, seen from that of ansible.cfg. Empty for no file.
    default: logs
    env: [{name: SHIFTMASTER_LOG_DIR}]
    ini: [{section: callback_phases, key: log_dir}]
    vars: [{name: run_log_dir}]
  run_log_count:
    description: Number of log files that are kept.
    type: int
    default: 100
    ini: [{section: callback_phases, key: log_count}]
"""

# They end with an error where they found something, which is what they are for.
REPORTS = {"health.yml", "diagnose.yml", "checklist.yml", "verify.yml", "status.yml", "history.yml"}
# Their lines are columns, each of them in the language of the run already.
TABLES = {"status.yml", "history.yml"}
# With the lines after them, the cause is in the last 15. What the preflight found is shown completely.
LINES_OF_A_FAILURE = 8
# Of a longer failure the first lines and the last ones are shown: hints and the outcome of the run come last.
FIRST_LINES_OF_A_FAILURE = 3
# Where the report of a failed release contains it, the revert has failed, too (roles/release/tasks/abort.yml).
REVERT_FAILED = "The revert is not finished"
# Actions that decide and report only: a phase of nothing else has no line.
CONTROL = {"assert", "debug", "fail", "gather_facts", "include_vars", "set_fact", "setup"}


def encrypted(path: Path) -> bool:
    return path.is_file() and path.read_bytes().startswith(b"$ANSIBLE_VAULT")


def after_failure(task) -> bool:
    """Whether a task is part of a block's rescue or always."""
    # All the way up: between a block and what it imports stands the importing task, which is in none of its lists.
    below, parent = {task._uuid}, task._parent
    while parent is not None:
        parts = [*(getattr(parent, "rescue", None) or []), *(getattr(parent, "always", None) or [])]
        if any(part._uuid in below for part in parts):
            return True
        below.add(parent._uuid)
        parent = parent._parent
    return False


class CallbackModule(Default):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "phases"

    def __init__(self):
        super().__init__()
        # With -v everything below is left to the default callback.
        self.verbose = self._display.verbosity > 0
        if self.verbose:
            return
        self.screen = Screen(self._display)
        self._display = Log()
        self.language, self.playbook, self.phase, self.release_play = "en", "", None, False
        self.new_play, self.task_name, self.started, self.ended = "", "", False, False
        self.failures, self.found, self.closed, self.facts = [], [], [], {}
        self.fixed, self.broken, self.broken_at, self.groups = False, "", "", {}

    def text(self, key: str, **values) -> str:
        # A phase that has the name of its play is in no catalogue.
        return TEXTS.say(self.language, key, **values) if key in TEXTS else key

    def line(self, line: str) -> str:
        """A line of a message, in the language of the run where it is a known sentence."""
        return japanese(line) if self.language == "ja" else line

    def _duration(self, seconds: float) -> str:
        whole = int(seconds + 0.5)
        if whole < 60:
            return self.text("seconds", n=whole)
        minutes = f"{whole // 60}:{whole % 60:02d}"
        return minutes if whole < 3600 else f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"

    # Phases

    def _progress(self) -> str:
        if not self.phase:
            return ""
        seconds = self._duration(time.time() - self.phase["begin"])
        return f"… {self.text(self.phase['key'])}  {seconds}  {self.task_name}"

    def _begin(self, key: str) -> None:
        if self.phase and self.phase["key"] == key:
            return
        self._close()
        # A role whose tasks were skipped is no phase, and divides none.
        while self.closed and not self._has_line(self.closed[-1]):
            self.closed.pop()
        if self.closed and self.closed[-1]["key"] == key:
            self.phase = self.closed.pop()
            return
        self.phase = {"key": key, "begin": time.time(), "changed": 0, "results": 0, "seen": False, "messages": [],
                      "stopped": False, "reported": False}  # fmt: skip
        self.facts["cutover"] = self.facts.get("cutover") or key == "cutover"
        self.screen.refresh()

    def _close(self) -> None:
        """Whether its failures are rescued is known after the next task, so its line waits for that one."""
        if self.phase:
            self.closed.append({**self.phase, "end": time.time()})
        self.phase = None

    def _failed_in(self, phase: dict) -> bool:
        return any(failure["phase"] == phase["begin"] for failure in self.failures)

    def _has_line(self, phase: dict) -> bool:
        done = phase["results"] and not phase["reported"]
        return bool(done or phase["changed"] or phase["messages"] or self._failed_in(phase))

    def _show_closed(self) -> None:
        for phase in self.closed:
            failed = "failed" if self._failed_in(phase) else "interrupted" if phase["stopped"] else ""
            if self._has_line(phase) and phase["key"] != "summary":
                n, prefix = phase["changed"], "would_change" if context.CLIARGS.get("check") else "change"
                changes = self.text(prefix if n == 1 else prefix + "s", n=n) if n else self.text("unchanged")
                # Before the switch there is nothing to revert.
                nothing = phase["key"] == "revert" and not failed and not self.facts.get("cutover")
                key = "end" if nothing else phase["key"]
                line = f"{self.text(key)}{self.text('comma')}{self.text(failed) if failed else changes}"
                line += f"  {self._duration(phase['end'] - phase['begin'])}"
                self.screen.line(*((f"✘ {line}", "red") if failed else (f"✔ {line}", "green")))
            indent = "" if self.playbook in REPORTS or phase["key"] == "summary" else "  "
            for message in phase["messages"]:
                self.screen.line(indent + (message if self.playbook in TABLES else self.line(message)))
        self.closed = []

    # Events: each goes to the log through the default callback, too.

    def v2_playbook_on_start(self, playbook):
        if not self.verbose:
            self.playbook = os.path.basename(playbook._file_name)
        super().v2_playbook_on_start(playbook)

    def v2_playbook_on_play_start(self, play):
        if not self.verbose:
            if not self.started:
                self._start(play)
            self.new_play, self.release_play = play.get_name().strip(), False
            # The roles that check or report in it begin no phase.
            self.fixed = self.new_play in PLAYS
        super().v2_playbook_on_play_start(play)

    def _start(self, play) -> None:
        self.started, self.manager = True, play.get_variable_manager()
        self.groups = self.manager._inventory.groups
        variables = self._variables(play)
        option = self.get_option("run_language") or variables.get("run_language")
        self.language = option if option in LANGUAGES else language_of(os.environ)
        try:
            self._display.zone = zoneinfo.ZoneInfo(variables.get("base_timezone") or "")
        except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
            pass  # that of this machine
        if self.get_option("run_log_dir"):
            directory = Path(constants.CONFIG_FILE or "").parent / self.get_option("run_log_dir")
            self._display.open(
                directory, os.path.splitext(self.playbook)[0] or "play", self.get_option("run_log_count")
            )
        self.set_option("show_task_path_on_failure", True)
        atexit.register(self._at_exit, os.getpid())
        self.screen.start(self._progress)

    def _variables(self, play) -> dict:
        """run_language and base_timezone of the inventory, where they are plain values."""
        manager = play.get_variable_manager()
        try:
            # The first play can be for a group that has no host.
            hosts = manager._inventory.get_hosts(play.hosts) or manager._inventory.get_hosts("all")
            values = manager.get_vars(play=play, host=hosts[0] if hosts else None, include_hostvars=False)
        except Exception as error:  # noqa: BLE001 - a broken variable is the preflight's to report
            self.broken = str(error)
            # Ansible replaces the error that names file, line and column in its first line; the others can be secrets.
            source = getattr(error.__context__ or error, "_formatted_source_context", None)
            origin = re.match(r"Origin: (.+)", source or "")
            self.broken_at = printable(os.path.relpath(os.path.realpath(origin[1]))) if origin else ""
            return {}
        names = [name for name in ("run_language", "base_timezone") if "{{" not in str(values.get(name, "{{"))]
        return {name: str(values[name]) for name in names}

    def v2_playbook_on_task_start(self, task, is_conditional):
        if not self.verbose:
            self._task(task)
        super().v2_playbook_on_task_start(task, is_conditional)

    def v2_playbook_on_handler_task_start(self, task):
        if not self.verbose:
            self.task_name = task.get_name().strip()
        super().v2_playbook_on_handler_task_start(task)

    def _task(self, task) -> None:
        if self.phase and self.phase["seen"]:
            self._show_closed()
        self.task_name = task.name.strip() if task.name else task.action
        role = task._role.get_name() if task._role else ""
        stem = os.path.splitext(os.path.basename((task.get_path() or "").rpartition(":")[0]))[0]
        key = phase_of(role, stem)
        # Another role that takes the lock stays in its phase.
        if role == "release" and task._role._from_files.get("tasks"):
            key = None
        if self.fixed or self.release_play and key not in RELEASE_FILES.values():
            key = None
        elif key in RELEASE_FILES.values():
            self.release_play = True
        if key is None and self.new_play and task.action.rpartition(".")[2] not in ("setup", "gather_facts", "meta"):
            key = phase_of_play(self.new_play)
        if key is None and not self.phase:
            key = phase_of_play(self.new_play or self.playbook)
        if key:
            self.new_play = ""
            self._begin(key)
        if task.action.rpartition(".")[2] == "pause":
            self.screen.hide()
        else:
            self.screen.show()

    def _collect(self, result, failed=False) -> None:
        """Counts a result, and holds on to what the end of the run shows of it."""
        if self.phase:
            self.phase["seen"] = True
        if self.phase and not isinstance(result.task, TaskInclude):
            self.phase["results"] += result.task.action.rpartition(".")[2] not in CONTROL
            self.phase["changed"] += bool(result.result.get("changed")) and not failed
        if "release" in result.task.action:
            for name in ("current_version", "requests", "errors", "reverted"):
                if result.result.get(name) is not None:
                    self.facts[name] = result.result[name]

    def v2_runner_on_ok(self, result):
        if not self.verbose:
            self._collect(result)
            self._rescued(result)
            if result.task.action.rpartition(".")[2] == "debug" and "censored" not in result.result:
                items = result.result.get("results") or [result.result]
                for item in items:
                    lines = text_lines(item["msg"]) if not item.get("skipped") and "msg" in item else []
                    # Equal messages of several hosts are shown once.
                    if self.phase and lines != self.phase["messages"][-len(lines) :]:
                        self.phase["messages"] += lines
        super().v2_runner_on_ok(result)

    def v2_runner_on_failed(self, result, ignore_errors=False):
        if not self.verbose:
            self._collect(result, failed=True)
            if not ignore_errors:
                self._failed(result, message_lines(result.result) or [self.text("hidden")])
        super().v2_runner_on_failed(result, ignore_errors)

    def v2_runner_on_unreachable(self, result):
        if not self.verbose and not result.task.ignore_unreachable:
            reason = message_lines(result.result)
            # Of ssh's text the last line, but for a warning above it.
            warned = [
                line.strip("@ ") for line in reason if re.search("IDENTIFICATION HAS CHANGED|bad permissions", line)
            ]
            self._failed(
                result, [self.text("unreachable") + "".join(f": {line}" for line in (warned + reason[-1:])[:1])]
            )
        super().v2_runner_on_unreachable(result)

    def _failed(self, result, lines: list[str]) -> None:
        role = result.task._role.get_name() if result.task._role else ""
        reported = result.task.action.rpartition(".")[2] in ("fail", "assert") and not result.is_unreachable()
        if reported and self.playbook in REPORTS and role != "preflight":
            self.found += [line for line in lines if line not in self.found]
            return
        path = os.path.relpath(result.task.get_path() or "", os.getcwd())
        report = self._is_report(result, lines)
        if self.phase and report:
            self.phase["reported"] = True
        for failure in self.failures:
            if failure["lines"] == lines:
                if result.host.get_name() not in failure["hosts"]:
                    failure["hosts"].append(result.host.get_name())
                return
        self.failures.append(
            {"hosts": [result.host.get_name()], "lines": lines, "path": path, "name": result.task.get_name(),
             "phase": self.phase["begin"] if self.phase and not report else 0, "address": self._address(result.host),
             "unreachable": result.is_unreachable(), "preflight": bool(self.phase) and self.phase["key"] == "preflight",
             "release": bool(self.phase) and self.phase["key"] in RELEASE_FILES.values()}
        )  # fmt: skip

    def _is_report(self, result, lines: list[str]) -> bool:
        """Whether a rescue ends with the failure that it was for: no other task of its phase has failed."""
        task = result.task
        if not self.failures or task.action.rpartition(".")[2] != "fail" or not after_failure(task):
            return False
        return not any(REVERT_FAILED in line for line in lines)

    def _rescued(self, result) -> None:
        """A host that continues after a failure, and not in the rescue of it, has none."""
        host = result.host.get_name()
        if not any(host in failure["hosts"] for failure in self.failures) or after_failure(result.task):
            return
        for failure in self.failures:
            failure["hosts"] = [name for name in failure["hosts"] if name != host]
        self.failures = [failure for failure in self.failures if failure["hosts"]]

    def v2_on_file_diff(self, result):
        several = (result.result.get("results") if result.task.loop else [result.result]) or []
        for part in several:
            if part.get("diff"):
                part["diff"] = printable(part["diff"])
        if not self.verbose:
            for part in several:
                if part.get("diff") and part.get("changed"):
                    self._show_diff(result, part)
        super().v2_on_file_diff(result)

    def _show_diff(self, result, part: dict) -> None:
        """What is changed is shown, what is new is named: the log has its content."""
        shown, new = [], []
        target = str(result.task.args.get("dest", "{{"))
        for diff in part["diff"] if isinstance(part["diff"], list) else [part["diff"]]:
            if not isinstance(diff, dict):
                continue
            before, header = diff.get("before"), diff.get("before_header") or "(absent)"
            absent = (
                before.get("state") == "absent" if isinstance(before, dict) else not before and header.endswith(")")
            )
            text = self._get_diff(diff).rstrip()
            # Of copy and template the header is a file of this machine.
            header = target if "{{" not in target else diff.get("after_header")
            path = lines_of(part.get("dest") or part.get("path") or header or "")[0]
            if text and "prepared" in diff:
                # Of what cannot be compared, such as packages, the last line sums up.
                shown.append(text.splitlines()[-1])
            elif text.startswith("diff skipped:"):
                shown.append(f"{path}: {text}")
            elif text and absent and "after" in diff:
                new.append(path)
            elif text:
                shown.append(text)
        if shown or new:
            self.screen.line(f"{result.host.get_name()}: {result.task.get_name()}")
            for text in shown + [self.text("new", text=", ".join(new))] * bool(new):
                self.screen.line(text)

    def v2_playbook_on_vars_prompt(self, *args, **options):
        if not self.verbose:
            self.screen.hide()
        super().v2_playbook_on_vars_prompt(*args, **options)

    # The end

    def v2_playbook_on_stats(self, stats):
        if self.verbose or not self.started:
            super().v2_playbook_on_stats(stats)
            return
        self.ended = True
        self._close()
        self._show_closed()
        self.screen.stop()
        super().v2_playbook_on_stats(stats)
        failed = [host for host in stats.processed if stats.failures.get(host) or stats.dark.get(host)]
        warnings = len(self._display.warned) - self._display.usual
        if warnings:
            self.screen.line(self.text("warnings", n=warnings))
        if self.found:
            self.screen.line(self.text("found", text="\n           ".join(map(self.line, self.found))), "yellow")
        if failed and self.failures:
            self._report_failures()
        if self._display.path:
            self.screen.line(self.text("log", text=os.path.relpath(self._display.path)))
        if failed and self.failures:
            self._report_next()

    def _report_failures(self) -> None:
        """The first failure is the cause; the last one is that of the run, with its outcome."""
        first, last = self.failures[0], self.failures[-1]
        shown, seen = [], []
        for failure in [first] if first is last else [first, last]:
            hosts = ", ".join(sorted(failure["hosts"]))
            lines = [line for line in failure["lines"] if line not in seen]
            seen += lines
            lines = list(map(self.line, lines))
            shown += [f"{self.text('on', hosts=hosts)}{line}" if not n else f"  {line}" for n, line in enumerate(lines)]
        rest, last_lines = max(0, len(self.failures) - 2), []
        if len(shown) > LINES_OF_A_FAILURE and not first["preflight"]:
            rest += len(shown) - LINES_OF_A_FAILURE
            last_lines = shown[FIRST_LINES_OF_A_FAILURE - LINES_OF_A_FAILURE :]
            shown = shown[:FIRST_LINES_OF_A_FAILURE]
        self.screen.line()
        for line in shown:
            self.screen.line(line, "red")
        if rest:
            self.screen.line(f"  ({self.text('more', n=rest)})")
        for line in last_lines:
            self.screen.line(line, "red")
        self.screen.line(self.text("at", text=f"{first['name']} ({first['path']})"))
        if self.facts.get("current_version"):
            self.screen.line(self.text("live", text=self.facts["current_version"]))
        if first["release"]:
            if self.facts.get("requests"):
                of = self.text("of", errors=self.facts.get("errors", 0), requests=self.facts["requests"])
                self.screen.line(self.text("noticed", text=of))
            elif not self.facts.get("cutover") or self.facts.get("reverted") is False:
                self.screen.line(self.text("noticed", text=self.text("never")))

    def _report_next(self) -> None:
        """The next command: that of a known cause, else the same again, and a diagnosis where hosts can be reached."""
        first = self.failures[0]
        text = "\n".join(line[:LONGEST] for line in first["lines"])
        names = {"name": sorted(first["hosts"])[0], "address": first["address"]}
        # Without a user, and as known_hosts has it with another port; an inventory can give an empty one.
        port, host = re.match(r"-p (\d+) ", first["address"]), first["address"].rpartition(" ")[2].rpartition("@")[2]
        names["host"] = f"'[{host}]:{port[1]}'" if port and port[1] != "22" else host
        hint = self._hint(HINTS + (HINTS_UNREACHABLE if first["unreachable"] else ()), text, **names)
        if hint:
            self.screen.line(hint)
            return
        self.screen.line(self.text("next"))
        if self.playbook != "diagnose.yml" and not first["preflight"]:
            self.screen.line(self.text("diagnose", text=runnable("ansible-playbook playbooks/diagnose.yml")))

    def _hint(self, hints: tuple, text: str, **values) -> str:
        """What to do next where the cause is a known one."""
        found = next(((match, hint) for pattern, *hint in hints if (match := re.search(pattern, text))), None)
        if not found:
            return ""
        match, hint = found
        directory = Path(constants.CONFIG_FILE or "").parent / "group_vars"
        found = [path for path in sorted(directory.glob("*/vault.yml")) if path.parent.name in self.groups]
        vaults = [os.path.relpath(path) for path in found if encrypted(path)]
        password = (
            os.environ.get("ANSIBLE_VAULT_PASSWORD_FILE")
            or constants.DEFAULT_VAULT_PASSWORD_FILE
            or "the given password"
        )
        values.update(vaults=", ".join(vaults) or "the vault", password=password)
        return self.text("hint", text=runnable(hint[self.language == "ja"].format(*match.groups(), **values)))

    def _address(self, host) -> str:
        """What ssh is given to reach a host."""
        try:
            found = self.manager.get_vars(host=host, include_hostvars=False)
        except Exception:  # noqa: BLE001 - it is one more word in a hint
            return host.get_name()
        user, port = found.get("ansible_user"), found.get("ansible_port")
        words = (f"-p {port}" if port else "", f"{user}@" if user else "", found.get("ansible_host", host.get_name()))
        return "{} {}{}".format(*words).strip()

    def _at_exit(self, pid: int) -> None:
        """After Ctrl-C, and where Ansible itself gave up: nothing of what was shown may be lost."""
        if os.getpid() != pid or self.ended:
            return
        where = self._progress().removeprefix("… ")
        self.screen.stop()
        if self.phase:
            self.phase["stopped"] = True
        self._close()
        self._show_closed()
        hint = self._hint(HINTS, self.broken) if self.broken else ""
        lines = [self.text("file", text=self.broken_at)] if self.broken_at and not hint else []
        lines += [hint] if hint else [self.text("next")] if lines else [self.text("ended", text=where)]
        # From the switch on, what was live before is not known to be live still: ./shiftmaster shows the hosts' state.
        if self.facts.get("current_version") and not self.facts.get("cutover"):
            lines.append(self.text("live", text=self.facts["current_version"]))
        if self._display.path:
            lines.append(self.text("log", text=os.path.relpath(self._display.path)))
        if not hint and not self.broken_at:
            lines.append(self.text("again"))
        self._display.banner("NOT FINISHED")
        for line in lines:
            self._display.display(line)
            self.screen.line(line)
