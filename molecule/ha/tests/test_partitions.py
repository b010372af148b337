"""Parts of the network fail: never do two hosts acknowledge writes, and no acknowledged row is lost."""

import time

import pytest
from database_cluster import Writer
from support import wait_for

PARTITIONS = {
    "etcd": {"ports": "2379, 2380"},
    # The primary keeps its lease, and no commit is acknowledged that no standby has.
    "replication": {"ports": "5432", "serves": False},
    "Patroni": {"ports": "8008"},
    "all it sends": {"chains": ("output",)},
    "all it receives": {"chains": ("input",)},
    "one standby": {"others": 1},
}


@pytest.mark.parametrize("name", PARTITIONS)
def test_one_host_at_a_time_acknowledges(members, capsys, name):
    """A writer is pinned to each host, as a client that reaches no other."""
    primary, standbys = members.primary(), members.standbys()
    partition = dict(PARTITIONS[name])
    others, serves = standbys[: partition.pop("others", 2)], partition.pop("serves", True)
    writers = [
        Writer(members, host, f"{name.replace(' ', '-')}-{host.host}", 75, pinned=True) for host in members.hosts
    ]
    time.sleep(5)
    members.cut(primary, *others, **partition)
    cut = time.time()
    time.sleep(75)
    healed = time.time()
    # A commit that waits for a standby ends now.
    members.heal()
    results = [writer.result() for writer in writers]
    lost = [number for writer, result in zip(writers, results, strict=True) for number in writer.lost(result)]
    after = {
        writer.host.host: [at for _number, at in result["acknowledged"] if cut < at < healed]
        for writer, result in zip(writers, results, strict=True)
    }
    spans = sorted((min(times), max(times), host) for host, times in after.items() if times)
    with capsys.disabled():
        shown = ", ".join(f"{host} {begin - cut:.1f} to {end - cut:.1f} s" for begin, end, host in spans)
        count = sum(len(result["acknowledged"]) for result in results)
        print(f"\n  {name}: acknowledged by {shown or 'none'}; {len(lost)} of {count} lost")
    assert lost == []
    assert all(earlier[1] < later[0] for earlier, later in zip(spans, spans[1:], strict=False)), spans
    # One of them does at the end, within the time that a lost host costs.
    assert bool(spans and spans[-1][1] > cut + 60) == serves, spans


def test_a_former_primary_that_diverged_rejoins(members):
    """It wrote rows that no standby received: pg_rewind removes them."""
    primary = members.primary()
    members.sql("CREATE TABLE IF NOT EXISTS public.diverged (n int)", database="shiftmaster")
    members.cut(primary, *members.standbys())
    # Local commits that no standby has confirmed.
    members.sql(
        "SET synchronous_commit = local; INSERT INTO public.diverged SELECT generate_series(1, 1000)",
        primary, database="shiftmaster",
    )  # fmt: skip
    wait_for(lambda: members.primaries(*[host for host in members.hosts if host is not primary]), 90, "a new primary")
    members.heal(300)
    assert members.primary() is not primary
    assert members.sql("SELECT count(*) FROM public.diverged", primary, "shiftmaster").strip() == "0"
    members.sql("DROP TABLE public.diverged", database="shiftmaster")
