"""The points at which the scenario kills ends a run: every phase has one, and each one is in the code."""

from __future__ import annotations

import inspect
import os
import re
import threading
import time
from pathlib import Path

from ansible.module_utils.shiftmaster.host import points
from ansible.module_utils.shiftmaster.release import cutover, django_driver

ROOT = Path(__file__).resolve().parents[3]
CODE = [*(ROOT / "module_utils/shiftmaster").rglob("*.py"), *(ROOT / "library").rglob("*.py")]


def test_every_phase_of_the_cutover_is_a_fault_injection_point():
    """The scenario takes its list from POINTS: a phase that is not there would never be killed."""
    assert [name for name in cutover.PHASES if name not in points.POINTS] == []


def test_every_fault_injection_point_is_reached_and_none_is_unknown():
    written = []
    for path in CODE:
        written += re.findall(r'\breach\("([a-z_]+)"\)', path.read_text(encoding="utf-8"))
    assert len(written) == len(set(written))
    # _phase() reaches those of the phases by their names, all but the rollback, which begins in several places.
    known = {*points.POINTS, *points.BACKUP_POINTS, *points.UPGRADE_POINTS, *points.MOVE_POINTS}
    assert set(written) | (set(cutover.PHASES) - {"reverted"}) == known


def test_the_driver_inside_a_release_goes_by_the_same_directory_and_time():
    """It cannot import points, so it has them as texts."""
    source = inspect.getsource(django_driver.reach)
    assert '"%s/" + point' % points.DIRECTORY in source and "+ %d\n" % points.HOLD_SECONDS in source


def test_a_run_does_not_wait_without_a_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "DIRECTORY", str(tmp_path / "none"))
    points.reach("gate")
    assert not (tmp_path / "none").exists()


def test_a_run_waits_at_its_fault_injection_point_until_it_is_released(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "DIRECTORY", str(tmp_path))
    (tmp_path / "gate").touch()
    run = threading.Thread(target=points.reach, args=("gate",))
    run.start()
    deadline = time.monotonic() + 20
    while not (tmp_path / "gate.reached").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert run.is_alive()
    (tmp_path / "gate").unlink()
    run.join(20)
    assert not run.is_alive()


def test_a_run_does_not_wait_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(points, "DIRECTORY", str(tmp_path))
    monkeypatch.setattr(points, "HOLD_SECONDS", 0)
    (tmp_path / "gate").touch()
    points.reach("gate")
    assert (tmp_path / "gate.reached").read_text() == str(os.getpid())
