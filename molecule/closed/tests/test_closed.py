"""A host without internet access: installed, upgraded and rolled back from directories of packages and wheels."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support import APP, SCENARIO_HOME, Operations, wait_for

HOME = SCENARIO_HOME / "closed"
WHEELS = "/var/cache/shiftmaster/wheels"


@pytest.fixture(scope="module")
def operations():
    operations = Operations(Path(__file__).parent.parent / "inventory", "closed-trixie")
    assert operations.live_version(60), "the host does not serve"
    return operations


def wheels_of(operations) -> dict:
    """{name: when it was written} of the wheels on the host."""
    lines = operations.shell(f"find {WHEELS} -name '*.whl' -printf '%f %C@\\n'").splitlines()
    return dict(line.split() for line in lines)


def dropped(operations) -> dict:
    """{counter: packets} of the table that closes the network, and what was tried, as text."""
    table = json.loads(operations.shell("nft --json list table inet closed"))["nftables"]
    counted = {one["counter"]["name"]: one["counter"]["packets"] for one in table if "counter" in one}
    return {**counted, "tried": [one["set"].get("elem", []) for one in table if "set" in one][0]}


def test_the_empty_host_was_installed_from_the_directories(operations):
    assert operations.live_version() == "2.0.0"
    places = operations.shell("apt-get indextargets --format '$(URI)'").split()
    assert places and [place for place in places if not place.startswith("file:/srv/shiftmaster-apt/")] == []
    sources = operations.shell("cat /etc/apt/sources.list /etc/apt/sources.list.d/*")
    assert re.findall(r"\w+:/\S*", re.sub("(?m)^#.*", "", sources)) == ["file:/srv/shiftmaster-apt"]
    assert set(wheels_of(operations)) == {path.name for path in (HOME / "wheels").iterdir()}


def test_a_missing_wheel_is_named_before_anything_changes(operations):
    before = operations.fingerprint()
    run = operations.deploy("2.1.0")
    assert run.code == 2 and run.changed == 0, run.output[-4000:]
    assert run.prints("Nothing was changed. What is wrong:", "has no wheel for Python 3.", "jpholiday==1.0.3")
    assert operations.fingerprint() == before


def test_every_missing_wheel_is_named_at_once(operations, tmp_path):
    shutil.copytree(HOME / "wheels", tmp_path / "some")
    for path in [*(tmp_path / "some").glob("celery-*"), *(tmp_path / "some").glob("psycopg_binary-*")]:
        path.unlink()
    run = operations.deploy("2.0.0", shiftmaster_wheels_dir=str(tmp_path / "some"))
    assert run.code == 2 and run.changed == 0, run.output[-4000:]
    assert run.prints("Nothing was changed.", "celery==5.7.0", "psycopg-binary==")


def test_another_source_of_wheels_makes_no_new_release(operations):
    before = wheels_of(operations)
    run = operations.deploy("2.0.0", shiftmaster_wheels="controller")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]
    assert wheels_of(operations) == before


def test_upgrade_with_wheels_of_the_controller_copies_only_new_ones(operations):
    before = wheels_of(operations)
    run = operations.deploy("2.1.0", shiftmaster_wheels="controller", shiftmaster_watch_seconds=5)
    assert run.code == 0, run.output[-6000:]
    assert operations.live_version(10) == "2.1.0"
    after = wheels_of(operations)
    assert {name.split("-")[0] for name in set(after) - set(before)} >= {"jpholiday"}
    assert {name: after[name] for name in before if name in after} == before, "what the host had was copied again"
    log = operations.shell(f"cat /var/log/shiftmaster/builds/$(basename $(readlink -f {APP}/current)).log")
    assert "install the requirements" in log


def test_rollback_and_redeploy_need_nothing(operations):
    run = operations.rollback(shiftmaster_watch_seconds=5)
    assert run.code == 0, run.output[-6000:]
    assert operations.live_version(10) == "2.0.0"
    run = operations.deploy("2.0.0")
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_a_wheel_that_was_exchanged_is_refused_by_its_hash(operations, tmp_path):
    shutil.copytree(HOME / "wheels", tmp_path / "some")
    exchanged = next((tmp_path / "some").glob("sqlparse-*"))
    exchanged.write_bytes(exchanged.read_bytes() + b"\0")
    run = operations.deploy("2.0.0", shiftmaster_wheels_dir=str(tmp_path / "some"))
    assert run.code == 2 and run.changed == 0, run.output[-4000:]
    assert run.prints("Nothing was changed.", "sqlparse", "Expected sha256")


def test_packages_that_nothing_vouches_for_are_refused(operations):
    run = operations.run("deploy.yml", "--tags", "base", base_apt_dir_key="")
    assert run.code == 2 and run.changed == 0, run.output[-4000:]
    assert run.prints("Nothing was changed.", "nothing vouches for the packages of base_apt_dir")
    run = operations.run("deploy.yml", "--tags", "base", base_apt_dir_src=str(HOME / "nowhere"))
    assert run.code == 2 and run.changed == 0, run.output[-4000:]
    assert run.prints("Nothing was changed.", "holds no file Packages")


def test_a_missing_package_is_named_and_installed_from_the_next_directory(operations):
    run = operations.run("deploy.yml", "--tags", "base", base_extra_packages=["tree"])
    assert run.code == 2 and run.prints("No package matching 'tree' is available"), run.output[-4000:]
    held = "stat --format '%n %Z' /srv/shiftmaster-apt/*.deb"
    before = operations.shell(held).splitlines()
    more = {"base_extra_packages": ["tree"], "base_apt_dir_src": str(HOME / "apt-more")}
    run = operations.run("deploy.yml", "--tags", "base", **more)
    assert run.code == 0, run.output[-4000:]
    assert operations.shell("command -v tree")
    after = operations.shell(held).splitlines()
    assert [line.split("/")[-1].split("_")[0] for line in after if line not in before] == ["tree"]
    run = operations.run("deploy.yml", "--tags", "base", **more)
    assert (run.code, run.changed) == (0, 0), run.output[-4000:]


def test_a_package_that_was_exchanged_is_refused_by_its_hash(operations):
    """The signature vouches for the index, the index for each package."""
    operations.shell("apt-get remove --yes tree && echo >>$(ls /srv/shiftmaster-apt/tree_*.deb)")
    message = operations.shell("LC_ALL=C apt-get install --yes tree 2>&1", check=False)
    assert "tree" in message and re.search("Hash Sum mismatch|unexpected size|Mismatch", message), message


def test_a_check_works_without_the_internet(operations):
    before = operations.fingerprint()
    run = operations.run(
        "deploy.yml", "--check", "--diff", shiftmaster_version="2.1.0", shiftmaster_wheels="controller"
    )
    assert run.code == 0, run.output[-4000:]
    assert operations.fingerprint() == before


def test_a_check_that_needs_the_internet_is_rejected(operations):
    """As on an empty host: apt has no index and does not know the directory. The next deploy brings both."""
    operations.shell("rm -rf /var/lib/apt/lists/* /etc/apt/sources.list.d/debian.sources")
    run = operations.run("deploy.yml", "--tags", "base", "--check")
    assert run.code == 2 and run.prints("a check copies nothing"), run.output[-4000:]
    run = operations.run("deploy.yml", "--tags", "base")
    assert run.code == 0, run.output[-4000:]
    assert operations.shell("apt-cache policy nginx | grep file:/srv/shiftmaster-apt")


def test_the_host_has_sent_no_request_to_the_internet(operations):
    """Counted from before the installation on; the last of the tests that deploy."""
    found = dropped(operations)
    assert (found["outside"], found["tried"]) == (0, []), found


def test_requests_to_the_internet_would_be_counted(operations):
    before = dropped(operations)
    operations.shell("curl --silent --max-time 2 http://192.0.2.1:8080/", check=False)
    wait_for(lambda: dropped(operations)["outside"] > before["outside"], 5, "the dropped packet")
    assert ["192.0.2.1", "tcp", 8080] in [one["concat"] for one in dropped(operations)["tried"]]
