from __future__ import annotations

import atexit
import datetime
import json
import os
import re
import threading
import time
import zoneinfo
from pathlib import Path

import ansible.module_utils
from ansible import constants, context
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as Default
from ansible.utils.display import Display

# Ansible finds module_utils for modules alone.
ansible.module_utils.__path__.append(str(Path(__file__).resolve().parents[2] / "module_utils"))
from ansible.module_utils.shiftmaster.health.text import CATALOG, PYTHON, SUDO
from ansible.module_utils.shiftmaster.host.action import runnable
from ansible.module_utils.shiftmaster.host.printable import printable_tree as printable
from ansible.module_utils.shiftmaster.host.texts import LANGUAGES, Texts, language_of
from ansible.module_utils.shiftmaster.reports.causes import LONGEST, japanese

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

# The phase that a role belongs to. A role that is not named here belongs to the phase that runs, or, at the beginning
# of a play, to one with the name of the play.
ROLES = {
    **dict.fromkeys(("base", "firewall"), "host"),
    **dict(tls="certificates", postgresql="database", redis="cache", shiftmaster="application", nginx="web"),
    **{name: name for name in ("preflight", "backup", "restore", "health", "diagnosis", "checklist")},
    **dict.fromkeys(("alertmanager", "prometheus", "grafana"), "monitoring"),
    **dict.fromkeys("elastic_repository elasticsearch logstash kibana filebeat log_watch".split(), "logging"),
    "exporter": "exporters",
}
# The phase that a task file of a release begins. Other roles that run between them belong to it.
RELEASE_FILES = {name: name for name in ("lock", "recover", "build", "migrate", "cutover", "finish")}
RELEASE_FILES.update(plan="lock", rollback="choose", batch="cutover", abort="revert")
# Plays that are one phase, whatever roles they use.
PLAYS = {"Options": "preflight", "Preflight": "preflight", "Summary": "summary", "Status": "status"}
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
# Warnings about what a new host lacks: they are in the log, and are not counted.
USUAL_WARNINGS = re.compile(
    r"Skipped '.*' path due to this access issue: .* is not a directory|Module remote_tmp .* did not exist"
)
# What to do next where the first failure matches a regular expression, in English and Japanese: of any task, and of a
# host that cannot be reached.
HINTS = (
    (r"no vault secrets",
     "put the password of {vaults} into ~/.shiftmaster.vault-password, which ./shiftmaster reads; or "
     "--vault-password-file FILE or ANSIBLE_VAULT_PASSWORD_FILE",
     "{vaults} のパスワードを ~/.shiftmaster.vault-password に置いてください(./shiftmaster が読みます)。または "
     "--vault-password-file ファイル、ANSIBLE_VAULT_PASSWORD_FILE"),
    (r"Decryption failed",
     "{password} does not open {vaults}: put the right password there, from the copy of it",
     "{password} では {vaults} を復号できません。控えのパスワードに置き換えてください"),
    (r"which a run deploys that names none|The code alone cannot go back|-e shiftmaster_allow_contract=true",
     "one of the commands above", "上のコマンドのいずれか"),
    (SUDO, *CATALOG["hint.sudo"]),
    (r"holds the lock",
     "wait until that run has ended, then the same command again",
     "その実行が終わってから、同じコマンドを再実行してください"),
    (r"there is no tag, branch or commit ",
     "the same command with one that is there; git ls-remote --tags with the address of the repository lists the tags",
     "存在するものを指定して、同じコマンドを再実行してください。タグの一覧: git ls-remote --tags リポジトリ"),
    (r"there is no release ",
     "the same command with one that is there; ansible-playbook playbooks/status.yml lists the releases of the hosts",
     "存在するものを指定して、同じコマンドを再実行してください。"
     "ホストのリリース一覧: ansible-playbook playbooks/status.yml"),
    (r"nothing was deployed here yet",
     "deploy first: ansible-playbook deploy.yml", "先にデプロイしてください: ansible-playbook deploy.yml"),
    (r"No space left on device",
     "find the full disk, make room on it, then the same command: "
     "ansible {name} --become -m ansible.builtin.command -a 'df -h'",
     "満杯のディスクを調べ、空きを作ってから同じコマンドを再実行してください: "
     "ansible {name} --become -m ansible.builtin.command -a 'df -h'"),
    (r"nothing to roll back|no older release to go back to|was never live|is marked bad",
     "deploy what is to be live: ansible-playbook deploy.yml -e shiftmaster_version=VERSION",
     "稼働させるバージョンをデプロイしてください: ansible-playbook deploy.yml -e shiftmaster_version=バージョン"),
    (PYTHON, *CATALOG["hint.python"]),
    (r"Docker daemon|docker:? command not found|No such file or directory: b?'docker'",
     "start Docker, where the demo's container {name} runs, then `make demo`; for other hosts name their inventory "
     "(./shiftmaster -E NAME, or -i inventory/NAME)",
     "デモのコンテナー {name} には Docker が必要です。Docker を起動し、make demo を実行してください。"
     "他のホストはインベントリを指定してください"
     "(./shiftmaster -E 名前、または -i inventory/名前)"),
    (r"No such container|[Cc]ontainer .* is not running",
     "{name} is a container that is not running: `make demo` starts the demo; for other hosts name their inventory "
     "(./shiftmaster -E NAME, or -i inventory/NAME)",
     "コンテナー {name} が起動していません。デモは make demo で起動します。"
     "他のホストはインベントリを指定してください"
     "(./shiftmaster -E 名前、または -i inventory/名前)"),
)  # fmt: skip
HINTS_UNREACHABLE = (
    (r'Load key "(.+)": bad permissions',
     "other users can read the key, so ssh ignores it: chmod 600 '{0}'",
     "他のユーザーが読める鍵を ssh は使用しません: chmod 600 '{0}'"),
    (r"IDENTIFICATION HAS CHANGED",
     "the host's key has changed: a new installation, or an attack. Compare it on the console of {name}; then remove "
     "the old one: ssh-keygen -R {host}",
     "ホスト鍵が変わっています(再インストール、または攻撃)。{name} のコンソールで確認してから古い鍵を削除してください: "
     "ssh-keygen -R {host}"),
    (r"[Hh]ost key verification failed",
     "compare the key of the host and accept it: ssh {address} true", "ホスト鍵の確認と承認: ssh {address} true"),
    (r"Permission denied|[Tt]oo many authentication failures",
     "let the host accept your key: ssh-copy-id {address}", "公開鍵をホストに登録してください: ssh-copy-id {address}"),
    (r"Could not resolve hostname|Name or service not known",
     "correct the name of {name} in the inventory, or give it ansible_host",
     "インベントリの {name} のホスト名を修正するか、ansible_host を指定してください"),
    (r"", "check that {name} is running and its address: ssh {address} true",
     "{name} の稼働とアドレスの確認: ssh {address} true"),
)  # fmt: skip
TEXTS = Texts({
    "preflight": ("Preflight", "事前チェック"),
    "host": ("Host", "ホスト"),
    "certificates": ("Certificates", "証明書"),
    "database": ("Database", "データベース"),
    "cache": ("Cache and broker", "キャッシュとブローカー"),
    "application": ("Application hosts", "アプリケーションホスト"),
    "web": ("Web server", "Web サーバー"),
    "backup": ("Backups", "バックアップ"),
    "exporters": ("Exporters", "エクスポーター"),
    "monitoring": ("Monitoring", "監視"),
    "logging": ("Logging", "ログ基盤"),
    "restore": ("Restore", "リストア"),
    "health": ("Health checks", "ヘルスチェック"),
    "diagnosis": ("Diagnosis", "診断"),
    "checklist": ("Checklist", "チェックリスト"),
    "lock": ("Lock and plan", "ロックと計画"),
    "recover": ("Recover", "中断した処理の復旧"),
    "build": ("Build", "ビルド"),
    "migrate": ("Migrate", "マイグレーション"),
    "choose": ("Choose the release", "リリースの選択"),
    "cutover": ("Cutover", "切り替え"),
    "finish": ("Finish", "後処理"),
    "revert": ("Revert", "切り戻し"),
    "end": ("End of the run", "実行の終了"),
    "summary": ("Summary", "概要"),
    "status": ("Status", "状態"),
    "interrupted": ("INTERRUPTED", "中断"),
    "comma": (", ", "、"),
    "unchanged": ("nothing changed", "変更なし"),
    "change": ("1 change", "変更 1 件"),
    "changes": ("{n} changes", "変更 {n} 件"),
    "would_change": ("1 change to make", "変更予定 1 件"),
    "would_changes": ("{n} changes to make", "変更予定 {n} 件"),
    "new": ("new: {text}", "新規: {text}"),
    "seconds": ("{n} s", "{n} 秒"),
    "on": ("{hosts}: ", "{hosts}: "),
    "failed": ("FAILED", "失敗"),
    "unreachable": ("cannot be reached", "接続できません"),
    "hidden": (
        "the message is hidden, because it can contain secrets (no_log)",
        "秘密情報を含む可能性があるため、メッセージは表示されません(no_log)",
    ),
    "warnings": ("Warnings: {n}, in the log.", "警告: {n} 件(ログを参照)"),
    "more": ("{n} more lines or failures in the log", "残り {n} 件はログを参照"),
    "at": ("Task:      {text}", "タスク:     {text}"),
    "file": ("File:      {text}", "ファイル:   {text}"),
    "live": ("Live:      version {text}", "稼働中:     バージョン {text}"),
    "noticed": ("Failed requests: {text}", "失敗したリクエスト: {text}"),
    "of": ("{errors} of {requests}", "{requests} 件中 {errors} 件"),
    "never": ("0 by this run, the new release received no traffic", "この実行によるものは 0 件(切り替え前)"),
    "log": ("Log:       {text}", "ログ:       {text}"),
    "next": ("Next:      correct the cause and run the same command again",
             "次の操作:   原因を修正し、同じコマンドを再実行してください"),
    "hint": ("Next:      {text}", "次の操作:   {text}"),
    "diagnose": ("Diagnose:  {text}", "調査:       {text}"),
    "ended": ("This run did not finish. It stopped in: {text}", "実行は完了していません。中断した段階: {text}"),
    "again": ("Next:      run the same command again: it finishes or reverts what was begun",
              "次の操作:   同じコマンドを再実行してください。途中の処理を完了するか元に戻します"),
    "found": ("Result:    {text}", "判定:       {text}"),
})  # fmt: skip


def phase_of(role: str, stem: str) -> str | None:
    """The phase of a task of a role, by the name of its task file without its ending."""
    if role == "release" and stem in RELEASE_FILES:
        return RELEASE_FILES[stem]
    return ROLES.get(role)


def phase_of_play(name: str) -> str:
    """The phase of a play's tasks that belong to no role: that of its roles where it is named so, else its name."""
    return PLAYS.get(name) or next((key for key in ROLES.values() if TEXTS[key][0] == name), name)


def lines_of(text) -> list[str]:
    """Without the commands of a text that is one endless line: the regular expressions would take minutes."""
    lines = [line.rstrip() for line in str(text).split("\n")]
    return [printable(runnable(line) if len(line) < 20 * LONGEST else line) for line in lines]


def message_lines(result: dict) -> list[str]:
    """The messages of a failed result, each once; a loop's failed items one after the other."""
    if "censored" in result:
        return []
    items = result["results"] if isinstance(result.get("results"), list) else []
    failed = [item for item in items if isinstance(item, dict) and item.get("failed")]
    if failed:
        return list(dict.fromkeys(line for item in failed for line in message_lines(item)))
    # Facts are gathered by modules of their own, whose messages are in theirs.
    modules = result["failed_modules"] if isinstance(result.get("failed_modules"), dict) else {}
    modules = [item for item in modules.values() if isinstance(item, dict)]
    if modules:
        return list(dict.fromkeys(line for item in modules for line in message_lines(item)))
    message = result.get("msg") or ""
    # A module that did not start: the reason is what the connection or the interpreter printed.
    printed = lines_of(str(result.get("module_stderr") or "").strip())[-5:]
    if any(printed) and str(message).startswith("Module result deserialization failed"):
        message = ""
    lines = [part for line in (message if isinstance(message, list) else [message]) for part in lines_of(line)]
    lines += printed
    if result.get("rc") and "cmd" in result:
        lines += lines_of(str(result.get("stderr") or "").strip() or str(result.get("stdout") or "").strip())[-5:]
    return [line for line in lines if line]


def text_lines(message) -> list[str]:
    """A message of a debug task as lines."""

    def plain(values) -> bool:
        return not any(isinstance(value, (dict, list, tuple)) for value in values)

    if isinstance(message, (list, tuple)) and plain(message):
        return [line for part in message for line in lines_of(part)]
    if isinstance(message, dict):
        values = {name: value if isinstance(value, (list, tuple)) else [value] for name, value in message.items()}
        if all(map(plain, values.values())):
            return text_lines([f"{name}: {'; '.join(map(str, value))}" for name, value in values.items()])
    if isinstance(message, (dict, list)):
        return lines_of(json.dumps(message, indent=2, ensure_ascii=False))
    return lines_of(str(message).rstrip("\n"))


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


class Log:
    """Replaces Ansible's display in the default callback: its output goes to a file."""

    verbosity = 0

    def __init__(self, zone=None):
        self.zone, self.file, self.path, self.warned, self.usual = zone, None, None, set(), 0

    def now(self) -> datetime.datetime:
        return datetime.datetime.now(self.zone).astimezone(self.zone)

    def open(self, directory: Path, name: str, count: int) -> None:
        """A new file that only its owner can read. Where none can be made, the run goes on without."""
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in sorted(directory.glob("????????T??????-*.log"))[: -count + 1 or None]:
                old.unlink(missing_ok=True)
            path = directory / (f"{self.now():%Y%m%dT%H%M%S}-{name}-{os.getpid()}.log")
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.file = os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8", errors="replace")
            self.path = path
        except OSError as error:
            Display().warning(f"No log file is written: {error}")

    def display(self, msg, *_args, screen_only=False, **_options):
        # Written out line by line: what was not would be lost, or be written again by each process that Ansible forks.
        if self.file and (not screen_only or not msg):
            try:
                self.file.write(f"{msg}\n")
                self.file.flush()
            except OSError as error:
                # The run goes on: what failed in it is shown, and the log ends here.
                self.file = None
                Display().warning(f"The log ends here: {error}")

    def banner(self, msg, *_args, **_options):
        self.display(f"\n{self.now():%H:%M:%S} {msg} {'*' * max(3, 110 - len(msg))}")

    def _warning(self, warning, kind="WARNING"):
        text = f"[{kind}]: " + "\n".join(lines_of(warning.event.msg))
        if text not in self.warned:
            self.warned.add(text)
            self.usual += bool(USUAL_WARNINGS.search(text))
            self.display(text)

    def _deprecated(self, warning):
        self._warning(warning, "DEPRECATION WARNING")

    def _error(self, error, stderr=False):
        """Left out: the result contains it, too, and this one has messages of a loop's items in spite of no_log."""


class Screen:
    """Lines one after the other; on a terminal, below them the phase that runs, with its seconds."""

    def __init__(self, display):
        self.display, self.live, self.progress, self.stopped = display, None, None, threading.Event()

    def start(self, progress) -> None:
        """progress() is the line of the phase that runs."""
        try:
            from rich.console import Console
            from rich.live import Live
        except ImportError:  # an execution environment of AWX has no rich
            return
        console = Console(highlight=False, markup=False, emoji=False)
        if not console.is_terminal or console.is_dumb_terminal:
            return
        self.progress = progress
        self.live = Live(console=console, auto_refresh=False, transient=True)
        with self.display._lock:
            self.live.start()
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while not self.stopped.wait(1):
            self.refresh()

    def refresh(self) -> None:
        if not self.live:
            return
        from rich.text import Text

        # Ansible forks its workers while it holds this lock: no copy of rich's locks is ever taken while they are held.
        with self.display._lock:
            if self.live.is_started:
                self.live.update(Text(self.progress(), style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)

    def hide(self) -> None:
        """The task uses the terminal for a question."""
        if self.live:
            with self.display._lock:
                self.live.stop()

    def show(self) -> None:
        if self.live and not self.stopped.is_set():
            with self.display._lock:
                self.live.start()

    def line(self, text: str = "", color: str | None = None) -> None:
        if not self.live:
            self.display.display(text, color=color)
            return
        from rich.text import Text

        with self.display._lock:
            self.live.console.print(Text.from_ansi(text, style=color or ""), soft_wrap=True)

    def stop(self) -> None:
        self.stopped.set()
        self.hide()


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
        verbose = int(seconds + 0.5)
        if verbose < 60:
            return self.text("seconds", n=verbose)
        minutes = f"{verbose // 60}:{verbose % 60:02d}"
        return minutes if verbose < 3600 else f"{verbose // 3600}:{verbose // 60 % 60:02d}:{verbose % 60:02d}"

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
