"""Every sentence of the health report, in English and in Japanese.

A key holds both, with the same placeholders. Hints are looked up as hint.<kind>.<reason>, then hint.<kind>.
"""

from __future__ import annotations

from ..host.texts import Texts


def commands(text: str) -> tuple:
    """Return commands to look with, in both languages."""
    return text, text.replace("; ", "、") + " を確認してください"


# What Ansible prints where sudo wants a password.
SUDO = r"(Missing|Incorrect|Invalid|incorrect) sudo password|sudo: .*password|waiting for (become|privilege)"
# And where a host has no Python.
PYTHON = r"[Nn]o python interpreters? found|python3[.0-9]*: ([a-z]+ )?not found|module interpreter .*not found"
# And where a host is a container that does not run. Ansible reports the task as failed, not the host as unreachable.
CONTAINER = r"Docker daemon|No such container|[Cc]ontainer .* is not running"
CATALOG = Texts({
    # --- the report's frame; the English one is the operations guide's
    "title": ("=== ShiftMaster System Health Report ===", "=== ShiftMaster システムヘルスレポート ==="),
    "generated": ("Report generated: {time}", "作成日時: {time}"),
    "host": ("Host: {host}", "ホスト: {host}"),
    "overall": ("Overall health: {healthy}/{total} services healthy", "総合判定: {total} 項目中 {healthy} 項目が正常"),
    "overall_hosts": (
        "Hosts: {healthy}/{total} healthy, {unreachable} unreachable",
        "ホスト: {healthy}/{total} 台が正常、{unreachable} 台が接続不能",
    ),
    "response_time": ("Response time: {seconds:.3f}s", "応答時間: {seconds:.3f}秒"),
    "usage": ("Usage: {percent}%", "使用率: {percent}%"),
    "detail": ("Detail: {text}", "詳細: {text}"),
    "error": ("Error: {text}", "エラー: {text}"),
    "hint": ("Hint: {text}", "対処: {text}"),
    "status.healthy": ("healthy", "正常"),
    "status.warning": ("warning", "警告"),
    "status.critical": ("critical", "危険"),
    "status.unhealthy": ("unhealthy", "異常"),
    "status.down": ("down", "停止"),
    "status.error": ("error", "確認不能"),
    "unreachable": ("unreachable", "接続不能"),
    "unchecked": ("could not be checked", "チェックできませんでした"),
    "unreachable_hint": (
        "the host did not respond to Ansible: check that it is on, the network, ssh to it, and the inventory (-E NAME or -i)",
        "Ansible がホストに接続できません。電源・ネットワーク・ssh 接続とインベントリ(-E 名前、-i)を確認してください",
    ),
    "no_checks": ("no check applies to this host", "このホストに該当するチェックはありません"),
    # --- details
    "http": ("HTTP {status}", "HTTP {status}"),
    "http.body": (
        'HTTP {status}, but the response does not contain "{text}"',
        "HTTP {status} ですが、応答に「{text}」が含まれません",
    ),
    "http.slow": (
        "responded in {milliseconds:.0f} ms (limit {limit:g} ms)",
        "応答に {milliseconds:.0f} ms かかりました(上限 {limit:g} ms)",
    ),
    "pages": (
        "pages respond; {errors} of {requests} requests of the last 5 minutes failed",
        "画面は応答しています。直近 5 分間の {requests} 件中 {errors} 件のリクエストが失敗",
    ),
    "pages.other": (
        "{page}: HTTP {status} of another site of the web server, not of ShiftMaster",
        "{page}: ShiftMaster ではなく、Web サーバーの別のサイトが応答しています(HTTP {status})",
    ),
    "pages.failing": (
        "{errors} of {requests} requests of the last 5 minutes failed and still fail: {pages}",
        "直近 5 分間の {requests} 件中 {errors} 件のリクエストが失敗し、継続しています: {pages}",
    ),
    "pages.refused": (
        "requests of the last 5 minutes are rejected that were served before: {pages}",
        "以前は成功していたリクエストが直近 5 分間に拒否されています: {pages}",
    ),
    "tcp": ("accepts connections", "接続を受け付けています"),
    "postgres": (
        "PostgreSQL {version}, {connections} connections ({percent}% of the limit)",
        "PostgreSQL {version}、接続数 {connections}(上限の {percent}%)",
    ),
    "postgres.locked": (
        "sessions that wait for a lock for more than 5 s: {waiting}",
        "{waiting} セッションが 5 秒以上ロックを待っています",
    ),
    "postgres.standby": (
        "PostgreSQL {version}, a standby, {connections} connections ({percent}% of the limit)",
        "PostgreSQL {version}(スタンバイ)、接続数 {connections}(上限の {percent}%)",
    ),
    "cluster": (
        "this host is the {role}, {primary} is the primary, {names} takes over",
        "このホストの役割は {role}、プライマリは {primary}、切り替え先は {names}",
    ),
    "cluster.etcd": (
        "etcd has not responded for {seconds} s: without its majority no other host can become the primary",
        "etcd が {seconds} 秒間応答していません。過半数がない間、ほかのホストはプライマリになれません",
    ),
    "cluster.primary": (
        "no member of the cluster is the primary: nothing can be written",
        "クラスターにプライマリがなく、書き込みができません",
    ),
    "cluster.synchronous": (
        "{primary} is the primary and no standby follows synchronously: nothing is committed",
        "プライマリ {primary} に同期スタンバイがなく、コミットが完了しません",
    ),
    "cluster.member": (
        "PostgreSQL of this member is {state} ({role}); {primary} is the primary",
        "このメンバーの PostgreSQL は {state}({role})です。プライマリは {primary}",
    ),
    "cluster.missing": ("members that do not follow: {names}", "追従していないメンバー: {names}"),
    "cluster.paused": (
        "automatic failover is paused; {primary} is the primary",
        "自動フェイルオーバーは一時停止中です。プライマリは {primary}",
    ),
    "redis": ("Redis {version}, {role}", "Redis {version}、{role}"),
    "redis.plain": ("responds to PING", "PING に応答しています"),
    "redis.noauth": ("responds, and requires a password as it should", "応答あり(正しくパスワードを要求しています)"),
    "redis.memory": (
        "{percent}% of maxmemory is used, and nothing may be evicted",
        "maxmemory の {percent}% を使用中で、追い出しは無効です",
    ),
    "redis.persistence": ("cannot save to disk ({fields})", "ディスクへ保存できません({fields})"),
    "redis.write": ("a write fails: {error}", "書き込めません: {error}"),
    "redis.replication": (
        "the replica has lost its primary ({fields})",
        "レプリカがプライマリと切断されています({fields})",
    ),
    "sentinel": (
        "a majority can replace the primary, {primary}; this host is the {role}",
        "プライマリ({primary})の切り替えに必要な過半数あり。このホストの役割: {role}",
    ),
    "sentinel.majority": (
        "no majority of the Sentinels can replace a failed primary ({why})",
        "プライマリの障害時に切り替えを行う Sentinel の過半数がありません({why})",
    ),
    "sentinel.alone": (
        "Redis is the primary here and no replica follows it: it rejects writes",
        "このホストの Redis はプライマリですが、追従するレプリカがないため書き込みを拒否します",
    ),
    "sentinel.link": (
        "the replica has lost its primary {primary}",
        "レプリカがプライマリ {primary} と切断されています",
    ),
    "address.held": ("this host holds {address}", "このホストが {address} を保持しています"),
    "address.other": ("another host holds {address}", "ほかのホストが {address} を保持しています"),
    "address.none": (
        "no host holds {address}: users reach nothing",
        "どのホストも {address} を保持しておらず、利用者は接続できません",
    ),
    "address.twice": (
        "several hosts hold {address}; others: {others}",
        "複数のホストが {address} を保持しています(ほかの保持者: {others})",
    ),
    "celery": ("{count} worker(s) respond: {names}", "{count} 個のワーカーが応答: {names}"),
    "celery.few": (
        "{count} of at least {wanted} workers respond{names}",
        "必要な {wanted} 個中 {count} 個のワーカーのみ応答{names}",
    ),
    "celery.idle": (
        "{names} respond, but no tasks are taken from: {queues}",
        "{names} は応答していますが、次のキューからタスクを取得していません: {queues}",
    ),
    "units": ("{count} unit(s) active", "{count} 個のユニットが稼働中"),
    "disk": (
        "fullest: {path} {percent}% ({free} free), {count} filesystem(s)",
        "最大使用: {path} {percent}%(空き {free})、{count} 個のファイルシステム",
    ),
    "disk.inodes": (
        "fullest: {path} {percent}% of its inodes, {count} filesystem(s)",
        "最大使用: {path} の inode {percent}%、{count} 個のファイルシステム",
    ),
    "disk.space_high": (
        "{path}: {percent}% of its space used, {free} free",
        "{path}: 容量の {percent}% を使用、空き {free}",
    ),
    "disk.inodes_high": (
        "{path}: {percent}% of its inodes used, {free} left",
        "{path}: inode の {percent}% を使用、残り {free}",
    ),
    "disk.readonly": (
        "{path}: is mounted read-only although /etc/fstab differs",
        "{path}: /etc/fstab に反して読み取り専用でマウントされています",
    ),
    "disk.problem": ("{path}: {error}", "{path}: {error}"),
    "memory": ("{available} of {total} available", "{total} 中 {available} が利用可能"),
    "certificate": ("valid until {date} ({days} days)", "有効期限 {date}(残り {days} 日)"),
    "certificate.expired": ("expired on {date} ({days} days ago)", "{date} に期限切れ({days} 日前)"),
    "certificate.name": ("not for the name {name}, but for {names}", "{name} 用ではなく {names} 用の証明書です"),
    "certificate.early": ("not valid before {date}", "{date} まで有効になりません"),
    "certificate.differs": (
        "the server still shows another certificate than {file}",
        "サーバーが {file} とは別の証明書を提示しています",
    ),
    "clock": ("synchronised by {source}", "{source} により同期済み"),
    "clock.offset": (
        "synchronised by {source}, {milliseconds:.1f} ms off",
        "{source} により同期済み、ずれ {milliseconds:.1f} ms",
    ),
    "clock.not": ("not synchronised ({source})", "同期していません({source})"),
    "clock.container": (
        "not checked: a container has its machine's clock",
        "判定対象外: コンテナの時計はホスト機のものです",
    ),
    "clock.unknown": ("neither chrony nor timedatectl knows it", "chrony も timedatectl も判定できません"),
    "deep": ("version {version}: {parts}", "バージョン {version}: {parts}"),
    "deep.closed": ("the response has no details: this caller has no access", "応答に詳細がありません(閲覧権限なし)"),
    "deep.absent": ("HTTP {status}: there is no such endpoint", "HTTP {status}: エンドポイントがありません"),
    "deep.part_absent": ("the response reports nothing about {parts}", "応答に {parts} の項目がありません"),
    "deep.not_json": (
        "HTTP {status}, and the response is not the expected JSON",
        "HTTP {status}、応答が想定の JSON ではありません",
    ),
    "release": ("{release} on {slot}", "{release}({slot})"),
    "release.none": ("no release is live", "稼働中のリリースがありません"),
    "release.gone": (
        "{slot} is linked to a release that is not there ({release})",
        "{slot} のリンク先リリースが存在しません({release})",
    ),
    "release.bad": (
        "the live release {release} is marked bad: {reason}",
        "稼働中のリリース {release} は不良と記録されています: {reason}",
    ),
    "release.transition": (
        "a {kind} to {to} stopped in phase {phase} (since {since})",
        "{to} への {kind} が段階 {phase} で止まっています({since} から)",
    ),
    "maintenance": ("the maintenance page is off", "メンテナンス画面は表示していません"),
    "release.maintenance": (
        "the maintenance page is on since {since}: users cannot work",
        "{since} からメンテナンス画面を表示中: 利用者は操作できません",
    ),
    "timeout": ("no response within {seconds:g} s", "{seconds:g} 秒以内に応答がありません"),
    "crash": ("the check itself failed: {error}", "チェック自体が失敗しました: {error}"),
    # --- actions
    "hint.http": commands("systemctl status {unit}; journalctl -u {unit} -n 50; tail -n 50 {log}"),
    "hint.http.refused": (
        "nothing listens there: systemctl status {unit}; nginx -t; ss -ltnp",
        "待ち受けがありません。systemctl status {unit}、nginx -t、ss -ltnp を確認してください",
    ),
    "hint.http.missing": (
        "the socket is not there, so its unit is not running: systemctl status {unit}; journalctl -u {unit} -n 50",
        "ソケットがないためユニットが停止しています。systemctl status {unit}、journalctl -u {unit} -n 50 を確認してください",
    ),
    "hint.http.timeout": (
        "it accepts connections and does not respond: tail -n 50 {log}; a blocked database or too few workers; systemctl restart {unit}",
        "接続は受け付けますが応答しません。tail -n 50 {log} を確認し、DB のロックやワーカー不足を疑ってください。systemctl restart {unit}",
    ),
    "hint.http.status": (
        "tail -n 50 {log}; journalctl -u {unit} -n 50; 503: it reports that the database is away; 502, 504: it does not respond to nginx",
        "tail -n 50 {log}、journalctl -u {unit} -n 50 を確認してください。503 は DB 異常、502 と 504 は nginx の背後のアプリケーションが無応答です",
    ),
    "hint.http.slow": (
        "tail -n 50 {log}; look for slow queries and a busy host: top; ss -xl",
        "tail -n 50 {log} を確認し、遅いクエリや高負荷を調べてください: top、ss -xl",
    ),
    "hint.http.tls": (
        "openssl s_client -connect {where} -servername {server_name} </dev/null",
        "openssl s_client -connect {where} -servername {server_name} </dev/null で確認してください",
    ),
    "hint.pages": (
        "users are affected, ansible-playbook playbooks/diagnose.yml finds the cause; tail -n 50 {log}",
        "利用者に影響しています。ansible-playbook playbooks/diagnose.yml で原因を調べてください。tail -n 50 {log}",
    ),
    "hint.tcp": (
        "ss -ltnp; systemctl status {unit}; the firewall: nft list ruleset",
        "ss -ltnp、systemctl status {unit}、ファイアウォール(nft list ruleset)を確認してください",
    ),
    "hint.postgres": commands("systemctl status {unit}; pg_lsclusters; tail -n 50 {log}"),
    "hint.postgres.refused": (
        "PostgreSQL does not run or listens elsewhere: systemctl start {unit}; pg_lsclusters; tail -n 50 {log}",
        "PostgreSQL が停止しているか別の場所で待ち受けています。systemctl start {unit}、pg_lsclusters、tail -n 50 {log}",
    ),
    "hint.postgres.auth": (
        "the password or user is rejected: compare {environment} with the role in the database, and deploy again; tail -n 50 {log}",
        "パスワードまたはユーザーが拒否されました。{environment} と DB のロールを照合し、再デプロイしてください。tail -n 50 {log}",
    ),
    "hint.postgres.hba": (
        "pg_hba.conf has no line for this host, user, database and encryption: see it with sudo -u postgres psql -c 'table pg_hba_file_rules'",
        "pg_hba.conf に該当する行がありません。sudo -u postgres psql -c 'table pg_hba_file_rules' で確認してください",
    ),
    "hint.postgres.connections": (
        "see who holds them: sudo -u postgres psql -c 'SELECT usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2'",
        "接続の内訳: sudo -u postgres psql -c 'SELECT usename, state, count(*) FROM pg_stat_activity GROUP BY 1, 2'",
    ),
    "hint.postgres.locked": (
        "ansible-playbook playbooks/diagnose.yml -e area=db names the session that holds the lock",
        "ansible-playbook playbooks/diagnose.yml -e area=db でロックを保持しているセッションを確認してください",
    ),
    "hint.postgres.starting": (
        "it starts, stops or recovers: wait, and follow {log}",
        "起動・停止・リカバリー中です。待機し、{log} を確認してください",
    ),
    "hint.postgres.absent": (
        "the database or the role does not exist: sudo -u postgres psql -l; run ansible-playbook deploy.yml",
        "データベースまたはロールが存在しません。sudo -u postgres psql -l で確認し、ansible-playbook deploy.yml を実行してください",
    ),
    "hint.postgres.timeout": (
        "it accepts connections and does not respond: systemctl status {unit}; disk and locks; tail -n 50 {log}",
        "接続後に応答がありません。systemctl status {unit}、ディスク、ロック、tail -n 50 {log} を確認してください",
    ),
    "hint.postgres.missing": (
        "install postgresql-client on this host",
        "このホストに postgresql-client をインストールしてください",
    ),
    "hint.database_cluster": commands("systemctl start {unit}; journalctl -u {unit} -n 50"),
    "hint.database_cluster.etcd": (
        "on each member of etcd: systemctl start etcd; journalctl -u etcd -n 50",
        "etcd の各メンバーで systemctl start etcd を実行し、journalctl -u etcd -n 50 を確認してください",
    ),
    "hint.database_cluster.primary": (
        "on each database host: systemctl start etcd {unit}; patronictl -c /etc/patroni/17-main.yml list",
        "各データベースホストで systemctl start etcd {unit} を実行し、patronictl -c /etc/patroni/17-main.yml list を確認してください",
    ),
    "hint.database_cluster.synchronous": (
        "start another member: systemctl start etcd {unit}; patronictl -c /etc/patroni/17-main.yml list",
        "ほかのメンバーで systemctl start etcd {unit} を実行し、patronictl -c /etc/patroni/17-main.yml list を確認してください",
    ),
    "hint.database_cluster.member": (
        "on that host: systemctl start {unit}; where it has diverged: patronictl -c /etc/patroni/17-main.yml reinit 17-main <member>",
        "該当ホストで systemctl start {unit} を実行し、分岐している場合は patronictl -c /etc/patroni/17-main.yml reinit 17-main <メンバー>",
    ),
    "hint.database_cluster.paused": (
        "patronictl -c /etc/patroni/17-main.yml resume, when the work is done",
        "作業が終わったら patronictl -c /etc/patroni/17-main.yml resume を実行してください",
    ),
    "hint.sentinel": commands("systemctl status {unit}; tail -n 50 {log}"),
    "hint.sentinel.majority": (
        "on each host of the cache: systemctl start redis-sentinel; its firewall must accept port 26379 of the others",
        "キャッシュの各ホストで systemctl start redis-sentinel を実行し、ファイアウォールがポート 26379 を相互に許可しているか確認してください",
    ),
    "hint.sentinel.alone": (
        "systemctl start redis-server on the other hosts of the cache; tail -n 50 {log}",
        "キャッシュのほかのホストで systemctl start redis-server を実行し、tail -n 50 {log} を確認してください",
    ),
    "hint.virtual_address": commands("systemctl status {unit}; journalctl -u {unit} -n 50"),
    "hint.virtual_address.twice": (
        "the announcements do not arrive: journalctl -u {unit} -n 50; nft list chain inet shiftmaster input | grep vrrp; ip address",
        "アナウンスが届いていません。journalctl -u {unit} -n 50、nft list chain inet shiftmaster input | grep vrrp、ip address を確認してください",
    ),
    "hint.virtual_address.none": (
        "on the web servers: systemctl status nginx {unit}; systemctl start nginx {unit}",
        "Web サーバーで systemctl status nginx {unit} を確認し、systemctl start nginx {unit} を実行してください",
    ),
    "hint.redis": commands("systemctl status {unit}; journalctl -u {unit} -n 50; tail -n 50 {log}"),
    "hint.redis.refused": (
        "Redis does not run or listens elsewhere: systemctl start {unit}; ss -ltnp; tail -n 50 {log}",
        "Redis が停止しているか別の場所で待ち受けています。systemctl start {unit}、ss -ltnp、tail -n 50 {log}",
    ),
    "hint.redis.auth": (
        "user or password is rejected: compare {environment} with the server's ACL (redis-cli ACL LIST as an administrator)",
        "ユーザーまたはパスワードが拒否されました。{environment} とサーバーの ACL(redis-cli ACL LIST)を照合してください",
    ),
    "hint.redis.noauth": (
        "the server wants a password, and the address in {environment} has none",
        "サーバーはパスワードを要求しますが、{environment} のアドレスに含まれていません",
    ),
    "hint.redis.disk": (
        "Redis rejects writes because it cannot save: df -h; df -i; tail -n 50 {log}",
        "保存できないため Redis が書き込みを拒否しています。df -h、df -i、tail -n 50 {log} を確認してください",
    ),
    "hint.redis.loading": ("it reads its data after a start: wait", "起動後のデータ読み込み中です。お待ちください"),
    "hint.redis.memory": (
        "redis-cli INFO memory; redis-cli --bigkeys; raise maxmemory, or drain the queue",
        "redis-cli INFO memory、redis-cli --bigkeys を確認し、maxmemory の引き上げかキューの消化を行ってください",
    ),
    "hint.redis.timeout": (
        "it accepts connections and does not respond: systemctl status {unit}; redis-cli SLOWLOG GET; systemctl restart {unit}",
        "接続後に応答がありません。systemctl status {unit}、redis-cli SLOWLOG GET、systemctl restart {unit}",
    ),
    "hint.redis.write": commands("redis-cli INFO clients; redis-cli ACL LIST; redis-cli INFO memory"),
    "hint.redis.replication": (
        "redis-cli INFO replication; the network to the primary",
        "redis-cli INFO replication とプライマリへのネットワークを確認してください",
    ),
    "hint.redis.address": (
        "{environment} must hold a valid address: redis://user:password@host:port/number; deploy again",
        "{environment} に正しいアドレス(redis://user:password@host:port/番号)が必要です。再デプロイしてください",
    ),
    "hint.celery": (
        "systemctl status {unit}; journalctl -u {unit} -n 50; and that the broker (check redis) is healthy",
        "systemctl status {unit}、journalctl -u {unit} -n 50 と、ブローカー(redis のチェック)を確認してください",
    ),
    "hint.celery.missing": (
        "there is no release, or it has no celery: ansible-playbook deploy.yml; celery_application must be the application's own",
        "リリースがないか celery が含まれていません。ansible-playbook deploy.yml を実行し、Celery アプリケーション名を確認してください",
    ),
    "hint.systemd": commands("systemctl status {units}; journalctl -u {first} -n 50"),
    "hint.systemd.absent": (
        "the unit is not installed: ansible-playbook deploy.yml",
        "ユニットがインストールされていません。ansible-playbook deploy.yml を実行してください",
    ),
    "hint.disk": (
        "du -xh --max-depth=2 {path} | sort -h | tail -n 15; journalctl --disk-usage; apt-get clean",
        "du -xh --max-depth=2 {path} | sort -h | tail -n 15、journalctl --disk-usage、apt-get clean で空けてください",
    ),
    "hint.disk.inodes": (
        "too many small files: du --inodes -x --max-depth=2 {path} | sort -n | tail -n 15",
        "小さなファイルが多すぎます。du --inodes -x --max-depth=2 {path} | sort -n | tail -n 15 で調べてください",
    ),
    "hint.disk.readonly": (
        "the kernel gave up writing to it: dmesg | grep -i 'remount\\|error'; inspect the disk before anything else",
        "カーネルが書き込みを停止しました。dmesg | grep -i 'remount\\|error' を確認し、まずディスクを調べてください",
    ),
    "hint.disk.problem": (
        "the mount does not respond: mount | grep {path}; the file server or the disk behind it",
        "マウント先が応答しません。mount | grep {path} とファイルサーバー・ディスクを確認してください",
    ),
    "hint.memory": commands("ps aux --sort=-%mem | head; systemd-cgtop -m; journalctl -k | grep -i oom"),
    "hint.certificate": (
        "renew it: certbot renew (ACME), or put the new pair in place and run ansible-playbook deploy.yml --tags tls",
        "更新してください: certbot renew(ACME)、または新しい証明書と鍵を配置して ansible-playbook deploy.yml --tags tls",
    ),
    "hint.certificate.missing": (
        "ansible-playbook deploy.yml --tags tls puts the certificate in place",
        "ansible-playbook deploy.yml --tags tls で証明書を配置してください",
    ),
    "hint.certificate.refused": (
        "nothing listens for TLS there: systemctl status {unit}; nginx -t; ss -ltnp",
        "TLS の待ち受けがありません。systemctl status {unit}、nginx -t、ss -ltnp を確認してください",
    ),
    "hint.certificate.differs": (
        "the server has not read the new file: nginx -t && systemctl reload {unit}",
        "サーバーが新しいファイルを読み込んでいません。nginx -t && systemctl reload {unit}",
    ),
    "hint.certificate.certificate": (
        "name, chain or date do not fit: openssl s_client -connect {where} -servername {server_name} </dev/null",
        "名前・チェーン・期限のいずれかが一致しません。openssl s_client -connect {where} -servername {server_name} </dev/null",
    ),
    "hint.clock": commands("systemctl status chrony; chronyc tracking; chronyc sources -v"),
    "hint.deep_health": commands("curl --unix-socket {socket} 'http://localhost{path}'; tail -n 50 {log}"),
    "hint.deep_health.closed": (
        "query the private socket, or put SHIFTMASTER_HEALTH_TOKEN into {environment}",
        "専用ソケット経由で問い合わせるか、{environment} に SHIFTMASTER_HEALTH_TOKEN を設定してください",
    ),
    "hint.deep_health.absent": (
        "the release lacks shiftmaster_monitoring and its middleware: ansible-playbook deploy.yml",
        "リリースに shiftmaster_monitoring がありません。ansible-playbook deploy.yml を実行してください",
    ),
    "hint.migrations": (
        "apply them: ansible-playbook deploy.yml; see them: {release}/venv/bin/python -m django showmigrations",
        "適用してください: ansible-playbook deploy.yml。確認: {release}/venv/bin/python -m django showmigrations",
    ),
    "hint.release": (
        "ansible-playbook deploy.yml, or ansible-playbook rollback.yml",
        "ansible-playbook deploy.yml または ansible-playbook rollback.yml を実行してください",
    ),
    "hint.release.transition": (
        "the next run of ansible-playbook deploy.yml finishes or reverts it; nothing is to be cleaned by hand",
        "次回の ansible-playbook deploy.yml が完了または取り消しを行います。手作業の後始末は不要です",
    ),
    "hint.maintenance": (
        "ansible-playbook playbooks/maintenance.yml -e state=off ends it",
        "ansible-playbook playbooks/maintenance.yml -e state=off で解除します",
    ),
    "hint.postgres.address": (
        "{environment} must hold the database's address (DB_HOST, DB_PORT, ... or a URL); deploy again",
        "{environment} に DB の接続情報(DB_HOST、DB_PORT など、または URL)が必要です。再デプロイしてください",
    ),
    "hint.live": (
        "deploy a release: ansible-playbook deploy.yml",
        "リリースをデプロイしてください: ansible-playbook deploy.yml",
    ),
    "hint.environment": (
        "{environment} is read for the addresses and passwords: deploy first, or name the file",
        "{environment} から接続情報を読み取ります。先にデプロイするか、ファイルを指定してください",
    ),
    "hint.sudo": (
        "the same command with --ask-become-pass, which asks for the password of sudo",
        "--ask-become-pass を付けて同じコマンドを実行してください(sudo のパスワードを入力します)",
    ),
    "hint.python": (
        "install Python on it: ansible {name} --become -m ansible.builtin.raw -a 'apt-get -y install python3'",
        "Python を導入してください: ansible {name} --become -m ansible.builtin.raw -a 'apt-get -y install python3'",
    ),
    "hint.crash": ("report this with the output of -vvv", "-vvv の出力を添えて報告してください"),
})  # fmt: skip
say = CATALOG.say


def hint_key(kind: str, reason: str) -> str:
    """Return the most particular hint that there is for a kind of check and a reason."""
    if reason in ("environment", "live", "crash", "maintenance"):
        return "hint." + reason
    if kind == "migrations" and reason != "parts":
        kind = "deep_health"  # Nothing is known of the migrations; the way to them is broken.
    particular = "hint.%s.%s" % (kind, reason)
    return particular if particular in CATALOG else "hint." + kind
