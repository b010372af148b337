"""The directory in which several processes count (shiftmaster_monitoring.shared), with real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[3] / "shiftmaster_monitoring"
KEY = b'["counter", "", "n", "n_total", []]'
HEAD = """
import os, signal, sys, time
from shiftmaster_monitoring import shared
def counter(name="n", *labels):
    return shared.SharedValue("counter", name, name + "_total", [str(i) for i in range(len(labels))], labels, "help")
"""


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def shared(directory, monkeypatch):
    from shiftmaster_monitoring import shared, trouble

    monkeypatch.setattr(shared, "_ended", shared._Ended())
    monkeypatch.setattr(trouble, "_reported", set())
    shared._layouts.clear()
    yield shared
    shared.store.after_fork()  # Lets go of this process' own file.


def start(text, *arguments, **more):
    environment = dict(os.environ, PYTHONPATH=str(PACKAGE))
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + textwrap.dedent(text), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip


def run(text, *arguments):
    child = start(text, *arguments)
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0, err
    return out


def test_all_series_of_a_process_are_there_as_soon_as_it_counts(shared, directory):
    """A histogram's buckets without a value, and those that are made later."""
    out = run("""
        buckets = [counter("b", str(le)) for le in range(5)]
        print(os.listdir(shared.directory()))
        buckets[2].inc(1)
        late = counter("late")
    """)
    assert out.strip() == "[]"
    counted = shared.read()[0]
    assert len(counted) == 6 and sorted(counted.values()) == [0.0] * 5 + [1.0]


def test_counts_of_ended_processes_are_kept_and_their_files_are_removed(shared, directory):
    for _ in range(3):
        run("counter().inc(5)")
    assert len(list(directory.glob("*.db"))) == 3
    counted, gauges, living = shared.read()
    assert (counted, gauges, living) == ({KEY: 15.0}, [], 0)
    assert list(directory.glob("*.db")) == []
    run("counter().inc(1)")
    shared.merge()
    assert list(directory.glob("*.db")) == [] and shared.read()[0] == {KEY: 16.0}


def test_a_killed_process_has_counted_what_it_had_counted(shared, directory):
    child = start("""
        c = counter(); c.inc(7); print("ready", flush=True); time.sleep(60)
    """)
    child.stdout.readline()
    assert shared.read()[::2] == ({KEY: 7.0}, 1)
    child.kill()
    child.communicate()
    assert shared.read()[::2] == ({KEY: 7.0}, 0) and shared.read()[0] == {KEY: 7.0}


def test_forked_children_count_for_themselves_and_keep_no_file_of_the_parent(shared, directory):
    out = run("""
        c = counter(); c.inc(100)
        counted, told = os.pipe()
        for _ in range(3):
            if os.fork() == 0:
                c.inc(1); assert c.get() == 1.0, c.get()
                if os.fork() == 0:
                    os.close(1); os.close(2)
                    c.inc(10)
                    os.write(told, b".")
                    for _ in range(600):
                        if os.path.exists(sys.argv[1]): break
                        time.sleep(0.1)
                os._exit(0)
        for _ in range(3): os.wait()
        for _ in range(3): os.read(counted, 1)
        print(c.get())
    """, str(directory / "end"))  # fmt: skip
    assert out.strip() == "100.0"
    # The grandchildren live; the parent and the children have ended, though what they opened was inherited.
    counted, _gauges, living = shared.read()
    assert counted == {KEY: 133.0} and living == 3
    (directory / "end").touch()
    deadline = time.monotonic() + 60
    while shared.read()[2] and time.monotonic() < deadline:
        time.sleep(0.2)
    assert shared.read()[::2] == ({KEY: 133.0}, 0)


def test_gauges_of_ended_processes_are_removed_and_those_of_running_ones_distinguished(shared, directory):
    text = """
        g = shared.SharedValue("gauge", "g", "g", [], [], "help", multiprocess_mode="all"); g.set(4)
        print(os.getpid(), flush=True)
        time.sleep(float(sys.argv[1]))
    """
    run(text, "0")
    child = start(text, "60")
    pid = child.stdout.readline().strip()
    [(found, key, value, _at)] = shared.read()[1]
    assert (found, value) == (pid, 4.0) and key.startswith(b'["gauge"')
    child.kill()
    child.communicate()
    assert shared.read()[1] == []


def test_scrapes_and_ends_at_the_same_time_never_count_twice_or_less(shared, directory):
    """Every process counts up to 50 and dies; no sum may fall, or exceed what was counted when it was read."""
    stop, seen, errors = threading.Event(), [], []
    environment = {"PYTHONPATH": str(PACKAGE), "PROMETHEUS_MULTIPROC_DIR": str(directory)}
    reader = """
import json, sys, time
from shiftmaster_monitoring import shared
while True:
    print(shared.read(30)[0].get(%r, 0.0), flush=True)
""" % (KEY,)
    readers = [
        subprocess.Popen([sys.executable, "-c", reader], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]

    def follow(child):
        last = 0.0
        for line in child.stdout:
            value = float(line)
            if value < last or value > 2000:
                errors.append((last, value))
            last = value
            seen.append(value)
            if stop.is_set():
                break

    threads = [threading.Thread(target=follow, args=(child,)) for child in readers]
    for thread in threads:
        thread.start()
    counter = run("""
        for _ in range(10):
            for _ in range(4):
                if os.fork() == 0:
                    c = counter()
                    for _ in range(50): c.inc(1); time.sleep(0.0005)
                    os.kill(os.getpid(), signal.SIGKILL)
            for _ in range(4): os.wait()
        print("done")
    """)
    assert counter.strip() == "done"
    stop.set()
    for thread in threads:
        thread.join(30)
    for child in readers:
        child.kill()
        child.communicate()
    assert errors == [] and len(seen) > 20 and len(set(seen)) > 10
    assert shared.read()[0] == {KEY: 2000.0}


@pytest.mark.parametrize("point", ["before the rename", "before the files go"])
def test_killed_in_the_middle_of_adding_up(shared, directory, point):
    for _ in range(3):
        run("counter().inc(2)")
    where = {"before the rename": "os.rename", "before the files go": "os.unlink"}[point]
    child = start(f"""
        {where} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        shared.merge()
    """)
    child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert len(list(directory.glob("*.db"))) == 3
    assert shared.read()[0] == {KEY: 6.0}
    assert shared.read()[0] == {KEY: 6.0} and list(directory.glob("*.db")) == []


def test_a_reader_waits_for_the_lock_up_to_the_timeout(shared, directory):
    child = start("""
        with shared.exclusive(os.environ["PROMETHEUS_MULTIPROC_DIR"]):
            print("held", flush=True); time.sleep(60)
    """)
    child.stdout.readline()
    began = time.monotonic()
    with pytest.raises(shared.Busy):
        shared.read(0.3)
    assert time.monotonic() - began < 10
    child.kill()
    child.communicate()
    assert shared.read(0.3)[2] == 0


def test_a_pid_that_is_used_again_is_another_process(shared, directory):
    run("counter().inc(3)")
    [old] = directory.glob("*.db")
    pid = old.name.split("-")[0]
    # The same number, alive: this process, which has not written the old file.
    old.rename(directory / f"{os.getpid()}-{old.name.split('-')[1]}")
    value = shared.SharedValue("counter", "n", "n_total", [], [], "help")
    value.inc(4)
    assert pid != str(os.getpid()) and shared.read()[::2] == ({KEY: 7.0}, 1)
    value.inc(1)
    assert shared.read()[::2] == ({KEY: 8.0}, 1)
    assert len(list(directory.glob(f"{os.getpid()}-*.db"))) == 1


def test_many_processes_leave_few_files_without_a_scrape(shared, directory):
    run("""
        for _ in range(150):
            if os.fork() == 0:
                counter().inc(1); os._exit(0)
            os.wait()
    """)
    assert len(list(directory.iterdir())) < 60
    assert shared.read()[0] == {KEY: 150.0}


def test_many_series_make_the_file_grow(shared, directory):
    out = run("""
        for number in range(3000): counter("n", "x" * 50, str(number)).inc(number)
        from pathlib import Path
        found = shared.read()[0]
        print(len(found), sum(found.values()))
    """)
    assert out.split() == ["3000", str(float(sum(range(3000))))]


def test_series_above_the_limit_are_not_counted_and_the_process_continues(shared, directory):
    out = run("""
        shared.MAX_BYTES = 1 << 17
        values = [counter("n", str(number) * 20) for number in range(2000)]
        for value in values: value.inc(1)
        print(values[0].get(), values[-1].get(), len(shared.read()[0]) < 2000)
    """)
    assert out.split() == ["1.0", "1.0", "True"]


def test_adding_up_in_a_signals_handler_in_the_middle_of_adding_up(shared, directory):
    """As some versions of gunicorn's master do it, when processes end one after the other."""
    out = run("""
        calls = []
        def handler(*_):
            calls.append(1); shared.merge()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        for _ in range(20):
            for _ in range(5):
                if os.fork() == 0:
                    signal.setitimer(signal.ITIMER_REAL, 0); counter().inc(1); os._exit(0)
            for _ in range(5): os.wait()
            shared.merge()
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(len(calls) > 20)
    """)
    assert out.strip() == "True" and shared.read()[0] == {KEY: 100.0}


# --- what is broken --------------------------------------------------------------------------------------------------


def test_a_directory_that_appears_late_gets_everything(shared, directory, caplog):
    directory.rmdir()
    value = shared.SharedValue("counter", "n", "n_total", [], [], "help")
    for _ in range(5):
        value.inc(1)
    assert value.get() == 5.0 and len([r for r in caplog.records if "directory of metrics" in r.getMessage()]) == 1
    directory.mkdir()
    shared.store.check_file()
    assert list(directory.iterdir()) == []  # not yet time
    shared.store.check_at = 0.0
    shared.store.check_file()
    assert shared.read()[::2] == ({KEY: 5.0}, 1)
    value.inc(1)
    assert shared.read()[0] == {KEY: 6.0}


def test_an_emptied_directory_drops_nothing_of_running_processes(shared, directory):
    value = shared.SharedValue("counter", "n", "n_total", [], [], "help")
    idle = shared.SharedValue("counter", "idle", "idle_total", [], [], "help")
    value.inc(2)
    idle.inc(3)
    for path in directory.iterdir():
        path.unlink()
    shared.store.check_at = 0.0
    shared.store.check_file()
    value.inc(1)
    assert sorted(shared.read()[0].values()) == [3.0, 3.0]


def test_a_full_disk_is_no_signal(shared, directory, monkeypatch, caplog):
    """Room is reserved before it is used; where that fails the process counts on by itself, and makes good later."""

    def full(*_arguments):
        raise OSError(28, "No space left on device")

    value = shared.SharedValue("counter", "n", "n_total", [], [], "help")
    value.inc(1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "posix_fallocate", full)
        many = [shared.SharedValue("counter", "m", "m_total", ["l"], [str(n) * 100], "") for n in range(1000)]
        for one in many:
            one.inc(1)
        value.inc(1)
    found = shared.read()[0]
    assert found[KEY] == 2.0 and len(found) < 1000
    assert len([r for r in caplog.records if "No space" in r.getMessage()]) == 1
    shared.store.check_at = 0.0
    shared.store.check_file()
    found = shared.read()[0]
    assert len(found) == 1001 and set(found.values()) == {2.0, 1.0}


def test_values_that_cannot_be_added_up_are_kept(shared, directory, monkeypatch):
    run("counter().inc(2)")
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert shared.read()[0] == {KEY: 2.0} and shared.read()[0] == {KEY: 2.0}
    monkeypatch.undo()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    try:
        assert shared.read()[0] == {KEY: 2.0} and list(directory.glob("*.db")) == []
    finally:
        del os.environ["PROMETHEUS_MULTIPROC_DIR"]


@pytest.mark.parametrize("damage", ["emptied", "no head", "half", "beyond", "garbage behind"])
@pytest.mark.parametrize("alive", [True, False])
def test_a_damaged_file(shared, directory, damage, alive, caplog):
    run("counter().inc(2)")
    shared.merge()
    child = start('counter().inc(5); print("ready", flush=True); time.sleep(60)')
    child.stdout.readline()
    [path] = directory.glob("*.db")
    content = path.read_bytes()
    if not alive:
        child.kill()
        child.communicate()
    with open(path, "r+b") as stream:
        if damage == "emptied" and not alive:
            stream.truncate(0)
        elif damage == "no head":
            stream.write(b"x" * 64)
        elif damage == "half" and not alive:
            stream.truncate(80)
        elif damage == "beyond":
            stream.seek(8)
            stream.write((1 << 40).to_bytes(8, "little"))
        else:
            stream.seek(8)
            stream.write((len(content)).to_bytes(8, "little"))
    counted = shared.read()[0]
    assert counted[KEY] in (2.0, 7.0)
    if not alive:
        assert list(directory.glob("*.db")) == []
    child.kill()
    child.communicate()
    assert shared.read()[0][KEY] in (2.0, 7.0)
    assert any("damaged" in record.getMessage() for record in caplog.records)


def test_a_damaged_sum_begins_again(shared, directory):
    run("counter().inc(2)")
    shared.merge()
    (directory / "ended.json").write_text('{"totals": [["n"')
    run("counter().inc(3)")
    assert shared.read()[0] == {KEY: 3.0}
    assert (directory / "ended.json.damaged").exists()
    assert json.loads((directory / "ended.json").read_text())["totals"] == [[KEY.decode(), 3.0]]


def test_files_of_others_are_left_alone(shared, directory):
    (directory / "counter_12.db").write_bytes(b"prometheus_client's own")
    (directory / "README").write_text("?")
    shared.read()
    assert (directory / "counter_12.db").exists() and (directory / "README").exists()


def test_threads_drop_no_count(shared, directory):
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    value = shared.SharedValue("counter", "n", "n_total", [], [], "help")

    def work():
        for _ in range(20000):
            value.inc(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)
    assert shared.read()[0] == {KEY: 80000.0}


def test_without_a_directory_nothing_is_installed(monkeypatch):
    from shiftmaster_monitoring import shared

    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    assert shared.install() is False
