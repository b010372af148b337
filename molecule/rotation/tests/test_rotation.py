"""Every secret is rotated while users work: no failed request, no user is logged out, old secrets are refused."""

import hashlib
import time

from support import BROWSER, PASSWORD, POINTS, SCENARIO_HOME, kill_run, load, wait_for

DATABASE, REDIS = "vault_shiftmaster_database_password", "vault_shiftmaster_redis_password"
ADMIN, KEY = "vault_redis_admin_password", "vault_shiftmaster_secret_key"
LOG = SCENARIO_HOME / "rotation.log"
FAST = {"shiftmaster_watch_seconds": 3}
CLIENTS = ("--clients", "24", "--think-seconds", "0.5", BROWSER)
# Where runs are killed: enough to meet a gap, and the two cores are left to the runs.
FEW_CLIENTS = ("--clients", "6", "--think-seconds", "0.3", BROWSER)
CERTIFICATES = ("/etc/ssl/certs/shiftmaster.crt", "/etc/ssl/shiftmaster/host.crt")


def timestamp() -> str:
    """Now, as certificates_before takes it."""
    return time.strftime("%Y%m%d%H%M%SZ", time.gmtime())


def rotate(operations, vault, *arguments, **extra):
    return operations.run("playbooks/rotate.yml", *arguments, timeout=1800, **{**FAST, **vault.variables, **extra})


def login_of(password: str) -> str:
    return "shiftmaster_" + hashlib.sha256(password.encode()).hexdigest()[:3]


def database_accepts(operations, user: str, password: str) -> bool:
    response = operations.shell(
        "read -r PGPASSWORD; export PGPASSWORD; "
        f"psql -qtA -w 'host=localhost sslmode=require dbname=shiftmaster user={user}' "
        "-c 'SELECT session_user || current_user' 2>&1", check=False, stdin=password + "\n",
    )  # fmt: skip
    assert f"{user}shiftmaster" in response or "password authentication failed" in response, response
    return f"{user}shiftmaster" in response


def redis_accepts(operations, user: str, password: str) -> bool:
    response = operations.shell(
        f"read -r REDISCLI_AUTH; export REDISCLI_AUTH; redis-cli --no-auth-warning --user {user} PING 2>&1",
        check=False, stdin=password + "\n",
    )  # fmt: skip
    assert "PONG" in response or "WRONGPASS" in response or "NOAUTH" in response, response
    return "PONG" in response


def key_is_accepted(operations, key: str) -> bool:
    """Whether the application takes what that key has signed."""
    message = operations.python(
        "from django.core.signing import BadSignature, Signer\n"
        f"text = Signer(key={key!r}).sign('x')\n"
        "try: print(Signer().unsign(text))\nexcept BadSignature: print('bad')"
    )
    assert message.strip() in ("x", "bad")
    return message.strip() == "x"


def served_certificates(operations) -> tuple:
    site = operations.shell(
        "openssl s_client -connect 127.0.0.1:443 </dev/null 2>/dev/null | openssl x509 -noout -serial"
    )
    database = operations.shell(
        "openssl s_client -starttls postgres -connect 127.0.0.1:5432 </dev/null 2>/dev/null"
        " | openssl x509 -noout -serial"
    )
    return site.strip(), database.strip()


def assert_only_the_new_ones(operations, vault) -> None:
    assert database_accepts(operations, login_of(vault.current[DATABASE]), vault.current[DATABASE])
    assert redis_accepts(operations, "shiftmaster", vault.current[REDIS])
    assert redis_accepts(operations, "admin", vault.current[ADMIN])
    for password in vault.previous[DATABASE]:
        assert not database_accepts(operations, login_of(password), password)
        assert not database_accepts(operations, "shiftmaster", password)
    for password in vault.previous[REDIS]:
        assert not redis_accepts(operations, "shiftmaster", password)
    for password in vault.previous[ADMIN]:
        assert not redis_accepts(operations, "admin", password)
    assert key_is_accepted(operations, vault.current[KEY])


class Session:
    """A user who logged in before, with his own cookies."""

    def __init__(self, operations):
        self.operations = operations
        self.curl("-c /root/jar https://localhost/login/")
        token = operations.shell("awk '$6 == \"csrftoken\" {print $7}' /root/jar").strip()
        self.curl(
            f"-d csrfmiddlewaretoken={token} -d username=demo -d password={PASSWORD} -e https://localhost/login/"
            " https://localhost/login/"
        )
        assert self.logged_in()

    def curl(self, arguments: str) -> str:
        return self.operations.shell(
            f"curl -skS -b /root/jar -c /root/jar -o /dev/null -w '%{{http_code}}' {arguments}"
        )

    def logged_in(self) -> bool:
        return self.curl("https://localhost/") == "200"


def test_check_mode_changes_nothing(operations, vault):
    vault.renew()
    before = operations.fingerprint(), operations.shell("runuser -u postgres -- psql -qtAc 'TABLE pg_authid'")
    run = rotate(operations, vault, "--check", "--diff", certificates_before=timestamp())
    assert run.code == 0, run.output[-6000:]
    assert run.prints("would be done", "it is to be rotated", f"{DATABASE} would come into use"), run.output[-6000:]
    assert (operations.fingerprint(), operations.shell("runuser -u postgres -- psql -qtAc 'TABLE pg_authid'")) == before
    for value in [*vault.current.values(), *sum(vault.previous.values(), [])]:
        assert value not in run.output


def test_everything_under_load(operations, vault, capsys):
    if not vault.previous[KEY]:  # Else the test before has edited the vault, and nothing else.
        vault.renew()
    session = Session(operations)
    release, certificates, before = operations.state(), served_certificates(operations), timestamp()
    time.sleep(1)
    with load(operations, *CLIENTS, seconds=1800) as traffic:
        with traffic.window("rotation"):
            run = rotate(operations, vault, certificates_before=before)
        assert run.code == 0, run.output[-6000:]
    summary = traffic.summary
    with capsys.disabled():
        print(f"\nrotation: {summary['requests']} requests, {summary['failed']} failed, {run.seconds:.0f} s")
    traffic.assert_flawless()
    assert session.logged_in()
    assert operations.live_version(10) == "2.0.0" and operations.state() != release
    assert_only_the_new_ones(operations, vault)
    # A user without a request since then has a session signed by the old key.
    assert key_is_accepted(operations, vault.previous[KEY][0])
    for old, new in zip(certificates, served_certificates(operations), strict=True):
        assert old != new
    for value in [*vault.current.values(), *sum(vault.previous.values(), [])]:
        assert value not in run.output
    again = rotate(operations, vault, certificates_before=before)
    assert (again.code, again.changed) == (0, 0), again.output[-6000:]
    deploy = operations.run("deploy.yml", **FAST, **vault.variables)
    assert (deploy.code, deploy.changed) == (0, 0), deploy.output[-6000:]
    assert_only_the_new_ones(operations, vault)


def test_rollback_over_a_rotation_is_refused(operations, vault):
    """It would restore the earlier secrets; the sentence names the alternative."""
    run = operations.rollback(**vault.variables)
    assert run.code == 2 and run.prints("secrets that have been rotated", "DJANGO_SECRET_KEY", "Nothing was changed"), (
        run.output[-4000:]
    )
    first = next(iter(sorted(operations.state()["releases"])))
    run = operations.rollback(to=first, **vault.variables)
    assert run.code == 2, run.output[-4000:]
    assert run.prints("the database rejects its password", "Redis rejects the password", "deploy.yml"), run.output[
        -4000:
    ]
    assert operations.live_version(10) == "2.0.0"
    assert "bad" not in [entry["status"] for entry in operations.state()["releases"].values()]


def test_a_deploy_after_it_and_its_rollback(operations, vault):
    run = operations.deploy("2.1.0", **FAST, **vault.variables)
    assert run.code == 0, run.output[-4000:]
    run = operations.rollback(**vault.variables)
    assert run.code == 0, run.output[-4000:]
    assert operations.live_version(10) == "2.0.0"
    # The owner has what the new login's migration has made.
    assert operations.shell(
        "runuser -u postgres -- psql -qtAd shiftmaster -c "
        "\"SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'\""
    ).split() == ["shiftmaster"]


def test_the_old_key_ends_when_the_list_is_emptied(operations, vault):
    old = vault.previous[KEY][0]
    session = Session(operations)
    vault.forget()
    with load(operations, *CLIENTS, seconds=1800) as traffic:
        run = rotate(operations, vault)
    assert run.code == 0, run.output[-6000:]
    traffic.assert_flawless()
    assert session.logged_in()
    assert not key_is_accepted(operations, old)
    assert_only_the_new_ones(operations, vault)


def has_login(operations, password: str) -> bool:
    return (
        operations.shell(
            f"runuser -u postgres -- psql -qtAc \"SELECT 1 FROM pg_roles WHERE rolname = '{login_of(password)}'\""
        ).strip()
        == "1"
    )


def log_contains(text: str):
    return lambda _operations, _vault: text in LOG.read_text()


def is_held(operations, _vault) -> str:
    return operations.shell(f"ls {POINTS}/*.reached", check=False)


# Where runs are killed, in the order of a run: (the state by then, a fault-injection point). Scenario kills has every
# point of a release; of those that a rotation makes, one before and one after the switch are enough here.
KILLS = {
    "the database has the new login": (
        lambda operations, vault: has_login(operations, vault.current[DATABASE]),
        None,
    ),
    "built": (is_held, "built"),
    "switched to what accepts the new key": (is_held, "switched"),
    "the old logins are about to end": (log_contains("TASK [rotation : Old secrets | Query the secrets"), None),
    "the old login of the database ends": (log_contains("TASK [postgresql : Retire | Revoke the logins"), None),
}


def test_killed_at_one_point_after_the_other_and_run_again(operations, vault):
    """Each run continues what the killed one before it has left, and reaches a later point; the last one ends."""
    vault.renew()
    before = timestamp()
    session = Session(operations)
    with load(operations, *FEW_CLIENTS, seconds=3600) as traffic:
        for kill, (condition, point) in KILLS.items():
            if point:
                operations.hold(point)
            process = operations.start(
                "playbooks/rotate.yml", LOG, certificates_before=before, **FAST, **vault.variables
            )  # fmt: skip
            wait_for(
                lambda process=process, condition=condition: process.poll() is not None
                or condition(operations, vault), 900, kill,
            )  # fmt: skip
            assert process.poll() is None, f"{kill}: {LOG.read_text()[-3000:]}"
            kill_run(operations, process)
            operations.release_hold()
            assert operations.live_version(5) == "2.0.0", kill
        run = rotate(operations, vault, certificates_before=before)
        assert run.code == 0, run.output[-6000:]
    traffic.assert_flawless()
    assert session.logged_in()
    assert_only_the_new_ones(operations, vault)
    # All their remains are repaired.
    again = rotate(operations, vault, certificates_before=before)
    assert (again.code, again.changed) == (0, 0), again.output[-6000:]


def test_bad_input_changes_nothing(operations, vault):
    """Each is one sentence of the list, and nothing was changed."""
    before = operations.fingerprint()
    values, other = dict(vault.variables), "f" * 40
    cases = [
        ({"secrets": "database,kerberos"}, ["secrets=kerberos is none of: database, redis, django, tls"]),
        (
            {
                "secrets": "database",
                DATABASE: "",
                KEY: other,
                f"{KEY}_previous": [],
                REDIS: other,
                f"{REDIS}_previous": [values[REDIS]],
                "certificates_before": "tomorrow",
            },
            [
                f"variable {DATABASE} is not set",
                f"{KEY}_previous does not hold that either",
                f"{REDIS} is new, too: name redis in secrets",
                "certificates_before=tomorrow is no timestamp of the past",
            ],
        ),
        (
            {
                DATABASE: other,
                f"{DATABASE}_previous": [],
                f"{KEY}_previous": [values[KEY]],
                f"{REDIS}_previous": ["", "x" * 20],
                "certificates_before": "20991231000000Z",
            },
            [
                f"{DATABASE}_previous does not hold that either",
                f"{KEY}_previous holds the value of {KEY} itself",
                f"{REDIS}_previous holds an empty value",
                "certificates_before=20991231000000Z is no timestamp of the past",
            ],
        ),
        ({f"{REDIS}_previous": "x" * 20}, [f"{REDIS}_previous is not a list"]),
        # Queried in Redis, once nothing else is wrong.
        ({ADMIN: other, f"{ADMIN}_previous": []}, [f"{ADMIN}_previous does not hold that either"]),
    ]
    for extra, sentences in cases:
        run = operations.run("playbooks/rotate.yml", **{**FAST, **values, **extra})
        assert run.code == 2 and run.prints("Nothing was changed", *sentences), f"{sentences}: {run.output[-3000:]}"
    assert operations.fingerprint() == before
