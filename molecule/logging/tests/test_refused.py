"""A rejected configuration leaves the services unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import SCENARIO_HOME, Operations

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
UNITS = ("elasticsearch", "logstash", "kibana", "filebeat")
# Processes, files and packages of all parts.
SEEN = (
    "for unit in %s; do systemctl show -p MainPID,ActiveEnterTimestamp $unit; dpkg-query -W $unit; done; "
    "find /etc/elasticsearch /etc/logstash /etc/kibana /etc/filebeat /etc/apt /etc/systemd/system -type f "
    "-exec sha256sum {} + | sort"
) % " ".join(UNITS)


@pytest.fixture(scope="module")
def log():
    return Operations(INVENTORY, "logging-log")


WRONG = {
    "an option of an earlier version": (
        "elasticsearch", {"elasticsearch_settings": {"node.master": True}}, "node.master",
    ),
    "a misspelt option": ("elasticsearch", {"elasticsearch_settings": {"node.rolls": ["data"]}}, "node.rolls"),
    "an old name of Logstash's": ("logstash", {"logstash_settings": {"http.port": 9600}}, "api.http.port"),
    "a misspelt option of Kibana": ("kibana", {"kibana_settings": {"server.pot": 5601}}, "server.pot"),
    "an old input of Filebeat": ("filebeat", {"filebeat_settings": {"filebeat.prospectors": []}}, "filebeat.inputs"),
    "another major version": ("logging", {"logging_version": "10.0.0"}, "the configuration is for 9"),
    "a part before Elasticsearch": ("filebeat", {"logging_version": "9.100.0"}, "it goes first"),
    "a mask that runs away": (
        "logstash", {"log_masks_site": [{"name": "own", "pattern": "(a+)+b", "replace": "[x]"}]}, "(a+)+b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_it_is_refused_with_the_reason_and_nothing_has_changed(log, case):
    tag, extra, sentence = WRONG[case]
    before = log.shell(SEEN)
    run = log.run("deploy.yml", "--tags", tag, **extra)
    assert run.code == 2 and run.prints("Nothing was changed"), run.output[-4000:]
    assert run.prints(sentence), run.output[-4000:]
    assert run.changed == 0 and log.shell(SEEN) == before


def test_a_key_that_signs_nothing_of_it_is_refused(log):
    """The repository is signed by another key: what was there stays, and so does every service."""
    wrong = log.shell("cat /root/elastic-wrong.asc")
    right = (SCENARIO_HOME / "logging/logging-log/elastic-right.asc").read_text()
    assert wrong != right
    before = log.shell(SEEN)
    run = log.run("deploy.yml", "--tags", "elasticsearch", "--limit", "logging-log", elastic_repository_key=wrong)
    assert run.code == 2 and run.prints("The source elastic was not added"), run.output[-4000:]
    assert log.shell(SEEN) == before
    # And where the fingerprint that the vendor publishes is another one.
    run = log.run(
        "deploy.yml", "--tags", "elasticsearch", "--limit", "logging-log", elastic_repository_key_fingerprint="0" * 40
    )
    assert run.code == 2 and run.prints("the fingerprint of the key is"), run.output[-4000:]
    assert log.shell(SEEN) == before
