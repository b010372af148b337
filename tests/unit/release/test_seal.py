"""Sealed audit events: complete, in order, and what was changed is found."""

from __future__ import annotations

import calendar
import json
import os

import pytest
from ansible.module_utils.shiftmaster.release import seal

NOVEMBER = calendar.timegm((2026, 11, 30, 12, 0, 0))
DECEMBER = calendar.timegm((2026, 12, 1, 12, 0, 0))


@pytest.fixture
def logs(tmp_path):
    class Logs:
        directory, log = str(tmp_path / "sealed"), tmp_path / "audit.log"

        def write(self, *lines, end="\n"):
            with open(self.log, "a", encoding="utf-8") as stream:
                stream.write("\n".join(lines) + end)

        def rotate(self, name):
            os.rename(self.log, f"{self.log}-{name}")
            self.log.touch()

        def seal(self, now=NOVEMBER):
            rotated = sorted(str(path) for path in tmp_path.glob("audit.log-*"))
            return seal.seal(self.directory, {"application": [*rotated, str(self.log)]}, now)

        def lines(self):
            paths = sorted((tmp_path / "sealed").glob("*.jsonl"))
            records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
            return [line for record in records for line in record["lines"]["application"]]

    found = Logs()
    found.log.touch()
    return found


def test_each_line_is_sealed_once(logs):
    assert logs.seal() == ""
    logs.write("one", "two")
    assert logs.seal().startswith("2 lines")
    assert logs.seal() == ""
    logs.write("three")
    logs.seal(DECEMBER)
    assert logs.lines() == ["one", "two", "three"]
    assert sorted(os.listdir(logs.directory)) == ["2026-11.jsonl", "2026-12.jsonl"]
    assert seal.verified(logs.directory).startswith("2026-11 to 2026-12: 3 lines")
    assert os.stat(logs.directory).st_mode & 0o777 == 0o700
    assert os.stat(f"{logs.directory}/2026-11.jsonl").st_mode & 0o777 == 0o600


def test_a_rotation_loses_no_line_and_repeats_none(logs):
    """Processes write to the old file until they have opened the new one."""
    logs.write("one")
    logs.seal()
    logs.write("two")
    logs.rotate("20261130-1")
    logs.write("four")
    with open(f"{logs.log}-20261130-1", "a", encoding="utf-8") as stream:
        stream.write("three\n")
    logs.seal()
    logs.rotate("20261130-2")
    logs.write("five")
    logs.seal()
    assert logs.lines() == ["one", "two", "three", "four", "five"]


def test_a_line_is_sealed_when_it_has_ended(logs):
    logs.write("one", "tw", end="")
    logs.seal()
    logs.write("o")
    logs.seal()
    logs.write("unended", end="")
    logs.rotate("20261130-1")
    logs.seal()
    assert logs.lines() == ["one", "two", "unended"]


def test_a_flood_is_sealed_in_parts(logs, monkeypatch):
    monkeypatch.setattr(seal, "LIMIT_BYTES", 20)
    wanted = ["x" * 9, "y" * 9, "z" * 9, "0" * 20, "0" * 20, "00", "end"]
    logs.write(*wanted[:3], "0" * 42, "end")
    logs.rotate("20261130-1")
    logs.write("new")
    while logs.seal():
        pass
    assert logs.lines() == [*wanted, "new"]
    seal.verified(logs.directory)


@pytest.mark.parametrize("text", ["", "an older line\nanother\n", "changed\n" * 9])
def test_a_log_that_was_changed_is_reported_and_what_was_sealed_stays(logs, text):
    logs.write("one", "two")
    logs.seal()
    logs.log.write_text(text + "later\n")
    with pytest.raises(seal.SealError, match="application"):
        logs.seal()
    assert logs.lines() == ["one", "two", *text.split("\n")[:-1], "later"]
    assert logs.seal() == ""
    seal.verified(logs.directory)


def test_what_is_no_regular_file_is_rejected(logs, tmp_path):
    for make in (lambda: os.mkfifo(logs.log), lambda: os.mkdir(logs.log), lambda: os.symlink("/dev/zero", logs.log)):
        logs.log.unlink()
        make()
        with pytest.raises(OSError):
            logs.seal()
        os.rename(logs.log, tmp_path / "gone")
        os.rmdir(tmp_path / "gone") if (tmp_path / "gone").is_dir() else os.unlink(tmp_path / "gone")
        logs.log.touch()


def test_bytes_that_are_no_text_do_not_end_it(logs):
    logs.log.write_bytes(b'\xff\x00\x1b[31m"\\\r\n\x0b\x1c\n{"a": 1}\n')
    logs.seal()
    assert len(logs.lines()) == 3
    assert ": 3 lines" in seal.verified(logs.directory)


@pytest.mark.parametrize("cut", [1, 30, 10000])
def test_a_killed_run_is_repeated(logs, cut):
    logs.write("one")
    logs.seal()
    logs.write("two")
    logs.seal(DECEMBER)
    path = f"{logs.directory}/2026-12.jsonl"
    with open(path, "rb+") as stream:
        stream.truncate(max(0, os.path.getsize(path) - cut))
    assert ": 1 lines" in seal.verified(logs.directory)
    logs.seal(DECEMBER)
    assert logs.lines() == ["one", "two"]
    seal.verified(logs.directory)


def change(text):
    yield text.replace("two", "2wo")
    lines = text.splitlines(keepends=True)
    yield "".join([lines[0], *lines[2:]])
    yield "".join([lines[0], lines[2], lines[1], *lines[3:]])
    yield "".join([lines[0], lines[0], *lines[1:]])
    yield text.replace('"previous"', '"before"')
    yield "[" * 100000 + "\n" + text


@pytest.mark.parametrize("number", range(6))
def test_a_changed_record_is_found(logs, number):
    for word in ("one", "two", "three", "four"):
        logs.write(word)
        logs.seal()
    path = f"{logs.directory}/2026-11.jsonl"
    with open(path, encoding="utf-8") as stream:
        changed = list(change(stream.read()))[number]
    with open(path, "w", encoding="utf-8") as stream:
        stream.write(changed)
    with pytest.raises(seal.SealError, match="2026-11.jsonl: record"):
        seal.verified(logs.directory)


def test_a_missing_month_is_found(logs):
    for number, now in enumerate((NOVEMBER - 31 * 86400, NOVEMBER, DECEMBER)):
        logs.write(str(number))
        logs.seal(now)
    os.unlink(f"{logs.directory}/2026-11.jsonl")
    with pytest.raises(seal.SealError, match="2026-12.jsonl: record 1"):
        seal.verified(logs.directory)
    for name in os.listdir(logs.directory):
        os.unlink(os.path.join(logs.directory, name))
    with pytest.raises(seal.SealError, match="no sealed events"):
        seal.verified(logs.directory)


def test_a_clock_that_was_set_back_changes_no_order(logs):
    logs.write("one")
    logs.seal(DECEMBER)
    logs.write("two")
    logs.seal(NOVEMBER)
    assert os.listdir(logs.directory) == ["2026-12.jsonl"] and logs.lines() == ["one", "two"]


def test_months_go_after_seven_years(logs):
    for number in range(90):
        logs.write(str(number))
        logs.seal(calendar.timegm((2020 + number // 12, number % 12 + 1, 15, 0, 0, 0)))
    names = sorted(os.listdir(logs.directory))
    assert (len(names), names[-1]) == (seal.MONTHS, "2027-06.jsonl")
    assert f": {seal.MONTHS} lines" in seal.verified(logs.directory)
