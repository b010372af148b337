"""The templates of roles postgresql and redis, rendered by Ansible, and the pure parts of their modules."""

from __future__ import annotations

import socket
import subprocess
import threading
import types
from pathlib import Path

import postgresql_cluster_config as pg
import pytest
import redis_instance_config as rd
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]


def render(role, template, **variables):
    known = {
        "ansible_facts": {
            "memtotal_mb": 4096,
            "distribution_major_version": "13",
            "distribution_release": "trixie",
        },
        "ansible_managed": "Ansible managed",
    }
    for part in ("defaults", "vars"):
        known.update(yaml.safe_load((ROOT / "roles" / role / part / "main.yml").read_text(encoding="utf-8")))
    known.update(variables)
    text = (ROOT / "roles" / role / "templates" / template).read_text(encoding="utf-8")
    templar = Templar(DataLoader(), variables=trusted(known))
    return templar.template(trust_as_template(text))


def settings_of(text, separator):
    pairs = [line.split(separator, 1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return {name.strip(): value.strip() for name, value in pairs}


# --- postgresql: templates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "share", "expected"),
    [
        (4096, 0.5, ["512MB", "1536MB", "128MB", "7MB"]),
        (4096, 1.0, ["1024MB", "3072MB", "256MB", "15MB"]),
        (65536, 1.0, ["16384MB", "49152MB", "1024MB", "245MB"]),
        (256, 0.5, ["64MB", "128MB", "32MB", "4MB"]),
    ],
)
def test_memory_follows_the_variables(memory, share, expected):
    text = render("postgresql", "shiftmaster.conf.j2", postgresql_memory_mb=memory, postgresql_memory_share=share)
    values = settings_of(text, "=")
    names = ("shared_buffers", "effective_cache_size", "maintenance_work_mem", "work_mem")
    assert [values[name] for name in names] == expected


def test_further_settings_come_last_and_are_quoted():
    more = {"wal_level": "logical", "autovacuum": True, "search_path": "it's, public", "cpu_tuple_cost": 0.02}
    text = render("postgresql", "shiftmaster.conf.j2", postgresql_settings=more)
    tail = text[text.index("# postgresql_settings") :].splitlines()[1:]
    assert tail == [
        "autovacuum = 'on'",
        "cpu_tuple_cost = '0.02'",
        "search_path = 'it''s, public'",
        "wal_level = 'logical'",
    ]


def test_hba_closes_the_superuser_before_anybody_else_and_knows_scram_only():
    rules = [{"type": "hostssl", "database": "shiftmaster", "user": "shiftmaster", "address": "192.0.2.0/24"}]
    text = render("postgresql", "pg_hba.conf.j2", postgresql_hba_rules=rules)
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == [
        ["local", "all", "postgres", "peer"],
        ["host", "all", "postgres", "all", "reject"],
        ["hostssl", "shiftmaster", "shiftmaster", "192.0.2.0/24", "scram-sha-256"],
    ]


def test_a_local_rule_can_name_a_system_user():
    rules = [{"type": "local", "database": "postgres", "user": "pgbackrest", "method": "peer"}]
    text = render("postgresql", "pg_hba.conf.j2", postgresql_hba_rules=rules)
    assert text.split()[-4:] == ["local", "postgres", "pgbackrest", "peer"]


def test_default_hba_allows_no_external_and_no_unencrypted_connection():
    text = render("postgresql", "pg_hba.conf.j2")
    hosts = [line.split() for line in text.splitlines() if line.startswith("host") and "reject" not in line]
    assert {(words[0], words[3]) for words in hosts} == {("hostssl", "127.0.0.1/32"), ("hostssl", "::1/128")}


def test_new_clusters_get_checksums():
    assert "--data-checksums" in render("postgresql", "createcluster.conf.j2")


def test_the_session_that_sets_passwords_is_kept_out_of_logs_and_statistics_and_trusts_no_database():
    """The options of a connection replace PGOPTIONS, so all of them are in one place."""
    block = yaml.safe_load((ROOT / "roles/postgresql/tasks/rights.yml").read_text(encoding="utf-8"))[0]
    (task,) = (task for task in block["block"] if "password" in task.get("community.postgresql.postgresql_user", {}))
    assert "environment" not in task
    given = task["community.postgresql.postgresql_user"]["connect_params"]["options"]
    variables = yaml.safe_load((ROOT / "roles/postgresql/vars/main.yml").read_text(encoding="utf-8"))
    options = Templar(DataLoader(), variables=trusted(variables)).template(trust_as_template(given)).split()
    common = block["module_defaults"]["community.postgresql.postgresql_db"]["connect_params"]["options"].split()
    quiet = ["log_statement=none", "log_min_error_statement=panic", "pg_stat_statements.track_utility=off"]
    # The application reads what other sessions run.
    quiet += ["track_activities=off"]
    assert set(options) >= {*common, *quiet}


# --- postgresql: module ---------------------------------------------------------------------------------------------


def test_no_role_owns_a_database():
    """An owner could close it to the backup and the next version: CONNECTION LIMIT 0, ALTER DATABASE SET."""
    play = yaml.safe_load((ROOT / "roles/postgresql/tasks/rights.yml").read_text(encoding="utf-8"))[0]
    modules = {name: task[name] for task in play["block"] for name in task if name.startswith("community.")}
    assert "owner" not in modules["community.postgresql.postgresql_db"]
    queries = [
        task["community.postgresql.postgresql_query"]["query"]
        for task in play["block"]
        if "community.postgresql.postgresql_query" in task
    ]
    assert any("OWNER TO postgres" in query[0] and "GRANT ALL" in query[1] for query in queries)


def test_postmaster_pid_is_read_only_when_ready():
    lines = [
        "812",
        "/var/lib/postgresql/17/main",
        "1730000000",
        "5432",
        "/var/run/postgresql",
        "localhost",
        "1 2",
        "ready   ",
    ]
    assert pg.parse_postmaster_pid("\n".join(lines))["port"] == 5432
    assert pg.parse_postmaster_pid("\n".join([*lines[:7], "starting"])) is None
    assert pg.parse_postmaster_pid("812\n") is None
    # It belongs to postgres, which can write anything there.
    assert pg.parse_postmaster_pid("\n".join(["root:x:0:0", *lines[1:]])) is None


def test_names_of_parameters():
    assert pg.parameter_names("# x = 1\nWork_Mem = 1MB\nport 5432\n\nwork_mem='2MB'\npg_stat_statements.max = 5") == [
        "work_mem",
        "port",
        "pg_stat_statements.max",
    ]


@pytest.mark.parametrize(
    ("mode", "owner", "fine"),
    [
        (0o600, 101, True),
        (0o640, 101, False),
        (0o640, 0, True),
        (0o644, 0, False),
        (0o660, 0, False),
        (0o600, 33, False),
    ],
)
def test_private_keys_follow_the_rule_of_the_server(mode, owner, fine):
    assert (pg.key_permission_problem(mode, owner, 101) is None) is fine


def test_complaints_of_the_server_name_the_real_files():
    output = (
        '2026-11-25 12:00:00 GMT [1] LOG:  invalid value for parameter "work_mem": "lots"\n'
        '2026-11-25 12:00:00 GMT [1] FATAL:  configuration file "/tmp/x/postgresql.conf" contains errors\n'
    )
    assert pg.readable_errors(output, "/tmp/x", "/etc/postgresql/17/main") == (
        'invalid value for parameter "work_mem": "lots"; '
        'configuration file "/etc/postgresql/17/main/postgresql.conf" contains errors'
    )


# --- redis: templates -----------------------------------------------------------------------------------------------

INSTANCE = {
    "name": "main",
    "port": 6379,
    "tls_port": 0,
    "bind": ["127.0.0.1", "-::1"],
    "maxmemory_mb": 256,
    "policy": "volatile-lru",
    "appendonly": True,
    "databases": 16,
    "settings": {},
}


def redis_conf(**more):
    return render("redis", "redis.conf.j2", __redis_instance={**INSTANCE, **more})


def test_main_has_the_names_of_debians_instance_and_another_its_own():
    values = settings_of(redis_conf(), " ")
    assert values["aclfile"] == "/etc/redis/users.acl" and values["dir"] == "/var/lib/redis"
    assert values["unixsocket"] == "/run/redis/redis-server.sock"
    other = settings_of(redis_conf(name="cache", port=6380), " ")
    assert other["aclfile"] == "/etc/redis/users-cache.acl" and other["dir"] == "/var/lib/redis/cache"
    assert other["unixsocket"] == "/run/redis-cache/redis-server.sock"


def test_tls_only_where_it_has_a_port():
    assert "tls" not in redis_conf()
    assert settings_of(redis_conf(tls_port=6390), " ")["tls-auth-clients"] == "no"


def test_a_cache_stores_nothing_on_disk():
    values = settings_of(redis_conf(appendonly=False), " ")
    assert values["appendonly"] == "no" and values["save"] == '""'


def test_settings_of_an_instance_win_over_those_of_all():
    text = render(
        "redis",
        "redis.conf.j2",
        redis_settings={"hz": 10, "activedefrag": True},
        __redis_instance={**INSTANCE, "settings": {"hz": 20}},
    )
    assert settings_of(text, " ")["hz"] == "20" and settings_of(text, " ")["activedefrag"] == "yes"


def test_users_are_hashed_and_the_default_one_is_off():
    text = render(
        "redis",
        "users.acl.j2",
        __redis_instance=INSTANCE,
        redis_admin_password="a",
        redis_users=[
            {"name": "z", "password": "secret", "rules": "~* &* +@all"},
            {"name": "b", "password": "secret", "rules": "+ping", "instances": ["cache"]},
        ],
    )
    lines = text.strip().splitlines()
    # Switched off, and with every right: what loads the append-only file acts as this user.
    assert lines[0] == "user default reset off ~* &* +@all"
    assert [line.split()[1] for line in lines] == ["default", "admin", "z"]
    assert "secret" not in text and "#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b" in lines[2]


def test_rules_of_the_application_name_channels_and_leave_administration_out():
    rules = yaml.safe_load((ROOT / "roles/redis/defaults/main.yml").read_text())["redis_rules_application"].split()
    assert "&*" in rules and rules.index("-@admin") > rules.index("+@all") and "-@dangerous" in rules


# --- redis: module --------------------------------------------------------------------------------------------------


def test_directives_are_read_as_the_server_would():
    text = '# port 1\nport 6379\nPort 6380\nbind 127.0.0.1 -::1\ntls-protocols "TLSv1.2 TLSv1.3"\n'
    assert rd.directive(text, "port") == "6380"
    assert rd.directive(text, "bind") == "127.0.0.1 -::1"
    assert rd.directive(text, "tls-protocols") == "TLSv1.2 TLSv1.3"
    assert rd.directive(text, "dir") is None


def test_a_changed_hash_is_reported_without_its_value():
    old, new = (
        f"user a on #{'1' * 64} +@all\nuser b on #{'2' * 64}",
        f"user a on #{'3' * 64} +@all\nuser b on #{'2' * 64}",
    )
    assert "1" * 64 not in rd.without_hashes(old) and "(hash of a password) +@all" in rd.without_hashes(old)
    assert rd.changed_passwords(old, new) == ["a"]


def test_differences_are_found_by_the_reference_and_for_addresses_by_the_file():
    live = {"maxmemory": "1", "port": "6379", "dir": "/var/lib/redis", "daemonize": "no", "hz": "10"}
    reference = {"maxmemory": "2", "port": "0", "dir": "/tmp/x", "daemonize": "yes", "hz": "10", "newer": "1"}
    assert rd.differences(live, reference, "port 6380\ndir /var/lib/redis\n") == {"maxmemory": "2", "port": "6380"}


def test_addresses_of_an_instance():
    old, new = "port 6379\n", "port 6380\nunixsocket /run/redis/s\n"
    assert rd.addresses((new, old, None)) == ["/run/redis/s", ("127.0.0.1", 6379)]


def test_the_administrators_password_is_sent_to_no_port_that_anybody_can_listen_on(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        stranger.settimeout(0.1)
        config = f"port {stranger.getsockname()[1]}\nunixsocket {tmp_path}/stopped\n"
        instance = types.SimpleNamespace(admin_user="admin", passwords=["secret"])
        thread = threading.Thread(target=rd.Instance.connect, args=(instance, config), daemon=True)
        thread.start()
        with pytest.raises(TimeoutError):
            stranger.accept()
        thread.join(5)


def test_a_rejected_file_is_reported_with_the_message_of_the_server():
    output = (
        "\n*** FATAL CONFIG FILE ERROR (Redis 8.0.2) ***\nReading the configuration file, at line 3\n"
        ">>> 'no-such-thing 1'\nBad directive or wrong number of arguments\n"
    )
    assert rd.startup_errors(output).endswith("Bad directive or wrong number of arguments")


# --- redis: earlier passwords --------------------------------------------------------------------------------------

ACL = "user default reset off\nuser admin reset on #{a} ~* &* +@all\nuser app reset on #{b} ~* +get\n"


def digits(password):
    return rd.hash_of(password)[1:]


def test_a_previous_password_stays_where_it_is_accepted_and_is_not_restored_elsewhere():
    old = ACL.format(a=digits("admin"), b=digits("one"))
    new = ACL.format(a=digits("admin"), b=digits("two"))
    kept = rd.with_kept_passwords(old, new, {"app": ["one", "zero"]})
    assert kept == new.replace(f"#{digits('two')}", f"#{digits('two')} #{digits('one')}")
    assert rd.with_kept_passwords(kept, new, {"app": ["one"]}) == kept
    assert rd.with_kept_passwords(kept, new, {}) == new
    assert rd.with_kept_passwords("", new, {"app": ["one"]}) == new
    assert rd.with_kept_passwords(old, old, {"app": ["one"]}) == old


def test_passwords_alone_are_set_without_loading_the_users():
    one, two = rd.hash_of("one"), rd.hash_of("two")
    live = ["user app on sanitize-payload %s ~* +get" % one, "user default off ~*"]
    assert rd.password_rules(live, live) == {}
    assert rd.password_rules(live, [live[0].replace(one, f"{one} {two}"), live[1]]) == {"app": [two]}
    assert rd.password_rules(live, [live[0].replace(one, two), live[1]]) == {"app": [two, "!" + one[1:]]}
    assert rd.password_rules(live, [live[0].replace("+get", "+set"), live[1]]) is None
    assert rd.password_rules(live, live[:1]) is None
    assert rd.with_sorted_hashes(f"user app on {one} {two} ~*") == rd.with_sorted_hashes(f"user app on {two} {one} ~*")


def test_a_backup_server_that_never_ends_its_response_does_not_block_the_archiver(tmp_path):
    """pgBackRest reads backup_wal_limit_mb only when it begins: pg_wal grew until the disk was full."""
    group_variables = yaml.safe_load((ROOT / "group_vars/all/data.yml").read_text(encoding="utf-8"))
    templar = Templar(DataLoader(), variables={"backup_configured": True, "backup_stanza": "shiftmaster"})
    command = templar.template(trust_as_template(group_variables["postgresql_archive_command"]))
    stub = tmp_path / "pgbackrest"
    stub.write_text("#!/bin/sh\ntrap '' TERM\nexec sleep 30\n")
    stub.chmod(0o755)
    words = ["sh", "-c", command.replace(" 300 ", " 1 ").replace("=10 ", "=1 ")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    assert subprocess.run(words, env=environment, timeout=20, check=False).returncode != 0
