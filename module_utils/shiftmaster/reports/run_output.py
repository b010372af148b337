"""Output of a run on the controller: messages of results as lines, the log file, and the lines of the terminal."""

from __future__ import annotations

import datetime
import json
import os
import re
import threading
from pathlib import Path

from ansible.utils.display import Display

from ..host.action import runnable
from ..host.printable import printable_tree as printable
from .causes import LONGEST

# Warnings about what a new host lacks: they are in the log, and are not counted.
USUAL_WARNINGS = re.compile(
    r"Skipped '.*' path due to this access issue: .* is not a directory|Module remote_tmp .* did not exist"
)


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
