"""Hosts that were never converged: check mode on them, and a Redis with data that was there before."""

from __future__ import annotations

import pytest

testinfra_hosts = ["ansible://fresh"]

# Everything that a run could leave; Ansible's own temporary directories are not the roles' doing.
SNAPSHOT = r"""
find / -xdev \( -path /proc -o -path /sys -o -path /tmp -o -path /run -o -path /root -o -path /var/log \) -prune \
  -o -printf '%p %m %u %g %s %T@\n' | grep -v '/__pycache__' | sort
dpkg-query --show
systemctl list-unit-files --no-legend
"""


def test_a_check_of_a_fresh_host_succeeds_and_changes_nothing(host, converged):
    before = host.check_output("sh -c %s", SNAPSHOT)
    done = converged("postgresql,redis", "--check", "--diff")
    assert "+shared_buffers = 512MB" in done.text and "+maxmemory-policy volatile-lru" in done.text
    assert host.check_output("sh -c %s", SNAPSHOT) == before


@pytest.fixture
def older_redis(host):
    """Redis as Debian's package sets it up, regardless of earlier tests."""
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get purge --yes --quiet redis-server >/dev/null")
    # The directory itself is of redis-tools, which stays.
    host.check_output("rm -rf /var/lib/redis/* /etc/redis /etc/systemd/system/redis-server.service.d")
    host.check_output("systemctl daemon-reload")
    host.check_output("DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet redis-server >/dev/null")


@pytest.mark.usefixtures("older_redis")
def test_an_older_redis_keeps_its_data(host, converged, redis):
    assert redis("LPUSH", "waiting", "from before", user=None, password=None) == "1"
    converged("redis")
    assert redis("LRANGE", "waiting", "0", "-1", user="shiftmaster", password="redis-Lc9Yt3") == "from before"
    host.check_output("systemctl restart redis-server")
    assert redis("LRANGE", "waiting", "0", "-1", user="shiftmaster", password="redis-Lc9Yt3") == "from before"


@pytest.mark.usefixtures("older_redis")
def test_a_stopped_redis_with_a_snapshot_keeps_its_data(host, converged, redis):
    redis("SET", "later", "kept", user=None, password=None)
    host.check_output("systemctl stop redis-server")
    converged("redis")
    assert redis("GET", "later", user="shiftmaster", password="redis-Lc9Yt3") == "kept"
    host.check_output("systemctl restart redis-server")
    assert redis("GET", "later", user="shiftmaster", password="redis-Lc9Yt3") == "kept"
