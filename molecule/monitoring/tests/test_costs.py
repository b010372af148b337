"""Costs: memory after all other tests, and the processor's time of scrapes."""

from __future__ import annotations

import time

from support import PEAKS

# The time of all processes of the container, in seconds.
CPU_SECONDS = (
    "awk '/usage_usec/ { print $2 / 1e6 }' /sys/fs/cgroup/cpu.stat 2>/dev/null || "
    "awk '{ print $1 / 1e9 }' /sys/fs/cgroup/cpuacct/cpuacct.usage"
)


def test_memory_suffices_next_to_the_application(hosts, scaled, watch, capsys):
    """As if all of it were on one host, which Prometheus, Alertmanager and the exporters are on a small site."""
    found = {}
    for host in (hosts.app, watch):
        for line in host.shell(PEAKS).splitlines():
            unit, size = line.split()
            found[unit] = max(found.get(unit, 0), int(size) / 2**20)
    with capsys.disabled():
        print("".join(f"\n  {unit:45}{size:7.1f} MiB" for unit, size in sorted(found.items())))
        print(f"  {'all':45}{sum(found.values()):7.1f} MiB")
    assert len(found) == 8 and sum(found.values()) <= 600


# The last test: monitoring is off for a while.
def test_scrapes_cost_little(hosts, watch, scaled, capsys):
    """On the host with all of the application: with Prometheus and without, while no user works.

    The divided intervals cost as many times as much, so that what the application does by itself counts for less.
    """
    seconds, used = 40, []
    for requested in (True, False):
        watch.shell(f"systemctl {'start' if requested else 'stop'} prometheus")
        time.sleep(5)
        began, before = time.monotonic(), float(hosts.app.shell(CPU_SECONDS))
        time.sleep(seconds)
        used.append((float(hosts.app.shell(CPU_SECONDS)) - before) / (time.monotonic() - began))
    watch.shell("systemctl start prometheus")
    share = 100 * (used[0] - used[1]) / 2 / scaled
    with capsys.disabled():
        print(f"\n  {share:.2f} % of two processors ({used[0]:.3f} and {used[1]:.3f} of one, {scaled} times as often)")
    assert 0 < share <= 2
