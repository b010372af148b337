"""Members that failed, or are replaced by another machine, follow the primary again; writes go on."""

from database_cluster import CTL, Writer
from support import AUTHORITIES, wait_for


def test_a_failed_member_rejoins_by_one_command(members):
    """Its data is not complete, as after a copy that was interrupted: Patroni does not copy it again by itself."""
    host = members.asynchronous()
    host.shell("systemctl stop patroni@17-main; rm /var/lib/postgresql/17/main/global/pg_control")
    host.shell("systemctl start --no-block patroni@17-main")
    wait_for(lambda: members.api(host, "/patroni")[0], 60, "Patroni's response")
    assert not members.complete()
    members.primary().shell(f"{CTL} reinit 17-main {host.host} --force")
    wait_for(members.complete, 240, "a primary that two standbys follow")


def test_a_member_is_replaced_by_another_machine(members, capsys):
    """As the guide has it, under the same name and address; the machine did everything else, too."""
    host, primary = members.asynchronous(), members.primary()
    writer = Writer(members, primary, "replaced", 3000)
    host.replace()
    run = primary.run("deploy.yml", "--tags", "base,tls,database", *AUTHORITIES, timeout=1800)
    assert run.code == 0, run.output[-6000:]
    wait_for(members.complete, 240, "a primary that two standbys follow")
    run = primary.run("deploy.yml", *AUTHORITIES, timeout=2400)
    assert run.code == 0, run.output[-6000:]
    writer.end()
    result = writer.result()
    lost, count = writer.lost(result), len(result["acknowledged"])
    with capsys.disabled():
        print(f"\n  a member replaced: {result['gap']:.1f} s without writes, {len(lost)} of {count} lost")
    assert lost == [] and count > 100, result["errors"]
    assert [one.live_version(60) for one in members.hosts] == ["2.0.0"] * 3
    again = primary.run("deploy.yml", *AUTHORITIES, timeout=1200)
    assert (again.code, again.changed) == (0, 0), again.output[-4000:]
