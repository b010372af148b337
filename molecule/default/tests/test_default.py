"""The result on an empty host: the application on TLS, for users, with hardened units, across a reboot."""

import json
import re
from pathlib import Path

import private_keys
import pytest
from support import APP, PASSWORD, Operations

INVENTORY = Path(__file__).parent.parent / "inventory"
CURL = "curl -sS --cacert /etc/ssl/certs/shiftmaster.crt --resolve localhost:443:127.0.0.1"
UNITS = ["shiftmaster-web@", "shiftmaster-worker@", "shiftmaster-beat@"]


@pytest.fixture(scope="module")
def operations():
    return Operations(INVENTORY, "default-trixie")


@pytest.fixture(scope="module")
def slot(operations):
    return operations.shell(f"basename $(readlink {APP}/active)").strip()


def test_page_is_served_on_tls_by_the_application(operations):
    page = operations.shell("curl -skS -o /dev/null -w '%{http_code} %{redirect_url}' https://localhost/")
    assert page.startswith("302 ") and "/login/" in page, page
    assert "ShiftMaster" in operations.shell("curl -skS https://localhost/login/")


def test_plain_http_redirects_to_tls(operations):
    response = operations.shell("curl -sS -o /dev/null -w '%{http_code} %{redirect_url}' http://localhost/")
    assert response == "301 https://localhost/"


def test_local_listener_responds_at_the_address_of_the_guide(operations):
    assert operations.shell("curl -sS -o /dev/null -w '%{http_code}' http://localhost:8000/health/") == "200"


def test_deep_health_names_version_and_parts(operations):
    health = operations.health()
    assert (health["status"], health["version"]) == ("healthy", "2.0.0")
    assert {"database", "cache", "broker", "worker", "migrations"} <= set(health["checks"])


@pytest.mark.parametrize("playbook", ["playbooks/health.yml", "playbooks/diagnose.yml"])
def test_a_healthy_host_is_found_healthy(operations, playbook):
    run = operations.run(playbook)
    assert run.code == 0, run.output[-5000:]


def test_units_are_enabled_and_none_failed(operations, slot):
    assert operations.shell("systemctl --failed --no-legend").strip() == ""
    assert operations.shell("systemctl is-enabled shiftmaster nginx postgresql redis-server").split() == ["enabled"] * 4
    running = operations.shell(f"systemctl is-active {' '.join(unit + slot for unit in UNITS)}")
    assert running.split() == ["active"] * 3
    enabled = operations.shell("systemctl list-unit-files --state=enabled --no-legend 'shiftmaster-*'", check=False)
    assert enabled.strip() == "", "a slot is enabled next to the link `active`: two facts"


def test_private_keys_are_readable_only_by_their_services(operations):
    readers = json.loads(operations.shell("python3 -", stdin=Path(private_keys.__file__).read_text(encoding="utf-8")))
    readers = {path: names for path, names in readers.items() if not path.startswith("/etc/ssh/")}
    # nginx reads the site's as root, before its workers start.
    assert readers == {"/etc/ssl/private/shiftmaster.key": [], "/etc/ssl/shiftmaster/host.key": ["postgres"]}


@pytest.mark.parametrize("unit", UNITS)
def test_units_are_sandboxed(operations, slot, unit):
    report = operations.shell(f"systemd-analyze security --no-pager {unit}{slot}")
    exposure = float(re.search(r"Overall exposure level for \S+: ([\d.]+)", report)[1])
    assert exposure <= 2.5, report


def test_application_cannot_write_to_its_release(operations, slot):
    pid = operations.shell(f"systemctl show -p MainPID --value shiftmaster-web@{slot}").strip()
    tried = operations.shell(
        f"nsenter -t {pid} -m runuser -u shiftmaster -- touch {APP}/active/release/source/x 2>&1; echo $?", check=False
    )
    assert tried.strip().endswith("1")
    assert operations.shell(f"find {APP}/releases ! -user root -print -quit").strip() == ""


def test_a_command_of_a_release_that_fails_at_once_has_failed(operations):
    """systemd 257 reports the status of each tenth as 0 (module_utils/shiftmaster/release/releasecode.py)."""
    program = (
        'import sys; sys.path.insert(0, "/usr/local/sbin/shiftmasterctl")\n'
        "from shiftmaster.release.releasecode import ReleaseCode\n"
        f'code = ReleaseCode("{APP}/active/release")\n'
        'print([code.shell("exit 7").rc for _ in range(50)])\n'
    )
    assert json.loads(operations.shell("python3 -", stdin=program)) == [7] * 50


def test_secrets_are_nowhere_to_be_read(operations):
    """No secret in a world-readable file, in a process's arguments or in a unit's properties."""
    secrets = [
        line.split("=", 1)[1].strip().strip('"')
        for line in operations.shell(f"cat {APP}/active/release/env").splitlines()
        if re.match(r"DJANGO_SECRET_KEY|DB_PASSWORD|CACHE_URL", line)
    ]
    secrets.append(re.search(r"//[^:]*:([^@]+)@", secrets.pop([s.startswith("redis") for s in secrets].index(True)))[1])
    assert len(secrets) == 3 and all(len(secret) >= 20 for secret in secrets)
    found = operations.shell(
        "umask 077; cat > /root/secrets; "
        "find / -xdev -type f -perm -004 ! -path '/proc/*' ! -path '/sys/*' -print0 "
        "| xargs -0 grep -lFf /root/secrets; "
        "grep -aFf /root/secrets /proc/[0-9]*/cmdline; "
        "systemctl show '*' --no-pager | grep -Ff /root/secrets; rm /root/secrets",
        stdin="\n".join(secrets), check=False,
    )  # fmt: skip
    assert found.strip() == ""


def test_log_in_save_a_roster_reboot(operations):
    """A user logs in and saves an assignment; both the page and the assignment are there after a reboot."""
    operations.manage("seed_demo")
    work = f"""
import http.cookiejar, json, re, ssl, urllib.parse, urllib.request
context = ssl.create_default_context(); context.check_hostname = False; context.verify_mode = ssl.CERT_NONE
jar = http.cookiejar.CookieJar()
https, cookies = urllib.request.HTTPSHandler(context=context), urllib.request.HTTPCookieProcessor(jar)
opener = urllib.request.build_opener(https, cookies)
site = "https://localhost"
def post(path, referer, **form):
    form["csrfmiddlewaretoken"] = next(c.value for c in jar if c.name == "csrftoken")
    body = urllib.parse.urlencode(form).encode()
    return opener.open(urllib.request.Request(site + path, body, {{"Referer": site + referer}}), timeout=20)
opener.open(site + "/login/", timeout=20).read()
post("/login/", "/login/", username="demo", password={PASSWORD!r})
path = "/roster/east-3/2031-02/"
page = opener.open(site + path, timeout=20).read().decode()
staff = re.search(r'<tr data-staff="(\\d+)">', page)[1]
post(path + "assign/", path, staff=staff, day="2031-02-03", shift="準")
print(json.dumps({{"staff": staff}}))
"""
    staff = json.loads(operations.shell("python3 -", stdin=work))["staff"]
    saved = (
        "from roster.models import Assignment; "
        f"print(Assignment.objects.filter(staff_id={staff}, day='2031-02-03').count())"
    )
    assert operations.python(saved).strip() == "1"
    before = operations.shell("cat /proc/sys/kernel/random/boot_id; systemctl show -p ActiveEnterTimestamp nginx")
    operations.reboot()
    assert operations.live_version(60) == "2.0.0"
    assert operations.shell("systemctl show -p ActiveEnterTimestamp nginx") not in before
    assert operations.shell("systemctl --failed --no-legend").strip() == ""
    assert operations.python(saved).strip() == "1"


def test_memory_fits_the_smallest_host(operations, slot, capsys):
    """Prints the memory of each unit; together they fit 4 GB next to the kernel and a second slot."""
    rows = operations.shell(
        "for u in nginx postgresql@17-main redis-server "
        + " ".join(unit + slot for unit in UNITS)
        + "; do echo $u $(systemctl show -p MemoryCurrent --value $u); done"
    )
    total, lines = 0, []
    for line in rows.splitlines():
        unit, number = line.split()
        total += int(number)
        lines.append(f"  {unit:32} {int(number) / 2**20:7.0f} MiB")
    with capsys.disabled():
        print("\nmemory by unit:\n" + "\n".join(lines) + f"\n  {'all of them':32} {total / 2**20:7.0f} MiB")
    assert total < 3 * 2**30
