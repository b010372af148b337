"""The sentences that end a run, in Japanese (module_utils/shiftmaster/reports/causes.py)."""

from __future__ import annotations

import re
from pathlib import Path

import ansible
import pytest
from ansible.module_utils.shiftmaster.reports import causes
from support import ROOT

RELEASE = "version 2.1.0 (release 20260101T000000Z-abc)"
RELEASE_JA = "バージョン 2.1.0(リリース 20260101T000000Z-abc)"
CUTOVER, GATE, REVERT = (f"module_utils/shiftmaster/release/{name}.py" for name in ("cutover", "gate", "revert"))
PREFLIGHT = "roles/preflight/tasks/main.yml"
HOST = "library/release/shiftmaster_preflight.py"
VARIABLES, ABORT = "plugins/action/shiftmaster_variables.py", "roles/release/tasks/abort.yml"
LOCK, ACQUIRE = "library/release/shiftmaster_lock.py", "roles/release/tasks/lock_host.yml"
NGINX, RESTORE = "roles/nginx/vars/main.yml", "roles/restore/tasks/main.yml"
IN_PLACE = "roles/restore/tasks/in_place.yml"
PLAN, TARGET = "module_utils/shiftmaster/backup/restore.py", "module_utils/shiftmaster/backup/target.py"
ANSIBLE = Path(ansible.__file__).parent
BACKUP = "module_utils/shiftmaster/backup/report.py"
REPORT = "The report above shows the actions."
# The file, a part of its sentence, that sentence as it is printed, and in Japanese.
TLS = "roles/tls/vars/preflight.yml"
MIGRATE = "roles/release/tasks/migrate.yml"
ROLLBACK = "roles/release/tasks/rollback.yml"
ROLLBACK_TARGET, ROLLBACK_SCHEMA = "roles/release/tasks/rollback_target.yml", "roles/release/tasks/rollback_schema.yml"
MIGRATIONS = "module_utils/shiftmaster/release/migrations.py"
RELEASE_MODULE = "library/release/shiftmaster_release.py"
CASES = [
    (GATE, "the health check %s of %s failed %d times: %s",
     f"the health check /health/deep/ of {RELEASE} failed 5 times: HTTP 503",
     f"{RELEASE_JA}のヘルスチェック /health/deep/ が 5 回失敗しました: HTTP 503"),
    (CUTOVER, "%s does not start: %s", f"{RELEASE} does not start: x", f"{RELEASE_JA}が起動しません: x"),
    (GATE, "the Celery worker of %s does not %s", f"the Celery worker of {RELEASE} does not start",
     f"{RELEASE_JA}の Celery ワーカーが起動しません"),
    (GATE, '"start" if died else "respond"', f"the Celery worker of {RELEASE} does not respond",
     f"{RELEASE_JA}の Celery ワーカーが応答しません"),
    ("module_utils/shiftmaster/release/releases.py", "%s failed for version %s (the complete output is in %s):",
     "installing the requirements failed for version 2.1.0 (the complete output is in /var/log/b.log):",
     "バージョン 2.1.0 のビルドで installing the requirements に失敗しました(出力全体: /var/log/b.log):"),
    (REVERT, "had already switched to %s, which is healthy: finished",
     "a run that died in its phase watch had already switched to r2, which is healthy: finished",
     "段階 watch で中断した実行は r2 に切り替え済みで、r2 は正常です: 完了しました"),
    (REVERT, "had switched to %s, which is not healthy: reverted to %s",
     "a run that died in its phase watch had switched to r2, which is not healthy: reverted to r1",
     "段階 watch で中断した実行は r2 に切り替え済みでしたが、r2 は正常ではありません: r1 に切り戻しました"),
    (REVERT, "left %s started next to the traffic: stopped",
     "a run that died in its phase gate left r2 started next to the traffic: stopped",
     "段階 gate で中断した実行の r2 が、切り替え前のまま起動していました: 停止しました"),
    (REVERT, "was reverted: %s is live", "a run that died in its phase revert was reverted: r1 is live",
     "段階 revert で中断した実行を切り戻しました: r1 が稼働しています"),
    (REVERT, "the run died in its phase %s", "the run died in its phase switch", "実行が段階 switch で中断しました"),
    (REVERT, "the link %s was gone; it leads to %s again, which served",
     "the link /a/active was gone; it leads to r1 again, which served",
     "リンク /a/active がありませんでした。稼働していた r1 を再び指しています"),
    ("module_utils/shiftmaster/release/watch.py", "%d of %d requests got a 5xx response (%.1f %%, ",
     "12 of 340 requests got a 5xx response (3.5 %, shiftmaster_watch_error_percent: 1);"
     " /roster/: 12 of 50, in the version before 0 of 40",
     "340 件中 12 件のリクエストが 5xx 応答でした(3.5 %、shiftmaster_watch_error_percent: 1)。"
     "/roster/: 50 件中 12 件、以前のバージョンでは 40 件中 0 件"),
    ("module_utils/shiftmaster/release/watch.py", "the 95th percentile of the response time is %.0f ms",
     "the 95th percentile of the response time is 900 ms (shiftmaster_watch_p95_ms: 500), in the version before 90 ms",
     "応答時間の 95 パーセンタイルが 900 ms です(shiftmaster_watch_p95_ms: 500)。以前のバージョンでは 90 ms"),
    ("library/release/shiftmaster_release.py", "%s broke under traffic: %s. %s",
     f"{RELEASE} broke under traffic: x. {RELEASE} is live again",
     f"{RELEASE_JA}は切り替え後に問題が起きました: x. {RELEASE_JA}が再び稼働しています"),
    ("library/release/shiftmaster_release.py", "There is no earlier release to go back to",
     "There is no earlier release to go back to", "戻せる以前のリリースがありません"),
    ("library/release/shiftmaster_dump.py", "there is too little room for the pre-migration dump in %s: %s free, %s needed",
     "there is too little room for the pre-migration dump in /var/b: 1.0 MiB free, 9.0 MiB needed; free some",
     "マイグレーション前のダンプを保存する空き容量が /var/b にありません(空き 1.0 MiB、必要 9.0 MiB); free some"),
    (ABORT, "still live.", "Version 2.0.0 is still live.", "バージョン 2.0.0 が引き続き稼働しています。"),
    (ABORT, "'live.'", "Version 2.0.0 is live.", "バージョン 2.0.0 が稼働しています。"),
    (ABORT, "No version is live here: version ", "No version is live here: version 2 (r) does not run. Its log: journalctl",
     "稼働中のバージョンがありません。バージョン 2(r)は停止しています。ログ: journalctl"),
    (ABORT, "No version is live yet.", "No version is live yet.", "稼働中のバージョンはまだありません。"),
    (ABORT, "The live release is unknown.", "The live release is unknown.", "稼働中のリリースは不明です。"),
    (ABORT, "Users see the maintenance page.", "Users see the maintenance page.",
     "利用者にはメンテナンス画面が表示されています。"),
    ("roles/release/tasks/migrate.yml", "The old version stays live.", "The old version stays live.",
     "旧バージョンが引き続き稼働しています。"),
    (LOCK, "%s holds the lock for its %s since %s; it expires at %s (run %s)",
     "a@b holds the lock for its deploy since 2026-01-01 10:00:00 JST; it expires at 2026-01-01 14:00:00 JST (run r1)",
     "a@b が deploy のためにロックを保持しています(2026-01-01 10:00:00 JST から、期限 2026-01-01 14:00:00 JST、実行 r1)"),
    (ACQUIRE, "No release was touched. Run it again when that one has ended. If you know that it is",
     "No release was touched. Run it again when that one has ended. If you know that it is dead: -e x=r1",
     "リリースは変更していません。その実行の終了後に再実行してください。終了していることを確認済みの場合: -e x=r1"),
    (ACQUIRE, "Its process is gone: the lock is taken over.", "Its process is gone: the lock is taken over.",
     "そのプロセスは終了しているため、ロックを引き継ぎます。"),
    (ACQUIRE, "Waiting for it up to ", "Waiting for it up to 60 s.", "最大 60 秒待ちます。"),
    (PREFLIGHT, "Nothing was changed. What is wrong:", "Nothing was changed. What is wrong:", "何も変更していません。問題点:"),
    ("roles/release/tasks/rollback.yml", "Nothing was changed.", "Nothing was changed.", "何も変更していません。"),
    (VARIABLES, "there is no variable %s%s", "there is no variable a_b (did you mean a_c?)",
     "変数 a_b はありません(a_c の誤りではありませんか)"),
    (VARIABLES, " (did you mean %s?)", "x (did you mean y?)", "x(y の誤りではありませんか)"),
    (VARIABLES, "%s must be a %s: %s: %s in a file, or -e '", "a_b must be a list: a_b: [1] in a file, or -e '{}'",
     "a_b はリストで指定します。ファイルでは a_b: [1]、コマンドラインでは -e '{}'"),
    (VARIABLES, '"mapping"', "a_b must be a mapping: a_b: {} in a file, or -e '{}'",
     "a_b はマッピングで指定します。ファイルでは a_b: {}、コマンドラインでは -e '{}'"),
    (VARIABLES, "is not set", "variable a_b is not set: in the vault", "変数 a_b が設定されていません: in the vault"),
    ("plugins/action/shiftmaster_source.py", "there is no tag, branch or commit %s in the repository (%s, %s); %s",
     "there is no tag, branch or commit 9 in the repository (2 tags)",
     "リポジトリにタグ・ブランチ・コミット 9 がありません (2 tags)"),
    ("group_vars/all/preflight.yml", r"There is no tag \1; there are ", "There is no tag a; there are b, c",
     "タグ a はありません。指定できるタグ: b, c"),
    ("roles/tls/vars/preflight.yml", "set tls_site_mode to acme or selfsigned",
     "tls_x: there is no file /a.crt. Copy the site's certificate there; for a site without one, set tls_site_mode to acme"
     " or selfsigned",
     "tls_x: ファイル /a.crt がありません。サイトの証明書・秘密鍵を置くか、tls_site_mode を acme または selfsigned に設定してください"),
    ("library/release/shiftmaster_release.py", "there is no older release to go back to: nothing that is still here and not",
     "there is no older release to go back to: nothing that is still here and not bad served before the one that is live; "
     "there are: r1, r2. -e to=<version> names one of them",
     "戻せる以前のリリースがありません。残っている正常なリリースに、現在のものより前に稼働したものがありません"
     "(あるもの: r1, r2)。指定する場合: -e to=<バージョン>"),
    ("library/release/shiftmaster_release.py", "there is no release %s on this host; there are: %s",
     "there is no release 9 on this host; there are: r1", "このホストにリリース 9 はありません。あるもの: r1"),
    (MIGRATIONS, "The live code now may not work after %s. A release that only adds, and a later one that removes, ",
     "The live code now may not work after a.0003_drop (contract: x). A release that only adds, and a later one that removes, need no "
     "maintenance page. Nothing was changed.",
     "稼働中のコードは、次の適用後に動作しない可能性があります: a.0003_drop (contract: x)。追加だけのリリースと後で削除するリリースに"
     "分ければ、メンテナンス画面は不要です。 何も変更していません。"),
    (MIGRATE, "To run them while users see the maintenance page:", "To run them while users see the maintenance page:",
     "メンテナンス画面を表示して実行する場合:"),
    (MIGRATE, "To run them without it: annotate the migrations (docs/guide/05-migrations.md).",
     "To run them without it: annotate the migrations (docs/guide/05-migrations.md).",
     "表示せずに実行する場合: マイグレーションに注釈を付ける(docs/guide/05-migrations.ja.md)。"),
    (NGINX, "since this run", "w1 shows the maintenance page to everybody (since this run); health pages still respond.",
     "w1 は利用者全員にメンテナンス画面を表示します(この実行から)。ヘルスチェックのページは応答します。"),
    (NGINX, "shows the maintenance page to everybody",
     "w1 shows the maintenance page to everybody but 10.0.0.0/8, ::1 (as before); health pages still respond.",
     "w1 は 10.0.0.0/8, ::1 を除く利用者全員にメンテナンス画面を表示します(変更なし)。ヘルスチェックのページは応答します。"),
    (NGINX, "nothing would change", "w1 shows the application (nothing would change).",
     "w1 はアプリケーションを表示します(変更なし)。"),
    (NGINX, "a run without --check would do so", "w1 shows the application (a run without --check would do so).",
     "w1 はアプリケーションを表示します(--check なしの実行で切り替わります)。"),
    (NGINX, " shows the application (", "w1 shows the application (since this run).",
     "w1 はアプリケーションを表示します(この実行から)。"),
    (NGINX, "The page announces its end at ",
     "The page announces its end at 2026-11-25 14:30 JST, and does not end by itself.",
     "画面に表示する終了予定は 2026-11-25 14:30 JST です。自動では終了しません。"),
    (NGINX, "To end it: ", "To end it: x -e state=off", "解除: x -e state=off"),
    (NGINX, "state must be on or off, not ",
     'state must be on or off, not "onn". A reason is missing; users read it on the page.',
     'state には on か off を指定してください(指定: "onn")。 理由(reason)がありません。画面で利用者に示すものです。'),
    (NGINX, "A reason is missing; users read it on the page.", "A reason is missing; users read it on the page.",
     "理由(reason)がありません。画面で利用者に示すものです。"),
    (NGINX, "The end is missing: -e end=14:30, in the time of the host.",
     "The end is missing: -e end=14:30, in the time of the host.", "終了予定がありません: -e end=14:30(ホストの時刻)。"),
    (RESTORE, "', on ' ~ restore_host ~ ':'", "Into here, on db1:", "リストア先: db1 の元の場所"),
    (RESTORE, "a scratch directory that is removed afterwards",
     "Into a scratch directory that is removed afterwards, on db1:",
     "リストア先: db1 の作業用ディレクトリ(終了後に削除します)"),
    (RESTORE, "'Into ' ~ (restore_into if restore_into != 'scratch'", "Into /root/a, on db1:", "リストア先: db1 の /root/a"),
    (RESTORE, "') into a file'", "Tables (a,b) into a file, on db1:", "リストア先: db1 のファイル(テーブル: a,b)"),
    (PLAN, "%s, from backup %s (%s%s)", "database: everything in the archive, from backup 1F (3.0 MiB)",
     "データベース: アーカイブのすべて、バックアップ 1F から (3.0 MiB)"),
    (PLAN, ", its test restore took %d s",
     "database: everything in the archive, from backup 1F (3.0 MiB, its test restore took 4 s)",
     "データベース: アーカイブのすべて、バックアップ 1F から (3.0 MiB、検証のリストアは 4 秒)"),
    (TARGET, "everything in the archive", "database: everything in the archive, from backup 1F",
     "データベース: アーカイブのすべて、バックアップ 1F から"),
    (TARGET, "the verified end of the backup of %s",
     "database: the verified end of the backup of 2026-01-01T00:00:00Z, from backup 1F",
     "データベース: 2026-01-01T00:00:00Z のバックアップの検証済みの終点まで、バックアップ 1F から"),
    (TARGET, "what was committed before %s",
     "database: what was committed before 2026-01-01 00:00:00+00, from backup 1F",
     "データベース: 2026-01-01 00:00:00+00 より前にコミットされたもの、バックアップ 1F から"),
    (PLAN, "as of %s (%s)", "files: as of 2026-01-01T00:00:00Z (1.0 MiB)", "ファイル: 2026-01-01T00:00:00Z の時点 (1.0 MiB)"),
    (PLAN, '("files", "configuration")', "configuration: as of 2026-01-01T00:00:00Z (1.0 MiB)",
     "設定: 2026-01-01T00:00:00Z の時点 (1.0 MiB)"),
    (PLAN, "what has not reached the archive", "Lost: what has not reached the archive",
     "失われるデータ: アーカイブに届いていないもの"),
    (PLAN, "what came later", "Lost: what came later", "失われるデータ: それより後のもの"),
    (PLAN, "what was entered in the last %s", "Lost: what was entered in the last 3 h", "失われるデータ: 直近 3 h に入力されたもの"),
    (RESTORE, "'Lost: '", "Lost: what came later", "失われるデータ: それより後のもの"),
    (RESTORE, "Meanwhile users see the maintenance page.", "Meanwhile users see the maintenance page.",
     "その間、利用者にはメンテナンス画面が表示されます。"),
    (RESTORE, "The backup is of release ", "The backup is of release 2.1.0", "バックアップのリリース: 2.1.0"),
    (RESTORE, "To do it: -e confirm=", "Nothing was changed. To do it: -e confirm=db1",
     "何も変更していません。 実行するには: -e confirm=db1"),
    (IN_PLACE, "'The database was not replaced.'", "The database was not replaced.", "データベースは置き換えていません。"),
    (IN_PLACE, "When systemctl list-units \"shiftmaster-restore-here-*\" shows nothing there, repeat the restore.",
     "Whether the database is replaced is not known: db1 does not respond, or its step goes on. Users see the maintenance page."
     ' When systemctl list-units "shiftmaster-restore-here-*" shows nothing there, repeat the restore.',
     "データベースが置き換わったかどうかは不明です: db1 が応答しないか、処理が続いています。利用者にはメンテナンス画面が表示されます。"
     'そこで systemctl list-units "shiftmaster-restore-here-*" に何も表示されなくなったら、リストアをもう一度実行してください。'),
    (IN_PLACE, "'The data is restored. Users see the maintenance page until systemctl start shiftmaster and '",
     "The data is restored. Users see the maintenance page until systemctl start shiftmaster and"
     " ansible-playbook playbooks/maintenance.yml -e state=off.",
     "データはリストア済みです。systemctl start shiftmaster と ansible-playbook playbooks/maintenance.yml -e state=off"
     " を実行するまで、利用者にはメンテナンス画面が表示されます。"),
    (RESTORE, ", but what would be replaced is on ", "confirm is a, but what would be replaced is on b.",
     "confirm は a ですが、置き換えられるものは b にあります。"),
    ("roles/restore/templates/backups.txt.j2", "' verified by a restore'", "    database      full 3.0 MiB verified by a restore",
     "    database      full 3.0 MiB リストアして検証済み"),
    ("roles/backup/tasks/warn.yml", "no backups are made: set the vault_backup_ secrets in the vault",
     "WARNING: no backups are made: set the vault_backup_ secrets in the vault",
     "WARNING: バックアップが作成されません。vault に vault_backup_ の秘密情報を設定してください"),
    ("roles/backup/tasks/warn.yml", "the backups are kept on the database host alone; a host in the group backup keeps them",
     "WARNING: the backups are kept on the database host alone; a host in the group backup keeps them when it is lost",
     "WARNING: バックアップがデータベースホストにしかありません。グループ backup のホストに置くと、その喪失後も残ります"),
    (f"{ANSIBLE}/plugins/connection/ssh.py", "Missing %s password", "Task failed: Missing sudo password",
     "Task failed: sudo のパスワードがありません"),
    (f"{ANSIBLE}/parsing/vault/__init__.py", "Attempting to decrypt but no vault secrets found",
     "Attempting to decrypt but no vault secrets found", "vault のパスワードがないため復号できません"),
    (HOST, "%s has room for %d %s, and %d are needed for %s",
     "app1: / has room for 90 MiB, and 1500 are needed for /a and /b; free some (journalctl --vacuum-size, apt-get clean,"
     " old files), or make the disk larger",
     "app1: / の空きが 90 MiB です(/a and /b に必要: 1500 MiB)。不要なファイルを削除するか(journalctl --vacuum-size,"
     " apt-get clean, old files)、ディスクを拡張してください"),
    (HOST, "port %d is in use by %s",
     "port 80 is in use by apache2 (process 7); stop it and disable its service; nginx is to listen there",
     "ポート 80 は apache2 (process 7) が使用中です。停止してサービスを無効にしてください(本来のプログラム: nginx)"),
    (HOST, "stop it and disable its service", "port 80 is in use by a; stop it and disable its service",
     "ポート 80 は a が使用中です。停止してサービスを無効にしてください"),
    ("roles/preflight/tasks/main.yml", ": the host's clock is ",
     "the host's clock is 90 s earlier than the controller's; set both by NTP "
     "(timedatectl, chronyc makestep); certificates and tokens depend on it",
     "ホストと制御端末の時計が 90 秒ずれています。両方を NTP で合わせてください(timedatectl, chronyc makestep)。"
     "証明書とトークンに影響します"),
    (HOST, "%s (process %d) is installing packages",
     "apt-get (process 9) is installing packages; wait until it has ended, or see why it does not",
     "apt-get(プロセス 9)がパッケージをインストール中です。終了を待つか、終わらない原因を調べてください"),
    (HOST, "an earlier installation of packages was interrupted",
     "an earlier installation of packages was interrupted (nginx); run `dpkg --configure -a`, then `apt-get --fix-broken "
     "install`",
     "以前のパッケージのインストールが中断されています (nginx)。`dpkg --configure -a`、続いて `apt-get --fix-broken install` "
     "を実行してください"),
    (HOST, "%s is none of the systems that this was verified on (%s)",
     "Debian 11 is none of the systems that this was verified on (debian 12); set allow_untested_os=true to go on all the same",
     "Debian 11 は検証済みの OS(debian 12)ではありません。それでも続ける場合は allow_untested_os=true を設定してください"),
    (HOST, "the host's Python is %s, and %s is the oldest supported version",
     "the host's Python is 3.7.1, and 3.9 is the oldest supported version; install a newer python3",
     "ホストの Python は 3.7.1 です。3.9 以降をインストールするか、ansible_python_interpreter を設定してください"),
    (HOST, "the host's first process is %s, not systemd", "the host's first process is sh, not systemd; take a host",
     "ホストの最初のプロセスが systemd ではなく sh です。systemd で起動するホストを使ってください"),
    (HOST, "%s=%s: a user other than root can exchange it, since that user can write to %s",
     "a_dir=/a/b: a user other than root can exchange it, since that user can write to /a; give /a to root",
     "a_dir=/a/b: root 以外のユーザーが /a に書き込めるため、差し替えられます。/a の所有者を root、モードを 0755 にするか、"
     "別のディレクトリを指定してください"),
    (HOST, "nothing is deployed here, which monitoring would report as five faults",
     "nothing is deployed here, which monitoring would report as five faults; run ansible-playbook deploy.yml first",
     "まだデプロイされていません。先に実行してください: ansible-playbook deploy.yml"),
    (TLS, " is self-signed, and no host trusts it: ", "the provided certificate /a.crt is self-signed, and no host trusts it: set a",
     "指定された証明書 /a.crt は自己署名で、どのホストも信頼しません。tls_site_mode を selfsigned にするか、この証明書を "
     "base_extra_ca_certificates に加えてください"),
    (TLS, " UTC: put the renewed certificate there",
     "the provided certificate /a.crt ended on 2026-01-01 00:00:00 UTC: put the renewed certificate there",
     "指定された証明書 /a.crt は 2026-01-01 00:00:00 (UTC) に期限が切れています。更新した証明書に置き換えてください"),
    (TLS, " begins only on ", "the provided certificate /a.crt begins only on 2026-01-01 00:00:00 UTC",
     "指定された証明書 /a.crt の有効期間は 2026-01-01 00:00:00 (UTC) からです"),
    (TLS, " does not cover ", "the provided certificate /a.crt does not cover a.jp but only b.jp",
     "指定された証明書 /a.crt は a.jp に使えません(対象: b.jp)"),
    (TLS, " converts DER", "the provided certificate /a.crt is not in PEM form: openssl x509 -inform der -in /a.crt converts DER",
     "指定された証明書 /a.crt は PEM 形式ではありません。DER からの変換: openssl x509 -inform der -in /a.crt"),
    (TLS, " converts it", "the provided key /a.key is not in PEM form: openssl pkey -in /a.key converts it",
     "指定された秘密鍵 /a.key は PEM 形式ではありません。変換: openssl pkey -in /a.key"),
    (TLS, " shows it without",
     "the provided key /a.key has a passphrase, with which nginx cannot start by itself: openssl pkey -in /a.key shows it without",
     "指定された秘密鍵 /a.key にパスフレーズがあり、nginx が自動で起動できません。パスフレーズなしでの出力: openssl pkey -in /a.key"),
    (TLS, " is not the key of the first certificate in ",
     "the provided key /a.key is not the key of the first certificate in the provided certificate /a.crt",
     "指定された秘密鍵 /a.key は、証明書 /a.crt の先頭の証明書の鍵ではありません"),
    ("roles/release/tasks/migrate.yml", "The old version stays live. With the schema, too:",
     "The old version stays live. With the schema, too: ansible-playbook rollback.yml -e schema=reverse (or restore).",
     "旧バージョンが引き続き稼働しています。スキーマも戻す場合: ansible-playbook rollback.yml -e schema=reverse(または restore)。"),
    ("group_vars/all/preflight.yml", "/vault.yml; ./shiftmaster init writes one, or copy vault.yml.example",
     "variable a is not set: there is no group_vars/a/vault.yml; ./shiftmaster init writes one, or copy vault.yml.example",
     "変数 a が設定されていません: group_vars/a/vault.yml がありません。./shiftmaster init で作成するか、vault.yml.example を"
     "コピーしてください"),
    ("group_vars/all/preflight.yml", "/vault.yml; restore it from git or a copy",
     "variable a is not set: there is no group_vars/a/vault.yml; restore it from git or a copy",
     "変数 a が設定されていません: group_vars/a/vault.yml がありません。git または控えから戻してください"),
    (VARIABLES, "%s=%s is out of its range: %s to %s%s", "a_days=0 is out of its range: 1 to 9, or 77",
     "a_days=0 は範囲外です(1 から 9, or 77)"),
    ("plugins/filter/earlier_version.py", ", which a run deploys that names none, was live before ",
     "app1: version 2.0.0, which a run deploys that names none, was live before 2.1.0. To stay with 2.1.0: shiftmaster_version: "
     "\"2.1.0\" in group_vars/a/vars.yml. To change: ./shiftmaster deploy -e shiftmaster_version=2.0.0",
     "app1: バージョンを指定しない実行がデプロイする 2.0.0 は、現在の 2.1.0 より前に稼働していたものです。2.1.0 のままにする場合: "
     "group_vars/a/vars.yml に shiftmaster_version: \"2.1.0\" と書く。2.0.0 に変える場合: ./shiftmaster deploy -e shiftmaster_version=2.0.0"),
    ("roles/base/vars/preflight.yml", "; timedatectl list-timezones prints them",
     'base_timezone: there is no time zone "Asia/Tokio"; timedatectl list-timezones prints them',
     'base_timezone: タイムゾーン "Asia/Tokio" はありません。一覧: timedatectl list-timezones'),
    ("roles/alertmanager/vars/preflight.yml", "is neither YYYY-MM-DD nor MM-DD of a day that exists",
     'alertmanager_holidays: "02-30" is neither YYYY-MM-DD nor MM-DD of a day that exists',
     'alertmanager_holidays: "02-30" は YYYY-MM-DD または MM-DD 形式の有効な日付ではありません'),
    ("roles/health/tasks/main.yml", "Unhealthy: ", f"Unhealthy: web, redis. {REPORT}",
     "異常: web, redis。対処は上のレポートを参照してください"),
    ("roles/diagnosis/tasks/main.yml", REPORT, f"a: full. {REPORT}", "a: full。対処は上のレポートを参照してください"),
    ("roles/health/vars/main.yml", "it could not be checked", "it could not be checked", "チェックできませんでした"),
    ("plugins/filter/verify_report.py", "NOT RUN: no host has it", "kibana: NOT RUN: no host has it",
     "kibana: 未実行: このグループのホストがありません"),
    ("plugins/filter/verify_report.py", "NOT RUN: no application host has Filebeat",
     "canary: NOT RUN: no application host has Filebeat",
     "canary: 未実行: Filebeat のあるアプリケーションホストがありません"),
    ("roles/verify/tasks/report.yml", "No check has run: no host of this inventory has a part of the logging pipeline",
     "No check has run: no host of this inventory has a part of the logging pipeline, or none responded. The groups are a.",
     "チェックを 1 件も実行していません。ログ基盤のホストがインベントリにないか、応答がありません。グループ: a."),
    (ROLLBACK_TARGET, "so there is no common rollback. Name the version for all of them: -e to=<version>",
     "The hosts do not serve the same version (a: 1, b: 2), so there is no common rollback. Name the version for all of them: "
     "-e to=<version>",
     "ホストによって稼働中のバージョンが異なるため(a: 1, b: 2)、共通の戻し先がありません。全ホストのバージョンを指定してください: "
     "-e to=<バージョン>"),
    (ROLLBACK, "was built with secrets that have been rotated since: ",
     "Release r1 was built with secrets that have been rotated since: X. Nothing was changed. The version comes back with the "
     "secrets of today by a deploy: deploy.yml",
     "リリース r1 は更新前の秘密情報でビルドされています: X. 何も変更していません。 このバージョンに戻すには、現在の秘密情報でデプロイして"
     "ください: deploy.yml"),
    (MIGRATIONS, "The code alone cannot go back: %s.",
     "The code alone cannot go back: the older code may not work with roster.0004_x: drops it; no retained release holds the "
     "file of roster.0005_y, so what it did is not known; roster.0005_y cannot be unapplied.",
     "コードだけを戻すことはできません: 旧コードは次の適用後に動作しない可能性があります: roster.0004_x: drops it; "
     "roster.0005_y のファイルを持つリリースが残っていないため、その内容は不明です; roster.0005_y は取り消せません."),
    (ROLLBACK, "With the schema, while users see the maintenance page", "With the schema, while users see the maintenance page (lost: X):",
     "スキーマも戻す場合(メンテナンス画面を表示、失われるデータ: X):"),
    (ROLLBACK, "With the schema, while users see the maintenance page", "With the schema, while users see the maintenance page:",
     "スキーマも戻す場合(メンテナンス画面を表示):"),
    (ROLLBACK, "With the database as it was before the migrations (lost: everything entered since):",
     "With the database as it was before the migrations (lost: everything entered since):",
     "データベースをマイグレーション前に戻す場合(その後に入力されたデータは失われます):"),
    (ROLLBACK, "which the database does not have, or only half.",
     "2.0.0 needs a.0001, which the database does not have, or only half. A deploy applies them: deploy.yml",
     "2.0.0 に必要な a.0001 が、データベースに適用されていないか途中までです。 デプロイで適用されます: deploy.yml"),
    (ROLLBACK_SCHEMA, "There is no complete pre-migration dump from the time when ",
     "There is no complete pre-migration dump from the time when r1 was live; there are: none. -e dump=<file> names one.",
     "r1 の稼働中に取得した完全なマイグレーション前のダンプがありません。あるもの: none。指定する場合: -e dump=<ファイル>"),
    (ROLLBACK_SCHEMA, "The latest complete pre-migration dump is on ",
     "The latest complete pre-migration dump is on app2: /b/x.dump. Nothing was changed. Use it by --limit without the application hosts "
     "before app2, or name the one of app1 by -e dump=/b/y.dump",
     "最新の完全なマイグレーション前のダンプは app2 にあります: /b/x.dump。何も変更していません。 app2 より前のアプリケーションホストを --limit で除いて使うか、"
     "app1 のものを -e dump=/b/y.dump で指定してください"),
    ("roles/release/tasks/maintenance.yml", "which responds and runs the tasks of shiftmaster_scheduled_tasks. ",
     "--limit leaves out app1, which responds and runs the tasks of shiftmaster_scheduled_tasks. The schema was not changed. "
     "Leave it in the run.",
     "--limit で除かれた app1 が応答しており、shiftmaster_scheduled_tasks のタスクを実行しています。スキーマは変更されていません。実行に含めてください。"),
    (ROLLBACK_SCHEMA, "There is no pre-migration dump ", "There is no pre-migration dump x that is complete; there are: none.",
     "完全なマイグレーション前のダンプ x がありません。あるもの: none."),
    (RELEASE_MODULE, "release %s is marked bad: %s", "release r1 is marked bad: x", "リリース r1 は不良と記録されています: x"),
    (RELEASE_MODULE, "release %s was never live, so it is not known to work; deploy it instead",
     "release r1 was never live, so it is not known to work; deploy it instead",
     "リリース r1 は稼働したことがなく、動作を確認できません。戻すのではなくデプロイしてください"),
    (RELEASE_MODULE, "no release is live on this host, so there is nothing to roll back",
     "no release is live on this host, so there is nothing to roll back",
     "このホストで稼働中のリリースがないため、ロールバックできません"),
    (BACKUP, "Date: %s", "Date: 2026-01-01 09:00:00 JST", "日時: 2026-01-01 09:00:00 JST"),
    (BACKUP, ", restored and verified", "Database: SUCCESS (full, 3.0 MiB, restored and verified)",
     "データベース: 成功(フル、3.0 MiB、リストアして検証済み)"),
    (BACKUP, '"Logical dump"', "Logical dump: SKIPPED", "論理ダンプ: 対象外"),
    (BACKUP, '"Files"', "Files: FAILED: disk full", "ファイル: 失敗: disk full"),
    (BACKUP, '"Configuration"', "Configuration: SUCCESS (1.0 MiB)", "設定: 成功 (1.0 MiB)"),
    (BACKUP, "Total size: %s", "Total size: 3.0 MiB", "合計サイズ: 3.0 MiB"),
    (BACKUP, "Location: %s", "Location: /var/backups", "保存先: /var/backups"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "part", "english", "expected"), CASES)
def test_a_sentence_of_the_code_has_its_japanese(path, part, english, expected):
    text = (ROOT / path).read_text(encoding="utf-8")
    assert re.sub(r"\s+", " ", part) in re.sub(r"\s+", " ", text), f"{path} has another sentence by now"
    assert causes.japanese(english) == expected


def test_every_pattern_has_a_case_and_other_lines_stay():
    unused = [pattern for pattern, _ in causes.SENTENCES if not any(re.search(pattern, case[2]) for case in CASES)]
    assert unused == [] and causes.japanese("[ERROR] django.request: /x") == "[ERROR] django.request: /x"
