"""Units of a release's code whose module was killed."""

import subprocess

import pytest
from ansible.module_utils.shiftmaster.host import units
from ansible.module_utils.shiftmaster.release import releasecode, state
from ansible.module_utils.shiftmaster.release.layout import Layout


@pytest.fixture
def ended():
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_a_run_that_changes_the_host_ends_processes_of_a_killed_module(monkeypatch, tmp_path, ended):
    running = [
        f"shiftmaster-code-{ended}-1.service loaded active running migrations",
        f"shiftmaster-hook-{ended}-2.service loaded active running hook",
        "shiftmaster-build-1-1.service loaded active running build",
        f"shiftmaster-code-{ended}-x.service loaded active running of somebody else",
    ]
    calls = []

    def systemctl(*arguments, **_options):
        calls.append(arguments)
        return "\n".join(running)

    monkeypatch.setattr(units, "systemctl", systemctl)
    monkeypatch.setattr(releasecode.os.path, "isdir", lambda _path: True)
    layout = Layout(str(tmp_path))
    (tmp_path / "shared/state").mkdir(parents=True)
    with state.exclusive(layout):
        pass
    assert [call for call in calls if call[0] == "stop"] == [
        ("stop", f"shiftmaster-code-{ended}-1.service", f"shiftmaster-hook-{ended}-2.service")
    ]
