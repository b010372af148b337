"""Role alertmanager: its configuration, rendered by Ansible as the role does it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import rendered
import service_config
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import init_plugin_loader
from ansible.template import Templar, trust_as_template
from rendered import trusted

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles/alertmanager"
SLACK = "https://hooks.slack.com/services/T00000000/B00000000/abcdefghijklmnopqrstuvwx"
KEY = "0123456789abcdef0123456789abcdef"
DEADMAN = "https://dead.example.com/token-of-the-test"
SECRETS = {
    "alertmanager_slack_api_url": SLACK,
    "alertmanager_pagerduty_routing_key": KEY,
    "alertmanager_deadman_url": DEADMAN,
    "alertmanager_smtp_auth_username": "mailer",
    "alertmanager_smtp_auth_password": "mail-password",
}


@pytest.fixture(scope="module", autouse=True)
def plugins():
    init_plugin_loader()


def templar(**variables):
    known = {
        "ansible_facts": {"distribution_major_version": "13"},
        "ansible_managed": "Ansible managed",
        "inventory_hostname": "mon1",
        "role_path": str(ROLE),
        "ansible_search_path": [str(ROLE)],
    }
    for part in ("defaults", "vars"):
        known.update(yaml.safe_load((ROLE / part / "main.yml").read_text(encoding="utf-8")))
    known.update(variables)
    return Templar(DataLoader(), variables=trusted(known))


def render(template, **variables):
    return templar(**variables).template(trust_as_template("{{ lookup('ansible.builtin.template', '%s') }}" % template))


def config(**variables):
    return yaml.safe_load(render("alertmanager.yml.j2", **variables))


def receivers(**variables):
    return {one["name"]: one for one in config(**variables)["receivers"]}


def warnings(**variables):
    return templar(**variables).template(trust_as_template("{{ __alertmanager_warnings }}"))


def test_every_combination_of_channels_is_a_configuration():
    names = ("alertmanager_slack_api_url", "alertmanager_pagerduty_routing_key", "alertmanager_deadman_url")
    for chosen in itertools.product((True, False), repeat=5):
        variables = {name: SECRETS[name] for name, on in zip(names, chosen) if on}
        variables["alertmanager_email_to"] = ["a@example.com", "b@example.com"] if chosen[3] else []
        if chosen[4]:
            variables.update(alertmanager_http_proxy="http://proxy:3128", alertmanager_http_ca_file="/ca.crt")
            variables.update(alertmanager_smtp_ca_file="/ca.crt", alertmanager_smtp_server_name="mail")
        found = config(**variables)
        named = {one["name"] for one in found["receivers"]}
        used = {found["route"]["receiver"]} | {route["receiver"] for route in found["route"]["routes"]}
        assert used <= named and len(named) == len(found["receivers"])
        critical = next(one for one in found["receivers"] if one["name"] == "critical")
        assert ("slack_configs" in critical, "email_configs" in critical) == (chosen[0], chosen[3])
        assert ("critical-pagerduty" in named, "deadman" in named) == (chosen[1], chosen[2])
        informed = next(one for one in found["receivers"] if one["name"] == "info")
        assert len(set(informed) - {"name"}) == (1 if chosen[0] or chosen[3] else 0)


@pytest.mark.parametrize("version", ["12", "13"])
def test_no_secret_is_in_a_file_that_is_shown(version):
    facts = {"distribution_major_version": version}
    for template in ("alertmanager.yml.j2", "shiftmaster.tmpl.j2", "drop-in.conf.j2", "checks.yml.j2"):
        text = render(template, ansible_facts=facts, **SECRETS)
        assert not [secret for secret in SECRETS.values() if secret != "mailer" and secret in text]
    files = templar(ansible_facts=facts, **SECRETS).template(trust_as_template("{{ __alertmanager_secret_files }}"))
    assert {one["content"] for one in files} == {SLACK, KEY, DEADMAN, "mail-password"}
    named = render("alertmanager.yml.j2", ansible_facts=facts, **SECRETS)
    assert [one["path"] for one in files if one["path"] not in named] == []


def test_additions_of_a_site_are_kept_and_their_secret_files_are_found():
    route = {"matchers": ['team="lab"'], "receiver": "lab", "routes": [{"matchers": ['a="b"'], "receiver": "none"}]}
    lab = {"name": "lab", "webhook_configs": [{"url_file": "/etc/lab", "http_config": {"follow_redirects": False}}]}
    text = render("alertmanager.yml.j2", alertmanager_routes=[route, route], alertmanager_receivers=[lab])
    found = yaml.safe_load(text)
    assert found["route"]["routes"][2:4] == [route, route] and found["receivers"][-1] == lab
    # In the form in which service_config searches for them.
    assert ("url_file", "/etc/lab") in list(service_config.named_files(text))


def test_debian_12_reads_the_dead_mans_url_from_a_file_too():
    assert "url_file" in receivers(**SECRETS)["deadman"]["webhook_configs"][0]
    old = receivers(ansible_facts={"distribution_major_version": "12"}, **SECRETS)["deadman"]
    assert "api_url_file" in old["slack_configs"][0] and "webhook_configs" not in old


def test_grouping_and_intervals():
    route = config(**SECRETS)["route"]
    assert [route[name] for name in ("group_by", "group_wait", "group_interval", "repeat_interval")] == [
        ["alertname", "env"], "10s", "80s", "86400s",
    ]  # fmt: skip
    hours, pager = [one for one in route["routes"] if one["receiver"] == "critical-pagerduty"]
    assert (hours["active_time_intervals"], hours["mute_time_intervals"]) == (["business_hours"], [])
    assert hours["continue"] is pager["continue"] is True and pager["repeat_interval"] == "3600s"
    # A disk or a host is a fault of its own.
    assert pager["routes"][0]["group_by"] == ["alertname", "env", "instance"]
    assert pager["routes"][0]["routes"][0]["group_by"] == ["env", "instance", "mountpoint"]


def test_business_hours_and_holidays_are_the_sites():
    hours = {"weekdays": ["monday:thursday", "saturday"], "start": "07:00", "end": "24:00"}
    given = {"alertmanager_business_hours": hours, "alertmanager_holidays": ["2027-05-03", "01-01"]}
    found = config(**SECRETS, alertmanager_timezone="Asia/Tokyo", **given)
    named = {one["name"]: one["time_intervals"] for one in found["time_intervals"]}
    place = {"location": "Asia/Tokyo"}
    assert named == {
        "business_hours": [
            {"weekdays": hours["weekdays"], "times": [{"start_time": "07:00", "end_time": "24:00"}], **place}
        ],
        "holidays": [
            {"years": ["2027"], "months": ["05"], "days_of_month": ["03"], **place},
            {"months": ["01"], "days_of_month": ["01"], **place},
        ],
    }
    muted = [one["mute_time_intervals"] for one in found["route"]["routes"] if "mute_time_intervals" in one]
    assert muted == [["holidays"]]


def test_addresses_and_subject_are_those_of_the_guide():
    found = config(**SECRETS)
    assert found["global"]["smtp_smarthost"] == "localhost:587"
    assert found["global"]["smtp_from"] == "alerts@shiftmaster.local" and found["global"]["smtp_require_tls"] is True
    by_name = {one["name"]: one for one in found["receivers"]}
    assert by_name["warning"]["email_configs"][0]["to"] == "admin@hospital.local"
    assert by_name["warning"]["slack_configs"][0]["channel"] == "#shiftmaster-alerts"
    assert by_name["critical-pagerduty"]["pagerduty_configs"][0]["source"] == "shiftmaster"
    assert {"component", "time"} <= set(by_name["critical-pagerduty"]["pagerduty_configs"][0]["details"])
    assert '{{ define "shiftmaster.subject" }}[ShiftMaster] ' in render("shiftmaster.tmpl.j2")


def test_another_site_of_pagerduty_is_queried_by_alerts_and_runs_alike():
    group_variables = yaml.safe_load((ROOT / "group_vars/all/monitoring.yml").read_text(encoding="utf-8"))
    site = "https://events.eu.pagerduty.com"
    templar = Templar(DataLoader(), variables={"monitoring_pagerduty_site": site})
    names = ("alertmanager_pagerduty_url", "notify_pagerduty_url", "notify_pagerduty_change_url")
    output = [templar.template(trust_as_template(group_variables[name])) for name in names]
    assert output == [f"{site}/v2/enqueue", f"{site}/v2/enqueue", f"{site}/v2/change/enqueue"]
    assert config(**SECRETS, alertmanager_pagerduty_url=output[0])["global"]["pagerduty_url"] == output[0]


@pytest.mark.parametrize(
    ("origin", "base"),
    [
        ("https://git.example.com/ops/shiftmaster.git", "https://git.example.com/ops/shiftmaster/blob/HEAD/"),
        (
            "https://bot:token@git.example.com:8443/ops/shiftmaster",
            "https://git.example.com/ops/shiftmaster/blob/HEAD/",
        ),
        ("git@git.example.com:ops/sub/shiftmaster.git", "https://git.example.com/ops/sub/shiftmaster/blob/HEAD/"),
        ("ssh://git@git.example.com:22/ops/shiftmaster.git", "https://git.example.com/ops/shiftmaster/blob/HEAD/"),
        ("/srv/git/shiftmaster.git", ""),
        ("file:///srv/git/shiftmaster.git", ""),
        ("", ""),
    ],
)
def test_runbook_links_point_to_the_origin_of_the_repository(origin, base):
    group_variables = yaml.safe_load((ROOT / "group_vars/all/monitoring.yml").read_text(encoding="utf-8"))
    known = Templar(DataLoader(), variables={"monitoring_origin": origin})
    found = known.template(trust_as_template(group_variables["alertmanager_runbook_url_base"]))
    assert found == base
    assert problems(alertmanager_runbook_url_base=found) == []


def test_a_host_that_is_down_silences_the_alerts_of_its_services():
    first = config()["inhibit_rules"][0]
    assert first["equal"] == ["env", "instance"] and first["source_matchers"] == ['alertname="HostDown"']
    assert "inhibit_rules" not in config(alertmanager_inhibit_rules=[])


@pytest.mark.parametrize(
    ("language", "there", "absent"),
    [("ja", ["発生中", "手順書"], ["Since", "Runbook"]), ("en", ["Since", "Runbook"], ["発生中", "手順書"]),
     ("both", ["発生 / Since", "手順書 / Runbook"], [])],
)  # fmt: skip
def test_texts_are_in_the_languages_that_are_requested(language, there, absent):
    text = render("shiftmaster.tmpl.j2", alertmanager_language=language)
    text = text[text.index("define") :]
    assert [word for word in there if word not in text] == [] and [word for word in absent if word in text] == []
    assert ('reReplaceAll "[.]md$" ".ja.md"' in text) == (language == "ja")


@pytest.mark.parametrize("base", ["https://git.example.com/ops/blob/HEAD", "https://git.example.com/ops/blob/HEAD/"])
def test_a_link_to_a_runbook_has_one_slash(base):
    text = render("shiftmaster.tmpl.j2", alertmanager_runbook_url_base=base)
    assert "{{ else }}https://git.example.com/ops/blob/HEAD/{{ ." in text


def test_templates_use_no_function_that_debian_12_lacks():
    text = render("shiftmaster.tmpl.j2") + render("alertmanager.yml.j2", **SECRETS)
    assert not [
        word for word in ("trimSpace", "humanizeDuration", "since ", "| tz", "| date", "toJson") if word in text
    ]


def test_the_checks_are_programs_with_arguments():
    checks = yaml.safe_load(
        render("checks.yml.j2", alertmanager_route_tests=[{"labels": {"team": "l"}, "receivers": ["x"]}])
    )
    assert all(isinstance(word, str) for argv in checks for word in argv) and checks[0][1] == "check-config"
    assert ["--verify.receivers=x", "team=l"] == next(argv for argv in checks if "team=l" in argv)[-2:]
    assert [argv[-1] for argv in checks if argv[1] == "template"][
        0
    ] == '--template.text={{ template "shiftmaster.subject" . }}'


def test_the_example_of_the_checks_is_json():
    example = json.loads(render("example.json.j2"))
    assert [one["status"] for one in example["alerts"]] == ["firing", "resolved"]


def test_warnings_are_shown_in_production_and_name_what_is_missing():
    nobody = "\n".join(warnings(alertmanager_email_to=[]))
    assert "NOBODY IS NOTIFIED" in nobody and "NOBODY NOTICES" in nobody
    assert "NOBODY" not in "\n".join(warnings(alertmanager_email_to=[], alertmanager_production=False))
    mail = {"alertmanager_email_to": ["ops@example.com"], "alertmanager_smtp_smarthost": "mail.example.com:587"}
    assert warnings(**mail, **SECRETS) == []
    assert "topology_mail_server" in "\n".join(warnings(alertmanager_email_to=["ops@example.com"], **SECRETS))
    assert "address of the example" in "\n".join(warnings(**SECRETS))


@pytest.mark.parametrize("more, warned", [({}, True), ({"continue": False}, True), ({"continue": True}, False)])
def test_a_route_that_takes_alerts_from_the_on_call_receiver_is_reported(more, warned):
    route = {"matchers": ['service="database"'], "receiver": "lab", **more}
    output = "\n".join(warnings(alertmanager_email_to=["ops@example.com"], alertmanager_routes=[route], **SECRETS))
    assert ("without `continue: true`" in output) is warned


def test_a_cluster_has_a_port_and_tls_only_with_peers():
    alone = render("drop-in.conf.j2")
    assert "--cluster.listen-address=\n" in alone and "cluster.tls-config" not in alone
    peers = render("drop-in.conf.j2", alertmanager_cluster_peers=["mon2:9094"])
    assert "--cluster.peer=mon2:9094" in peers and "--cluster.tls-config=" in peers
    assert "--cluster.listen-address=0.0.0.0:9094" in peers


USERS = [{"name": "admin", "password": "not-a-real-password"}]


def problems(**variables):
    given = {"alertmanager_web_users": USERS, **variables}
    return rendered.problems("alertmanager", templar(**given))


@pytest.mark.parametrize(
    "variables",
    [
        {},
        SECRETS,
        # The vault's password of the mail server is also that of the runs' own mail (notify_smtp_user).
        {"alertmanager_smtp_auth_password": "mail-password"},
        {"alertmanager_smtp_smarthost": "[2001:db8::1]:587", "alertmanager_email_to": []},
        {"alertmanager_email_to": ["当直 <oncall@hospital.example>", "a.b+c@mail.example.jp"]},
        {"alertmanager_http_proxy": "http://user:word@proxy.example.com:3128/"},
        {"alertmanager_external_url": "https://mon1.example.com:9093", "alertmanager_grafana_url": "https://mon1:3000"},
        {
            "alertmanager_routes": [{"matchers": ['a="b"'], "receiver": "当直"}, {"receiver": "warning"}],
            "alertmanager_receivers": [{"name": "当直", "webhook_configs": []}],
        },
    ],
)
def test_valid_inputs_have_no_problem(variables):
    assert problems(**variables) == []


@pytest.mark.parametrize(
    ("variables", "output"),
    [
        ({"alertmanager_web_users": []}, "alertmanager_web_users is empty"),
        ({"alertmanager_web_users": [{"name": "admin", "password": ""}]}, "a password of alertmanager_web_users"),
        ({"alertmanager_slack_api_url": "hooks.slack.com/services/x"}, "alertmanager_slack_api_url"),
        ({"alertmanager_deadman_url": "dead.example.com/x"}, "alertmanager_deadman_url"),
        ({"alertmanager_pagerduty_routing_key": "short"}, "alertmanager_pagerduty_routing_key"),
        ({"alertmanager_smtp_smarthost": "mail.example.com"}, "alertmanager_smtp_smarthost"),
        ({"alertmanager_smtp_auth_username": "mailer"}, "without a password (vault_alertmanager_smtp_password)"),
        (
            {
                "alertmanager_smtp_auth_username": "mailer",
                "alertmanager_smtp_auth_password": "mail-password",
                "alertmanager_smtp_require_tls": False,
            },
            "without encryption",
        ),
        ({"alertmanager_email_to": ["a@example.com", "admin at hospital"]}, '"admin at hospital" is no mail address'),
        ({"alertmanager_business_hours": {"weekdays": ["mon"], "start": "08:00", "end": "17:00"}}, "business_hours"),
        (
            {"alertmanager_business_hours": {"weekdays": ["monday:sunday"], "start": "08:00", "end": "17:00"}},
            "business_hours",
        ),
        ({"alertmanager_business_hours": {"weekdays": ["monday"], "start": "8:00", "end": "17:00"}}, "business_hours"),
        ({"alertmanager_business_hours": {"weekdays": ["monday"], "start": "17:00", "end": "08:00"}}, "business_hours"),
        ({"alertmanager_holidays": ["2027-5-3"]}, '"2027-5-3" is neither'),
        ({"alertmanager_holidays": ["02-30"]}, '"02-30" is neither'),
        ({"alertmanager_pagerduty_url": "pager.example.com/v2"}, "alertmanager_pagerduty_url"),
        ({"alertmanager_retention_hours": 168}, "alertmanager_retention_hours"),
        # Neither amtool nor a reload finds these: the first message is what does not arrive.
        ({"alertmanager_http_proxy": "proxy.example.com:3128"}, "alertmanager_http_proxy"),
        ({"alertmanager_external_url": "mon1.example.com:9093"}, "alertmanager_external_url"),
        ({"alertmanager_runbook_url_base": "git.example.com"}, "alertmanager_runbook_url_base"),
        ({"alertmanager_grafana_url": "mon1:3000"}, "alertmanager_grafana_url"),
        # In check mode amtool's word is a warning only.
        ({"alertmanager_routes": [{"routes": [{"receiver": "lab"}], "receiver": "info"}]}, "there is no receiver lab"),
        ({"alertmanager_routes": [{"receiver": "deadman"}]}, "there is no receiver deadman"),
    ],
)
def test_each_problem_is_named_alone_without_a_secret(variables, output):
    found = problems(**variables)
    assert len(found) == 1 and output in found[0]
    assert "mail-password" not in found[0] and "hooks.slack.com" not in found[0]


def test_without_a_user_no_password_of_the_mail_server_reaches_the_host():
    def secrets(user):
        given = {"alertmanager_smtp_auth_username": user, "alertmanager_smtp_auth_password": "mail-password"}
        found = templar(**given).template(trust_as_template("{{ __alertmanager_secret_files }}"))
        return [one["path"] for one in found]

    assert secrets("") == []
    assert secrets("mailer") == ["/etc/prometheus/alertmanager/secrets/smtp_password"]
