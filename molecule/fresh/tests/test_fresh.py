"""On an empty host: check mode reports and changes nothing, and bad input ends with one list and changes nothing."""

import re
from pathlib import Path

import pytest
from support import Operations

INVENTORY = Path(__file__).parent.parent / "inventory"


@pytest.fixture(scope="module")
def operations():
    return Operations(INVENTORY, "fresh-trixie")


def test_check_mode_on_an_empty_host(operations):
    before = operations.fingerprint()
    run = operations.run("deploy.yml", "--check", "--diff")
    assert run.code == 0, run.output[-6000:]
    assert run.prints("then: a new release of version 2.0.0")
    assert run.prints("/etc/nginx/sites-available/shiftmaster", "shiftmaster-web@.service")
    assert run.prints("/etc/systemd/system/shiftmaster-backup.timer")
    # It watches itself.
    assert run.prints("/etc/prometheus/prometheus.yml", "/etc/prometheus/alertmanager.yml", "prometheus-node-exporter")
    assert run.changed > 20
    assert operations.fingerprint() == before


def test_check_mode_where_its_logs_are_collected():
    collected = Operations(INVENTORY.with_name("collected"), "fresh-trixie")
    before = collected.fingerprint()
    run = collected.run("deploy.yml", "--check", "--diff")
    assert run.code == 0, run.output[-6000:]
    for part in ("elasticsearch", "logstash", "kibana", "filebeat"):
        # Its content is not shown: there are secrets in it.
        task = re.escape(f"TASK [{part} : configure | Apply the configuration]")
        assert re.search(rf"{task} \*+\nchanged: \[fresh-trixie\]", run.output), part
    assert run.prints("mirror.example.net/elastic")
    assert collected.fingerprint() == before


BAD_INPUT = {
    "unknown revision": ({"shiftmaster_version": "no-such-version"}, "no-such-version"),
    "wrong repository": ({"shiftmaster_repository": "/nowhere/at-all.git"}, "/nowhere/at-all.git"),
    "wrong type": ({"shiftmaster_web_threads": "many"}, "shiftmaster_web_threads"),
    "typing error": ({"shiftmaster_web_worker": 3}, "did you mean shiftmaster_web_workers?"),
    "missing secret": ({"vault_shiftmaster_secret_key": ""}, "variable vault_shiftmaster_secret_key is not set"),
}


# A repository that cannot be read reports nothing about its versions, and names are checked before anything else is.
ALONE = ["unknown revision", "typing error"]


@pytest.mark.parametrize("cases", [*([case] for case in ALONE), [case for case in BAD_INPUT if case not in ALONE]])
def test_bad_input_is_one_sentence_and_changes_nothing(operations, cases):
    extra = {name: value for case in cases for name, value in BAD_INPUT[case][0].items()}
    before = operations.fingerprint()
    run = operations.run("deploy.yml", **extra)
    sentences = [BAD_INPUT[case][1] for case in cases]
    assert run.code == 2 and run.prints("Nothing was changed. What is wrong:", *sentences), run.output[-4000:]
    assert run.changed == 0
    assert operations.fingerprint() == before
