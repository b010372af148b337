"""Snapshots that may be removed off-site: by the arrival times of files, not by their content."""

from __future__ import annotations

import os
import time

import offsite_repository as module
import pytest

DAY = 86400
NOW = module.seconds_of("20261126120000Z")
KEEP = {"days": 30, "months": 3, "years": 2}


def snapshot(name, **claims):
    return {"id": name, "hostname": "db1", "tags": ["files"], "time": "2099-01-01T00:00:00Z", **claims}


def dates(names):
    return [time.strftime("%Y-%m-%d", time.gmtime(NOW - int(name[1:]) * 7 * DAY)) for name in names]


@pytest.fixture
def weekly():
    """A snapshot a week for three years, each of which claims to be of another year."""
    names = ["w%d" % week for week in range(156, -1, -1)]
    return [snapshot(name) for name in names], {name: NOW - int(name[1:]) * 7 * DAY for name in names}


def test_the_month_stays_and_the_first_of_older_months_and_years(weekly):
    listed, arrived = weekly
    kept = [one["id"] for one in listed if one["id"] not in module.going(listed, arrived, NOW, KEEP)]
    assert dates(name for name in kept if int(name[1:]) > 6) == ["2025-01-02", "2026-01-01", "2026-09-03", "2026-10-01"]
    assert {"w%d" % week for week in range(7)} <= set(kept)


def test_only_the_month_of_the_database_is_kept(weekly):
    listed, arrived = weekly
    listed = [dict(one, tags=["database", "run=1"]) for one in listed]
    kept = {one["id"] for one in listed} - set(module.going(listed, arrived, NOW, KEEP))
    assert kept == {"w%d" % week for week in range(7)}


def test_each_part_has_a_first_snapshot_of_its_own_in_each_month(weekly):
    """The configuration arrives a minute before or after the files."""
    listed, arrived = weekly
    for offset in (-60, 60):
        other = {"c" + name: when + offset for name, when in arrived.items()}
        both = listed + [snapshot(name, tags=["configuration", "run=1"]) for name in other]
        gone = set(module.going(both, {**arrived, **other}, NOW, KEEP))
        assert {name for name in gone if name[0] == "w"} == set(module.going(listed, arrived, NOW, KEEP))
        assert {name[1:] for name in gone if name[0] == "c"} == {name for name in gone if name[0] == "w"}


def test_nothing_is_removed_while_nothing_arrives():
    listed = [snapshot("w%d" % week) for week in range(7)]
    arrived = {one["id"]: NOW - (400 + number) * DAY for number, one in enumerate(listed)}
    assert module.going(listed, arrived, NOW, {"days": 1, "months": 0, "years": 0}) == []


def test_snapshots_of_a_client_replace_no_older_ones(weekly):
    """A hundred snapshots with any date, of every host and tag, sent today."""
    listed, arrived = weekly
    before = module.going(listed, arrived, NOW, KEEP)
    sent = [snapshot("s%d" % number, time="1999-01-01T00:00:00Z") for number in range(100)]
    later = module.going(listed + sent, {**arrived, **{one["id"]: NOW - 60 for one in sent}}, NOW, KEEP)
    # Two of the seven newest ones, which stay at any age, are older than 30 days.
    assert set(later) - set(before) <= {"w5", "w6"} and set(before) <= set(later)


def test_files_that_arrived_later_are_quarantined(tmp_path):
    path = tmp_path / "shiftmaster"
    for kind in module.DECIDE:
        (path / kind).mkdir(parents=True)
        for name, when in (("old", NOW - 5), ("new", NOW + 5)):
            (path / kind / name).write_text(kind)
            os.utime(path / kind / name, (when, when))
    wanted = sorted("%s/new" % kind for kind in module.DECIDE)
    assert sorted(module.quarantine(str(path), NOW, True)) == wanted and (path / "keys/new").exists()
    assert sorted(module.quarantine(str(path), NOW, False)) == wanted
    aside = tmp_path / "shiftmaster.after-20261126120000Z"
    assert sorted(str(one.relative_to(aside)) for one in aside.rglob("new")) == wanted
    assert not list(path.rglob("new")) and len(list(path.rglob("old"))) == 4
    assert module.quarantine(str(path), NOW, False) == []


def options(path, password="today", previous_passwords=(), received_after=""):
    keep = {"keep_" + name: value for name, value in KEEP.items()}
    return dict(
        keep, path=str(path), password=password, previous_passwords=previous_passwords, received_after=received_after
    )


def repository(tmp_path, keys):
    path = tmp_path / "shiftmaster"
    for kind in module.DECIDE:
        (path / kind).mkdir(parents=True)
    for name, when in {**{"keys/" + name: when for name, when in keys.items()}, "index/late": NOW + 5}.items():
        (path / name).write_text("")
        os.utime(path / name, (when, when))
    return path


@pytest.mark.parametrize(
    "keys, password, there",
    [
        ({"old": NOW - 5}, "old", ["old"]),
        # The password was changed after the time, and prune has removed the earlier one.
        ({"new": NOW + 5}, "new", ["new"]),
        ({"old": NOW - 5, "new": NOW + 5}, "new", ["new", "old"]),
        ({"old": NOW - 5, "strange": NOW + 5}, "old", ["old"]),
    ],
)
def test_a_quarantine_leaves_a_repository_that_opens_and_has_an_index(tmp_path, monkeypatch, keys, password, there):
    """Also where a run was killed between both: the second one finds nothing to move."""
    path, repaired = repository(tmp_path, keys), []

    class Module:
        check_mode = False
        params = options(path, password, received_after="20261126120000Z")

        def __init__(self, **_more):
            pass

        def run_command(self, words, environ_update):
            if not (path / "keys" / environ_update["RESTIC_PASSWORD"]).exists():
                return 12, "", "wrong password or no key found"
            repaired.extend([words[3:]] if "repair" in words else [])
            return 0, "{}", ""

        def exit_json(self, **_result):
            raise SystemExit(0)

        def fail_json(self, **result):
            raise AssertionError(result)

    monkeypatch.setattr(module, "QuietModule", Module)
    for _run in range(2):
        with pytest.raises(SystemExit):
            module.main()
        assert repaired.pop() == ["repair", "index"] and sorted(os.listdir(path / "keys")) == there
    assert os.listdir(path / "index") == []


@pytest.mark.parametrize("check_mode", [False, True])
def test_earlier_passwords_end_where_todays_opens_the_repository(tmp_path, monkeypatch, check_mode):
    there, results = {"1": "earlier", "2": "today"}, []
    (tmp_path / "snapshots").mkdir()

    class Module:
        params = options(tmp_path, previous_passwords=["earlier", "oldest"])

        def __init__(self, **_more):
            self.check_mode = check_mode

        def run_command(self, words, environ_update):
            assert not {"today", "earlier", "oldest"} & set(words)
            opened = [name for name, password in there.items() if password == environ_update["RESTIC_PASSWORD"]]
            if not opened:
                return 12, "", "wrong password"
            if "remove" in words:
                del there[words[-1]]
            return 0, module.json.dumps([{"id": name, "current": name in opened} for name in there]
                                        if "key" in words else []), ""  # fmt: skip

        def exit_json(self, **result):
            results.append(result)
            raise SystemExit

        def fail_json(self, **result):
            raise AssertionError(result)

    monkeypatch.setattr(module, "QuietModule", Module)
    for _ in range(2):
        with pytest.raises(SystemExit):
            module.main()
    assert there == ({"1": "earlier", "2": "today"} if check_mode else {"2": "today"})
    assert [one["changed"] for one in results] == [True, check_mode]


@pytest.mark.parametrize("intact", [False, True])
def test_snapshots_are_removed_where_all_data_is_intact_alone(tmp_path, monkeypatch, weekly, intact):
    listed, arrived = weekly
    for kind in module.DECIDE:
        (tmp_path / kind).mkdir()
    for name, when in arrived.items():
        (tmp_path / "snapshots" / name).write_text("x")
        os.utime(tmp_path / "snapshots" / name, (when, when))
    called = []

    class Module:
        check_mode = False
        params = options(tmp_path)

        def __init__(self, **_more):
            pass

        def run_command(self, words, environ_update):
            called.append(words[3])
            if words[3:] == ["check", "--read-data"] and not intact:
                return 1, "", "pack 1234 contains 1 errors"
            return 0, module.json.dumps(listed if "snapshots" in words else []), ""

        def exit_json(self, **result):
            raise SystemExit(0)

        def fail_json(self, msg):
            assert "nothing was removed" in msg and "pack 1234" in msg
            raise SystemExit(1)

    monkeypatch.setattr(module, "QuietModule", Module)
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == (0 if intact else 1)
    assert called[-1] == ("forget" if intact else "check")
