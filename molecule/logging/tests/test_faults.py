"""Lines while a part of the pipeline fails; on Elastic's own packages alone: a stub's queue verifies nothing.

Run where SHIFTMASTER_ELASTIC_URL shows where the packages are (molecule/README.md). That nothing is lost and nothing is
doubled is a count of lines with a mark.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import uuid
from pathlib import Path

import pytest
from support import SCENARIO_HOME, Operations, wait_for

INVENTORY = Path(__file__).resolve().parents[1] / "inventory"
STREAM = "logs-shiftmaster.app-demo"
LINES = 2000

pytestmark = pytest.mark.skipif(
    not os.environ.get("SHIFTMASTER_ELASTIC_URL"), reason="not run: Elastic's packages are not here"
)


@pytest.fixture(scope="module")
def app():
    return Operations(INVENTORY, "logging-trixie")


@pytest.fixture(scope="module")
def log():
    return Operations(INVENTORY, "logging-log")


@pytest.fixture(autouse=True)
def as_deployed(app):
    yield
    run = app.run("deploy.yml", "--tags", "logging")
    assert run.code == 0, run.output[-4000:]


def query(log, path, method="GET", body=None):
    secret = (SCENARIO_HOME / "logging/admin").read_text().split()[0]
    text = log.shell(
        f"curl -sS -m 30 --cacert /etc/ssl/shiftmaster/ca.crt -K - -X {method} -H 'Content-Type: application/json' "
        f"-d '{json.dumps(body) if body else ''}' https://localhost:9200/{path}",
        stdin=f'user = "shiftmaster_admin:{secret}"\n',
    )
    return json.loads(text)


WRITER = """
import json, os, sys, time
os.umask(0o027)
mark, count, pause, more = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), json.loads(sys.argv[4])
for number in range(count):
    event = {
        "@timestamp": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()), "ecs": {"version": "8.11.0"},
        "log": {"level": "INFO", "logger": "faults"}, "message": "%s %d" % (mark, number),
        "event": {"dataset": "shiftmaster.app"}, "service": {"name": "shiftmaster", "environment": "demo"}, **more,
    }
    # Opened each time, as the application does after a rotation.
    with open("/var/log/shiftmaster/app.log", "a") as stream:
        stream.write(json.dumps(event) + "\\n")
    time.sleep(pause)
"""


def write(app, count=LINES, pause=0.0, more=None):
    """Write so many lines as the application writes them; returns their mark."""
    mark = uuid.uuid4().hex
    words = f"{mark} {count} {pause} {shlex.quote(json.dumps(more or {}))}"
    app.shell(f"runuser -u shiftmaster -- python3 - {words}", timeout=300, stdin=WRITER)
    return mark


def found(log, mark):
    query(log, f"{STREAM}/_refresh", "POST")
    body = {"size": 0, "track_total_hits": True, "query": {"match": {"message": mark}}}
    return query(log, f"{STREAM}/_search", "POST", body)["hits"]["total"]["value"]


def arrive(log, mark, count=LINES, seconds=300):
    """Wait for all; then see that none comes twice."""
    wait_for(lambda: found(log, mark) >= count, seconds, f"{count} lines")
    assert found(log, mark) == count


def pipeline(log):
    return json.loads(log.shell("curl -sS -m 20 http://127.0.0.1:9600/_node/stats/pipelines"))["pipelines"][
        "shiftmaster"
    ]


def test_elasticsearch_is_down(app, log):
    second = Operations(INVENTORY, "logging-log2")
    arrive(log, write(app))
    for host in (log, second):
        host.shell("systemctl stop elasticsearch", timeout=300)
    before = pipeline(log)["queue"]["events_count"]
    mark = write(app)
    wait_for(lambda: pipeline(log)["queue"]["events_count"] >= before + LINES, 120, "a queue that grows")
    for host in (log, second):
        host.shell("systemctl start elasticsearch", timeout=300)
    arrive(log, mark)


def test_logstash_is_killed(app, log):
    mark = write(app)
    log.shell("systemctl kill --signal=KILL logstash")
    wait_for(lambda: log.shell("systemctl is-active logstash || true").strip() == "active", 180, "Logstash again")
    arrive(log, mark)


def test_the_disk_is_at_the_flood_watermark(app, log):
    name = "cluster.routing.allocation.disk.watermark."
    full = {name + "low": "1%", name + "high": "1%", name + "flood_stage": "1%"}
    arrive(log, write(app, 10), 10)
    query(log, "_cluster/settings", "PUT", {"persistent": full})

    def blocked():
        response = query(log, f"{STREAM}/_settings/index.blocks.read_only_allow_delete?flat_settings=true")
        return any(index["settings"] for index in response.values())

    wait_for(blocked, 180, "the block")
    mark = write(app)
    wait_for(lambda: pipeline(log)["queue"]["events_count"] > 0, 120, "a queue that grows")
    assert found(log, mark) == 0
    # The role's own watermarks come back, and Elasticsearch removes its block.
    assert app.run("deploy.yml", "--tags", "elasticsearch").code == 0
    wait_for(lambda: not blocked(), 180, "the end of the block")
    arrive(log, mark)


def test_filebeat_has_a_certificate_of_another_authority(app, log):
    app.shell(
        "cd /root && openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=other "
        "-keyout other.key -out other.crt"
    )
    wrong = {"filebeat_tls_certificate_file": "/root/other.crt", "filebeat_tls_key_file": "/root/other.key"}
    app.run("deploy.yml", "--tags", "filebeat", "--limit", "logging-trixie", **wrong)
    mark = write(app)
    app.shell("sleep 30")
    assert found(log, mark) == 0
    assert app.run("deploy.yml", "--tags", "filebeat", "--limit", "logging-trixie").code == 0
    arrive(log, mark)


def test_a_rotation_under_load(app, log):
    app.shell("(for turn in 1 2 3; do sleep 1; logrotate -f /etc/logrotate.d/shiftmaster; done) >/dev/null 2>&1 &")
    mark = write(app, pause=0.003)
    arrive(log, mark)


def test_a_field_of_another_type_is_a_dead_letter_and_an_alert(app, log):
    before = pipeline(log)["dead_letter_queue"]["queue_size_in_bytes"]
    mark = write(app, 5, more={"process": {"pid": "no number"}})
    wait_for(lambda: pipeline(log)["dead_letter_queue"]["queue_size_in_bytes"] > before, 120, "a dead letter")
    assert found(log, mark) == 0
    # The alert LogDeadLetters checks whether this metric has grown.
    assert app.run("deploy.yml", "--tags", "log_watch", monitoring_hosts=["logging-log"]).code == 0
    log.shell("systemctl start --wait shiftmaster-log-watch.service")
    text = log.shell("cat /var/lib/prometheus/node-exporter/shiftmaster_logging.prom")
    (metric,) = re.findall(r"(?m)^shiftmaster_logstash_dead_letter_bytes (\S+)$", text)
    assert float(metric) > before
