"""The templates of roles base, firewall and tls, rendered by Ansible, and the tool that puts certificates in place."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import inspect
import json
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import rendered
import yaml
from ansible.modules import apt
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]
FACTS = {
    "distribution": "Debian",
    "distribution_major_version": "13",
    "distribution_release": "trixie",
    "virtualization_type": "kvm",
    "virtualization_role": "guest",
}


def templar(role, **variables):
    known = {"ansible_facts": FACTS, "ansible_managed": "Ansible managed", "inventory_hostname": "host"}
    for part in ("defaults", "vars"):
        known.update(yaml.safe_load((ROOT / "roles" / role / part / "main.yml").read_text(encoding="utf-8")))
    known.update(variables)
    return Templar(DataLoader(), variables=trusted(known))


def render(role, template, **variables):
    text = (ROOT / "roles" / role / "templates" / template).read_text(encoding="utf-8")
    return templar(role, **variables).template(trust_as_template(text))


def value(role, name, **variables):
    return templar(role, **variables).template(trust_as_template("{{ %s }}" % name))


# base


@pytest.mark.parametrize("name", ["ansible_password", "ansible_ssh_password", "ansible_ssh_pass"])
def test_a_login_by_password_is_a_problem_where_sshd_would_end_it(name):
    def problems(**variables):
        return rendered.problems("base", templar("base", **{name: "secret", **variables}))

    (found,) = problems()
    assert "is reached with a password" in found and "secret" not in found
    assert "PermitRootLogin" in found and "PermitRootLogin" not in problems(ansible_user="sato")[0]
    kept = {"PasswordAuthentication": "yes"}
    assert problems(ansible_user="sato", base_hardening_sshd_settings=kept) == []
    assert len(problems(base_hardening_sshd_settings=kept)) == 1, "root's password would end all the same"
    assert problems(base_hardening_sshd_settings={**kept, "PermitRootLogin": "yes"}) == []
    assert problems(base_hardening_sshd=False) == [] == problems(ansible_connection="community.docker.docker")
    assert rendered.problems("base", templar("base")) == []


CONTAINER = {**FACTS, "virtualization_type": "docker"}


def test_a_container_changes_no_setting_of_its_machine():
    def names(facts):
        return set(re.findall(r"^(\S+) =", render("base", "sysctl.conf.j2", ansible_facts=facts), re.M))

    inside, outside = names(CONTAINER), names(FACTS)
    assert inside < outside
    assert not [name for name in inside if name.startswith(("kernel.", "fs.", "vm.", "dev.", "net.core.bpf"))]
    assert "net.ipv4.conf.all.rp_filter" in inside and "kernel.kptr_restrict" in outside


def test_the_sites_own_kernel_settings_win_and_the_others_can_be_left_out():
    own = [{"name": "net.ipv4.conf.all.rp_filter", "value": 2, "why": "two ways"}]
    text = render("base", "sysctl.conf.j2", base_sysctl=own)
    assert re.findall(r"^net.ipv4.conf.all.rp_filter = (.*)$", text, re.M) == ["2"]
    text = render("base", "sysctl.conf.j2", base_sysctl=own, base_hardening_sysctl=False)
    assert re.findall(r"^(\S+) =", text, re.M) == ["net.ipv4.conf.all.rp_filter"]


def test_auditd_and_its_rules_are_for_machines_with_a_kernel_of_their_own():
    assert "auditd" in value("base", "__base_packages") and "auditd" in value("base", "__base_services")
    assert "auditd" not in value("base", "__base_packages", ansible_facts=CONTAINER)
    assert "auditd" not in value("base", "__base_packages", base_hardening_audit=False)
    rules = [line for line in render("base", "audit.rules.j2").splitlines() if line and not line.startswith("#")]
    assert all(
        re.fullmatch(r"-a always,exit -F arch=b64 -F (path|dir)=/\S+ -F perm=wa -F key=accounts", rule)
        for rule in rules
    )
    assert any("=/etc/shadow " in rule for rule in rules)


def test_optional_features_are_off():
    packages = set(value("base", "__base_packages"))
    assert not packages & {"fail2ban", "aide", "rsyslog"}
    on = {"base_fail2ban_enabled": True, "base_aide_enabled": True, "base_remote_syslog": {"host": "syslog.example.jp"}}
    assert {"fail2ban", "aide", "rsyslog"} <= set(value("base", "__base_packages", **on))
    assert 'target="syslog.example.jp" port="514"' in render("base", "rsyslog.conf.j2", **on)


def test_a_container_does_not_set_its_machines_clock_and_a_virtual_machine_sets_its_own():
    assert value("base", "__base_chrony_adjusts_clock") is True
    container = {**FACTS, "virtualization_type": "docker"}
    assert value("base", "__base_chrony_adjusts_clock", ansible_facts=container) is False
    # A machine that only runs containers is no container.
    machine = {**container, "virtualization_role": "host"}
    assert value("base", "__base_chrony_adjusts_clock", ansible_facts=machine) is True


def test_a_mirror_replaces_every_source():
    text = render("base", "debian.sources.j2", base_apt_mirror="http://mirror.test/debian")
    assert re.findall(r"^URIs: (.*)", text, re.M) == ["http://mirror.test/debian", "http://mirror.test/debian-security"]
    assert re.findall(r"^Suites: (.*)", text, re.M) == ["trixie trixie-updates", "trixie-security"]
    assert "deb" not in [line.split()[0] for line in render("base", "sources.list.j2").splitlines() if line]


KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDME\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"


@pytest.mark.parametrize("places", [{"base_apt_mirror": "file:/mnt/debian"}, {"base_apt_dir": "/srv/x"}])
def test_apt_uses_only_a_mirror_or_a_signed_directory(tmp_path, places):
    """Read by the real apt, where there is one."""
    text = render("base", "debian.sources.j2", **places, base_apt_dir_key=KEY)
    directory = "base_apt_dir" in places
    expected = ["file:/srv/x"] if directory else ["file:/mnt/debian", "file:/mnt/debian-security"]
    assert re.findall(r"^URIs: (.*)", text, re.M) == expected
    # A mirror of Debian's archive is signed by Debian, regardless of the options of a directory.
    assert ("\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mDME\n" in text) is directory
    files = value("base", "__base_files_before_packages", ansible_check_mode=False, **places)
    assert [entry["wanted"] for entry in files if "/sources.list" in entry["dest"]] == [True, True]
    if shutil.which("apt-get"):
        (tmp_path / "debian.sources").write_text(text)
        output = subprocess.run(
            ["apt-get", "indextargets", "--no-release-info", "--format", "$(REPO_URI)",
             "-o", f"Dir::Etc::SourceParts={tmp_path}", "-o", "Dir::Etc::SourceList=/dev/null"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert output.returncode == 0, output.stderr
        assert {line.rstrip("/") for line in output.stdout.split()} == set(expected)


@pytest.mark.skipif(not Path("/usr/share/zoneinfo/Etc/UTC").is_file(), reason="this machine has no time zones")
@pytest.mark.parametrize("zone", ["Asia/Tokio", "../../../etc/passwd", ""])
def test_an_unknown_time_zone_is_reported_before_anything_changes(zone):
    (problem,) = rendered.problems("base", templar("base", base_timezone=zone))
    assert f'there is no time zone "{zone}"' in problem
    assert rendered.problems("base", templar("base", base_timezone="Asia/Tokyo")) == []


def test_problems_of_a_directory_are_reported_before_anything_changes(tmp_path):
    def problems(**variables):
        return " ".join(rendered.problems("base", templar("base", **variables)))

    (tmp_path / "Packages").write_text("")
    source = {"base_apt_dir": "/srv/x", "base_apt_dir_src": str(tmp_path)}
    assert problems() == problems(base_apt_mirror="http://m") == ""
    assert "nothing vouches" in problems(**source)
    assert "there is no InRelease" in problems(**source, base_apt_dir_key=KEY)
    (tmp_path / "InRelease").write_text("")
    assert problems(**source, base_apt_dir_key=KEY) == ""
    (tmp_path / "Packages").unlink()
    assert "holds no file Packages" in problems(**source, base_apt_dir_key=KEY)
    assert "both set" in problems(base_apt_dir="/srv/x", base_apt_dir_key=KEY, base_apt_mirror="http://m")
    assert "its directory on the host, is empty" in problems(base_apt_dir_src=str(tmp_path))


@pytest.mark.parametrize("enabled", [True, False])
def test_security_upgrades_are_completely_on_or_off(enabled):
    text = render("base", "unattended-upgrades.conf.j2", base_unattended_upgrades_enabled=enabled)
    assert f'APT::Periodic::Unattended-Upgrade "{int(enabled)}";' in text
    assert ("-security" in text) is enabled


def test_automatic_reboots_are_off_by_default_and_have_an_hour():
    assert 'Automatic-Reboot "false"' in render("base", "unattended-upgrades.conf.j2")
    text = render("base", "unattended-upgrades.conf.j2", base_unattended_upgrades_reboot=True)
    assert 'Automatic-Reboot "true"' in text and 'Automatic-Reboot-Time "03:30"' in text


def test_every_kernel_setting_has_its_reason_above_it():
    lines = [line for line in render("base", "sysctl.conf.j2").splitlines() if line.strip()]
    for number, line in enumerate(lines):
        if not line.startswith("#"):
            assert lines[number - 1].startswith("# ")


def test_only_administrators_with_sudo_become_root():
    users = [
        {"name": "sato", "sudo": True},
        {"name": "kato"},
        {"name": "gone", "sudo": True, "state": "absent"},
    ]
    text = render("base", "sudoers.j2", base_admin_users=users)
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == [
        "sato ALL=(ALL:ALL) NOPASSWD: ALL"
    ]
    assert "NOPASSWD" not in render("base", "sudoers.j2", base_admin_users=users, base_admin_sudo_nopasswd=False)


KEYS = ["ssh-ed25519 AAAAsato sato", 'from="192.0.2.7" ssh-ed25519 AAAAkato kato']


def test_sshd_rejects_the_keys_of_somebody_whose_access_ends_for_every_user():
    leaver = {"name": "kato", "state": "absent", "authorized_keys": KEYS[1:]}
    users = [{"name": "sato", "authorized_keys": KEYS[:1], "state": "present"}, leaver]
    assert value("base", "__base_revoked_keys", base_admin_users=users) == ["ssh-ed25519 AAAAkato"]
    path = value("base", "__base_revoked_keys_path", base_admin_users=users)
    assert f"RevokedKeys {path}" in render("base", "sshd.conf.j2", base_admin_users=users).splitlines()
    assert "RevokedKeys" not in render("base", "sshd.conf.j2", base_admin_users=users[:1])
    assert path != value("base", "__base_revoked_keys_path", base_admin_users=[{**leaver, "authorized_keys": KEYS}])

    def problems(*more, **variables):
        return len(rendered.problems("base", templar("base", base_admin_users=[*users, *more], **variables)))

    assert problems() == 0
    assert problems(ansible_user="kato") == 1, "the run's own login"
    assert problems({"name": "abe", "authorized_keys": KEYS[1:]}) == 1, "a key that another one keeps"
    assert problems({"name": "ono", "state": "absent", "authorized_keys": ["~/.ssh/id.pub"]}) == 1


def test_changed_access_is_named_for_the_audit_log():
    users = [{"name": "sato", "sudo": True}, {"name": "kato", "state": "absent"}]
    changed = [{"item": user, "changed": True} for user in users]
    found = {"__base_admins_users": {"results": changed}, "__base_admins_keys": {"results": changed[:1]}}
    names = value("base", "base_access_changes", base_admin_users=users, __base_admins_sudo={"changed": True}, **found)
    assert names == ["granted sato", "revoked kato", "keys of sato", "sudo: sato"]
    unchanged = {name: {"results": [], "changed": False} for name in (*found, "__base_admins_sudo")}
    assert value("base", "base_access_changes", base_admin_users=users, **unchanged) == []
    assert value("base", "base_access_changes", base_admin_users=[]) == [], "the tasks were left out"


# firewall


def rules_of(*rules, **variables):
    variables = {"__firewall_ssh_ports": [22], "firewall_rules": list(rules), **variables}
    rendered = json.loads(json.dumps(yaml.safe_load(str(render("firewall", "rules.json.j2", **variables)))))
    text = render("firewall", "nftables.conf.j2", __firewall_rules=rendered, **variables)
    return [line.strip() for line in text.splitlines() if re.search(r"dport \{.* accept", line)], text


def test_without_sources_80_and_443_are_open_to_all_and_other_ports_are_closed():
    accepted, text = rules_of(
        {"name": "web", "ports": [80, 443]},
        {"name": "postgresql", "ports": [5432], "sources": []},
        {"name": "mixed", "ports": [443, 9090]},
    )
    assert accepted == [
        'tcp dport { 22 } ct state new counter accept comment "ssh"',
        'tcp dport { 80, 443 } ct state new counter accept comment "web"',
    ]
    assert "# postgresql (5432): no other host needs it" in text


def test_sources_of_both_families_become_a_rule_each():
    accepted, _ = rules_of({"name": "db", "port": 5432, "sources": ["10.0.0.5", "fd00::1", "10.0.0.5", "10.1.0.0/16"]})
    assert accepted[1:] == [
        'ip saddr { 10.0.0.5, 10.1.0.0/16 } tcp dport { 5432 } ct state new counter accept comment "db"',
        'ip6 saddr { fd00::1 } tcp dport { 5432 } ct state new counter accept comment "db"',
    ]


def test_ssh_always_has_a_rule_that_only_its_sources_restrict():
    accepted, _ = rules_of(__firewall_ssh_ports=[22, 2222])
    assert accepted == ['tcp dport { 22, 2222 } ct state new counter accept comment "ssh"']
    accepted, _ = rules_of(firewall_ssh_sources=["10.0.0.0/8"])
    assert accepted == ['ip saddr { 10.0.0.0/8 } tcp dport { 22 } ct state new counter accept comment "ssh"']


def test_connections_of_one_address_are_limited_on_public_ports_except_a_load_balancers():
    web = {"name": "web", "ports": [80, 443]}
    known = {"name": "postgresql", "ports": [5432], "sources": ["10.0.0.5"]}
    _, text = rules_of(web, known, firewall_connections_unlimited_sources=["10.0.0.9", "fd00::9"])
    assert "tcp dport { 80, 443 } ct state new jump connections" in text
    assert "ip saddr { 10.0.0.9 } return" in text and "ip6 saddr { fd00::9 } return" in text
    assert len(re.findall(r"ct count over 2000 \} counter reject", text)) == 2
    # The limit comes before the accepting rules, and after established connections and the loopback.
    assert text.index('iifname "lo" accept') < text.index("jump connections") < text.index('accept comment "ssh"')
    for rules, variables in (([web, known], {"firewall_connections_per_address": 0}), ([known], {})):
        _, text = rules_of(*rules, **variables)
        assert "ct count" not in text and "jump" not in text


def test_connections_of_a_rule_are_limited():
    """PostgreSQL counts 400 connections that never log in, and rejects the application's."""
    _, text = rules_of({"name": "db", "ports": [5432], "sources": ["10.0.0.5"], "connections": 30})
    matched = "ip saddr { 10.0.0.5 } tcp dport { 5432 } ct state new"
    limit = text.index(f"{matched} ct count over 30 counter reject")
    assert limit < text.index(f'{matched} counter accept comment "db"')
    group_variables = yaml.safe_load((ROOT / "group_vars/all/edge.yml").read_text(encoding="utf-8"))
    assert "'sources': backup_clients, 'connections': 30" in group_variables["firewall_rules"]


def test_no_other_table_is_changed():
    _, text = rules_of()
    assert "flush ruleset" not in text
    assert set(re.findall(r"^(?:delete )?table (\S+ \S+)", text, re.M)) == {"inet shiftmaster"}
    assert "hook forward" not in text
    _, text = rules_of(firewall_forward_policy="drop")
    assert "hook forward priority filter; policy drop;" in text


@pytest.mark.parametrize(
    ("listening", "more", "connection", "ports"),
    [
        (["ssh 2222", "ssh 22", "ours"], [], 22, [22, 2222]),
        # A published port on the controller does not describe the host's.
        (["ssh 22"], [], 10022, [22]),
        # No sshd is seen: the port of the connection is all that is known.
        (["nft present"], [], 2200, [2200]),
        (["ssh 22"], [22022], 22, [22, 22022]),
    ],
)
def test_the_ports_of_ssh_are_those_on_which_it_listens(listening, more, connection, ports):
    found = value(
        "firewall",
        "__firewall_ssh_ports",
        __firewall_found={"stdout_lines": listening},
        firewall_ssh_ports=more,
        ansible_port=connection,
    )
    assert found == ports


@pytest.mark.parametrize(
    ("content", "stays"),
    [("#!/bin/sh\nexit 101\n", False), ("#!/bin/sh\n# Of the site.\nexit 101\n", True), (None, None)],
)
def test_the_policy_of_an_interrupted_run_is_removed_and_the_sites_own_is_not(tmp_path, content, stays):
    path = tmp_path / "policy-rc.d"
    if content:
        path.write_text(content)
    (task,) = yaml.safe_load((ROOT / "roles/base/tasks/policy.yml").read_text(encoding="utf-8"))
    script = task["ansible.builtin.shell"]["cmd"].replace("/usr/sbin/policy-rc.d", str(path))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0 and path.exists() == bool(stays)
    assert done.stdout.strip() == ("removed" if stays is False else "")
    # What Ansible's module writes.
    source = inspect.getsource(apt)
    assert "'#!/bin/sh\\nexit %d\\n'" in source


# tls


@pytest.mark.parametrize("mode", ["acme", "provided"])
def test_a_renewal_reaches_the_site_only_where_acme_is_its_source(mode):
    text = render("tls", "deployed.sh.j2", tls_mode=mode, tls_names=["shift.test"])
    assert ("shiftmaster-tls install" in text) is (mode == "acme")
    done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("lineage", "unread", "code", "action"),
    [
        ("/etc/letsencrypt/live/shiftmaster", False, 3, "install"),
        ("/etc/letsencrypt/live/another", True, 0, ""),
        (None, True, 3, "reload"),
        (None, False, 0, ""),
    ],
)
def test_a_failed_reload_fails_the_hook_and_then_the_unit_of_certbot(tmp_path, lineage, unread, code, action):
    files = value("tls", "__tls_unread")
    marker, tool = tmp_path / "unread", tmp_path / "tool"
    tool.write_text(f"#!/bin/sh\necho $1 >{tmp_path}/called\nexit 3\n")
    tool.chmod(0o755)
    if unread:
        marker.touch()
    text = render("tls", "deployed.sh.j2", tls_mode="acme", tls_names=["shift.test"])
    text = text.replace("/usr/local/sbin/shiftmaster-tls ", f"{tool} ")
    text = text.replace(files["The site's certificate changed"], str(marker))
    done = subprocess.run(["sh"], input=text, text=True, env={"RENEWED_LINEAGE": lineage} if lineage else {})
    assert done.returncode == code
    assert ((tmp_path / "called").read_text().strip() if (tmp_path / "called").exists() else "") == action
    assert "ExecStartPost=/usr/local/sbin/shiftmaster-tls-deployed\n" in render("tls", "certbot.service.conf.j2")


def test_a_certificate_that_a_killed_run_left_unread_is_read_by_the_next_one():
    """Each handler has a file that the run looks for, and that is made before the certificate changes."""
    files = value("tls", "__tls_unread")
    issues = value("tls", "__tls_issues", tls_internal_services=[{"name": "pgbackrest", "group": "postgres"}])
    assert {one["notify"] for one in issues.values()} == set(files)
    assert set(files.values()) <= set(value("tls", "__tls_inspected")["files"])
    tasks = yaml.safe_load((ROOT / "roles/tls/tasks/issue_new.yml").read_text(encoding="utf-8"))
    script = tasks[-1]["ansible.builtin.shell"]["cmd"]
    assert script.index("__tls_unread[__tls_issue.notify]") < script.index("mv ")
    tasks = yaml.safe_load((ROOT / "roles/tls/tasks/main.yml").read_text(encoding="utf-8"))
    (task,) = (one for one in tasks if one.get("notify") == "{{ item.key }}")
    found = {"stdout": json.dumps({"files": {path: {"access": "x"} for path in list(files.values())[1:]}})}
    left = templar("tls", __tls_found=found).template(trust_as_template(task["loop"]))
    assert [one["key"] for one in left] == ["The internal certificate changed"]


@pytest.mark.parametrize(
    ("issuer", "variables", "expected"),
    [
        ("shift.test", {}, 1),
        ("Hospital CA", {}, 0),
        ("shift.test", {"base_extra_ca_certificates": [{"name": "own", "content": "x"}]}, 0),
        ("shift.test", {"tls_provided_trusted_content": "x"}, 0),
        ("shift.test", {"tls_provided_verify_chain": False}, 0),
        ("shift.test", {"tls_mode": "selfsigned"}, 0),
    ],
)
def test_a_self_signed_certificate_is_rejected_before_a_host_is_changed(issuer, variables, expected):
    leaf = {"subject_ordered": [["commonName", "shift.test"]], "issuer_ordered": [["commonName", issuer]]}
    # Of the rules about one certificate this one alone: the others need a real certificate.
    (rule,) = [one for one in rendered.action("shiftmaster_variables").rules_of("tls") if "self-signed" in one["msg"]]
    known = templar("tls", __tls_leaf=leaf, **{"tls_mode": "provided", **variables})
    assert len(rendered.problems("tls", known, [rule])) == expected


def test_the_verification_requests_a_name_that_a_wildcard_covers():
    assert value("tls", "__tls_name", tls_names=["*.shift.test"]) == "www.shift.test"
    assert value("tls", "__tls_name", tls_names=["shift.test", "*.shift.test"]) == "shift.test"


def test_names_and_addresses_are_distinguished():
    names = ["host", "10.0.0.5", "fd00::5", "4.example.jp"]
    assert value("tls", "__tls_san", __tls_issue={"names": names}) == [
        "DNS:4.example.jp",
        "DNS:host",
        "IP:10.0.0.5",
        "IP:fd00::5",
    ]


def test_a_service_has_an_authority_and_a_directory_of_its_own():
    issues = value(
        "tls", "__tls_issues", tls_internal_ca_dir="/ca/internal", tls_internal_names=["db1", "192.0.2.7"],
        tls_internal_services=[{"name": "pgbackrest", "group": "postgres"}],
    )  # fmt: skip
    service = issues.pop("internal-pgbackrest")
    assert (service["readers"], service["key_mode"], service["names"]) == (["postgres"], "0640", ["db1", "192.0.2.7"])
    assert service["ca_dir"] == "/ca/internal-pgbackrest"
    files = {service[what] for what in ("certificate", "key", "authority")}
    assert files == {f"/etc/ssl/shiftmaster/pgbackrest/{name}" for name in ("host.crt", "host.key", "ca.crt")}
    assert set(issues) == {"site", "internal"} and service["ca_dir"] not in [one["ca_dir"] for one in issues.values()]


@pytest.mark.parametrize(("name", "good"), [("pgbackrest", True), ("../etc", False), ("a/b", False), ("", False)])
def test_an_invalid_name_of_a_service_is_rejected(name, good):
    made = templar(
        "tls", tls_mode="none", tls_internal_ca_dir="/ca", tls_internal_names=["db1"],
        tls_internal_services=[{"name": name, "group": "postgres"}],
    )  # fmt: skip
    assert (rendered.problems("tls", made) == []) == good


def test_an_external_account_is_in_a_file_and_not_in_an_argument():
    text = render("tls", "certbot.ini.j2", tls_names=["shift.test"], tls_acme_eab_kid="k", tls_acme_eab_hmac_key="h")
    assert "eab-hmac-key = h" in text
    modes = {row["template"]: row["mode"] for row in value("tls", "__tls_templates", tls_mode="acme")}
    assert modes["certbot.ini.j2"] == "0600"


@pytest.fixture(scope="module")
def tool():
    """The tool without its last line, which would run it."""
    source = (ROOT / "roles/tls/files/shiftmaster-tls").read_text(encoding="utf-8")
    assert source.endswith("\nmain()\n")
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec("shiftmaster_tls", None))
    exec(compile(source[: -len("main()\n")], "shiftmaster-tls", "exec"), module.__dict__)
    return module


def test_the_first_certificate_of_a_file_is_the_one_that_is_compared(tool):
    def pem(body):
        return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n"

    assert tool.leaf_of("text before\n" + pem("bGVhZg==") + pem("aXNzdWVy")) == b"leaf"


def test_a_file_is_replaced_completely_with_its_access(tool, tmp_path, monkeypatch):
    target = tmp_path / "site.key"
    target.write_bytes(b"old")
    monkeypatch.setattr(tool.os, "fchown", lambda *arguments: None)
    before = target.open("rb")
    tool.replace(str(target), b"new", 0o640, "root")
    assert target.read_bytes() == b"new"
    assert before.read() == b"old", "a reader of the old file keeps it"
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["site.key"]


def test_a_failed_reload_leaves_a_file_for_the_next_run(tool, tmp_path, monkeypatch):
    unread = tmp_path / "unread"
    arguments = ["tool", "install", "--from", "/lineage", "--timeout", "1", "--unread", str(unread)]
    for name in ("certificate", "key", "group", "unit", "command", "address", "name"):
        arguments += [f"--{name}", "x"]
    monkeypatch.setattr(tool.sys, "argv", arguments)
    monkeypatch.setattr(tool, "replace", lambda *_: None)
    monkeypatch.setattr(
        tool,
        "open",
        lambda path, *how, **more: open("/dev/null" if "lineage" in path else path, *how, **more),
        raising=False,
    )

    def reload(_options):
        assert unread.exists()
        raise SystemExit("still another certificate")

    monkeypatch.setattr(tool, "reload", reload)
    with pytest.raises(SystemExit):
        tool.main()
    assert unread.exists()
    monkeypatch.setattr(tool, "reload", lambda _options: None)
    tool.main()
    assert not unread.exists()


def test_data_read_from_a_host_never_contains_a_key(tmp_path):
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x"]
        + ["-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    wanted = {"packages": ["none"], "files": {str(key): "key", str(certificate): "certificate", "/none": "file"}}
    done = subprocess.run(
        [sys.executable, str(ROOT / "roles/tls/files/facts.py"), json.dumps(wanted)], check=True, capture_output=True
    )
    found = json.loads(done.stdout)["files"]
    assert found["/none"] is None
    assert found[str(certificate)]["content"] == certificate.read_text()
    assert found[str(key)]["public_key"].startswith("-----BEGIN PUBLIC KEY-----")
    for line in key.read_text().splitlines()[1:-1]:
        assert line not in done.stdout.decode()


def test_services_that_read_the_authorities_once_are_restarted():
    """A probe that does not know the site's new authority raises WebsiteDown until it does."""
    tasks = yaml.safe_load((ROOT / "roles/base/tasks/certificates.yml").read_text(encoding="utf-8"))
    reported = next(one for one in tasks if one["name"].endswith("Update the trusted certificates"))["notify"]
    handlers = yaml.safe_load((ROOT / "roles/base/handlers/main.yml").read_text(encoding="utf-8"))
    argv = next(one for one in handlers if one["name"] == reported)["ansible.builtin.command"]["argv"]
    assert {"prometheus-blackbox-exporter.service*", "prometheus-alertmanager.service*"} <= set(argv)


@pytest.mark.parametrize("name", ["db1", "backup1"])
def test_a_certificate_is_signed_only_for_the_requesting_host(name):
    """pgBackRest's server on the database host accepts any client with the backup server's common name."""
    tasks = yaml.safe_load((ROOT / "roles/tls/tasks/issue_new.yml").read_text(encoding="utf-8"))
    (task,) = (one for one in tasks if one["name"] == "Issue | Reject a request for other names")
    requested = {
        "subject_alt_name": ["DNS:db1"], "basic_constraints": ["CA:FALSE"], "signature_valid": True,
        "subject": {"commonName": name},
    }  # fmt: skip
    given = {"__tls_request_info": requested, "__tls_san": ["DNS:db1"], "__tls_issue": {"names": ["db1"]}}
    templar = Templar(DataLoader(), variables=given)
    that = task["ansible.builtin.assert"]["that"]
    accepted = all(templar.template(trust_as_template("{{ %s }}" % condition)) for condition in that)
    assert accepted == (name == "db1")
