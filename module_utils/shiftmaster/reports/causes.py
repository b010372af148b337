"""Japanese for the sentences that end a run most often. What programs print stays as it is."""

from __future__ import annotations

import re

_RELEASE = r"version (\S+) \(release (\S+)\)"
# A regular expression of the English sentence, and its Japanese; applied one after the other.
SENTENCES = (
    (r"the health check (\S+) of " + _RELEASE + r" failed (\d+) times: ",
     r"バージョン \2(リリース \3)のヘルスチェック \1 が \4 回失敗しました: "),
    (_RELEASE + " does not start: ", r"バージョン \1(リリース \2)が起動しません: "),
    (r"the Celery worker of " + _RELEASE + " does not start", r"バージョン \1(リリース \2)の Celery ワーカーが起動しません"),
    (r"the Celery worker of " + _RELEASE + " does not respond",
     r"バージョン \1(リリース \2)の Celery ワーカーが応答しません"),
    (r"(.+) failed for version (\S+) \(the complete output is in (\S+)\)",
     r"バージョン \2 のビルドで \1 に失敗しました(出力全体: \3)"),
    (r"a run that died in its phase (\S+) had already switched to (\S+), which is healthy: finished",
     r"段階 \1 で中断した実行は \2 に切り替え済みで、\2 は正常です: 完了しました"),
    (r"a run that died in its phase (\S+) had switched to (\S+), which is not healthy: reverted to (\S+)",
     r"段階 \1 で中断した実行は \2 に切り替え済みでしたが、\2 は正常ではありません: \3 に切り戻しました"),
    (r"a run that died in its phase (\S+) left (\S+) started next to the traffic: stopped",
     r"段階 \1 で中断した実行の \2 が、切り替え前のまま起動していました: 停止しました"),
    (r"a run that died in its phase (\S+) was reverted: (\S+) is live",
     r"段階 \1 で中断した実行を切り戻しました: \2 が稼働しています"),
    (r"the run died in its phase (\S+)", r"実行が段階 \1 で中断しました"),
    (r"the link (\S+) was gone; it leads to (\S+) again, which served",
     r"リンク \1 がありませんでした。稼働していた \2 を再び指しています"),
    (_RELEASE + " broke under traffic: ", r"バージョン \1(リリース \2)は切り替え後に問題が起きました: "),
    (_RELEASE + " is live again", r"バージョン \1(リリース \2)が再び稼働しています"),
    (r"There is no earlier release to go back to", "戻せる以前のリリースがありません"),
    (r"(\d+) of (\d+) requests got a 5xx response \((\S+ %), (\w+): (\S+)\); (\S+): (\d+) of (\d+), "
     r"in the version before (\d+) of (\d+)",
     r"\2 件中 \1 件のリクエストが 5xx 応答でした(\3、\4: \5)。\6: \8 件中 \7 件、以前のバージョンでは \10 件中 \9 件"),
    (r"the 95th percentile of the response time is (\S+ ms) \((\w+): (\S+)\), in the version before (\S+ ms)",
     r"応答時間の 95 パーセンタイルが \1 です(\2: \3)。以前のバージョンでは \4"),
    (r"there is too little room for the pre-migration dump in (\S+): (.+) free, (.+) needed",
     r"マイグレーション前のダンプを保存する空き容量が \1 にありません(空き \2、必要 \3)"),
    (r"Version (\S+) is still live\.", r"バージョン \1 が引き続き稼働しています。"),
    (r"Version (\S+) is live\.", r"バージョン \1 が稼働しています。"),
    (r"No version is live here: version (\S+) \((\S+)\) does not run\. Its log: ",
     r"稼働中のバージョンがありません。バージョン \1(\2)は停止しています。ログ: "),
    (r"No version is live yet\.", "稼働中のバージョンはまだありません。"),
    (r"The live release is unknown\.", "稼働中のリリースは不明です。"),
    (r"Users see the maintenance page\.", "利用者にはメンテナンス画面が表示されています。"),
    (r"The old version stays live\.", "旧バージョンが引き続き稼働しています。"),
    (r"(\S+) holds the lock for its (\w+) since (.+?); it expires at (.+?) \(run (\S+)\)",
     r"\1 が \2 のためにロックを保持しています(\3 から、期限 \4、実行 \5)"),
    (r"No release was touched\. Run it again when that one has ended\. If you know that it is dead: (\S+ \S+)",
     r"リリースは変更していません。その実行の終了後に再実行してください。終了していることを確認済みの場合: \1"),
    (r"Its process is gone: the lock is taken over\.", "そのプロセスは終了しているため、ロックを引き継ぎます。"),
    (r"Waiting for it up to (\d+) s\.", r"最大 \1 秒待ちます。"),
    (r"Nothing was changed\. What is wrong:", "何も変更していません。問題点:"),
    (r"Nothing was changed\.", "何も変更していません。"),
    (r"there is no variable (\S+)", r"変数 \1 はありません"),
    (r"there is no tag, branch or commit (\S+) in the repository", r"リポジトリにタグ・ブランチ・コミット \1 がありません"),
    (r"There is no tag (\S+); there are ", r"タグ \1 はありません。指定できるタグ: "),
    (r"variable (\S+) is not set", r"変数 \1 が設定されていません"),
    (r": there is no file (\S+)\. Copy the site's (?:certificate|key) there; for a site without one, set tls_site_mode to "
     r"acme or selfsigned",
     r": ファイル \1 がありません。サイトの証明書・秘密鍵を置くか、tls_site_mode を acme または selfsigned に設定してください"),
    (r"(\w+) is a list: (.+), with -e ", r"\1 はリストで指定します: \2、コマンドラインでは -e "),
    (r"(\w+) is a mapping: (.+), with -e ", r"\1 はマッピングで指定します: \2、コマンドラインでは -e "),
    (r"Unhealthy: (.*)\. The report above shows the actions\.", r"異常: \1。対処は上のレポートを参照してください"),
    (r"(.*)\. The report above shows the actions\.", r"\1。対処は上のレポートを参照してください"),
    (r"there is no older release to go back to: nothing that is still here and not bad served before the one that is live; "
     r"there are: (.*)\. -e to=<version> names one of them",
     r"戻せる以前のリリースがありません。残っている正常なリリースに、現在のものより前に稼働したものがありません"
     r"(あるもの: \1)。指定する場合: -e to=<バージョン>"),
    (r"there is no release (\S+) on this host; there are: ", r"このホストにリリース \1 はありません。あるもの: "),
    (r"The live code now may not work after (.+)\. Run it in maintenance mode with contract migrations allowed, or split it "
     r"into a release that only adds and a later one that removes\.",
     r"稼働中のコードは、次の適用後に動作しない可能性があります: \1。contract のマイグレーションを許可してメンテナンス画面を表示して"
     r"実行するか、追加だけのリリースと後で削除するリリースに分けてください。"),
    (r"Deploy with -e shiftmaster_allow_contract=true to run them in maintenance mode, or annotate the migration "
     r"\(docs/operations-guide\.md, chapter on migrations\)\.",
     "メンテナンス画面を表示して実行するには -e shiftmaster_allow_contract=true を付けてデプロイします。または、"
     "マイグレーションに注釈を付けます(docs/operations-guide.ja.md のマイグレーションの章)。"),
    # The maintenance page.
    (r"\(since this run\)", "(この実行から)"),
    (r"\((?:as before|nothing would change)\)", "(変更なし)"),
    (r"\(a run without --check would do so\)", "(--check なしの実行で切り替わります)"),
    (r"(\S+) shows the maintenance page to everybody (\([^)]*\)); health pages still respond\.",
     r"\1 は利用者全員にメンテナンス画面を表示します\2。ヘルスチェックのページは応答します。"),
    (r"(\S+) shows the maintenance page to everybody but (.+) (\([^)]*\)); health pages still respond\.",
     r"\1 は \2 を除く利用者全員にメンテナンス画面を表示します\3。ヘルスチェックのページは応答します。"),
    (r"(\S+) serves the application (\([^)]*\))\.", r"\1 はアプリケーションを表示します\2。"),
    (r"The page announces its end at (.+), and does not end by itself\.",
     r"画面に表示する終了予定は \1 です。自動では終了しません。"),
    (r"To end it: ", "解除: "),
    (r'state must be on or off, not (".*?"|\S+)\.', r"state には on か off を指定してください(指定: \1)。"),
    (r"A reason is missing; users read it on the page\.", "理由(reason)がありません。画面で利用者に示すものです。"),
    (r"The end is missing: (-e end=\S+), in the time of the host\.", r"終了予定がありません: \1(ホストの時刻)。"),
    # The plan of a restore.
    (r"^Into here, on (\S+):$", r"リストア先: \1 の元の場所"),
    (r"^Into a scratch directory that is removed afterwards, on (\S+):$",
     r"リストア先: \1 の作業用ディレクトリ(終了後に削除します)"),
    (r"^Into (/\S*), on (\S+):$", r"リストア先: \2 の \1"),
    (r"^Tables \((.+)\) into a file, on (\S+):$", r"リストア先: \2 のファイル(テーブル: \1)"),
    (r"^database: everything in the archive, from backup (\S+)", r"データベース: アーカイブのすべて、バックアップ \1 から"),
    (r"^database: the verified end of the backup of (\S+), from backup (\S+)",
     r"データベース: \1 のバックアップの検証済みの終点まで、バックアップ \2 から"),
    (r"^database: what was committed before (.+), from backup (\S+)",
     r"データベース: \1 より前にコミットされたもの、バックアップ \2 から"),
    (r", its test restore took (\d+) s\)", r"、検証のリストアは \1 秒)"),
    (r"^files: as of (\S+)", r"ファイル: \1 の時点"),
    (r"^configuration: as of (\S+)", r"設定: \1 の時点"),
    (r"^Lost: what has not reached the archive", "失われるデータ: アーカイブに届いていないもの"),
    (r"^Lost: what came later", "失われるデータ: それより後のもの"),
    (r"^Lost: what was entered in the last (.+)", r"失われるデータ: 直近 \1 に入力されたもの"),
    (r"Meanwhile users see the maintenance page\.", "その間、利用者にはメンテナンス画面が表示されます。"),
    (r"The backup is of release (\S+)", r"バックアップのリリース: \1"),
    (r"To do it: -e confirm=", "実行するには: -e confirm="),
    (r"confirm is (\S+), but what would be replaced is on (\S+)\.",
     r"confirm は \1 ですが、置き換えられるものは \2 にあります。"),
    (r"(\d \w+) verified by a restore$", r"\1 リストアして検証済み"),
    (r"no backups are made: set the vault_backup_ secrets in the vault",
     "バックアップが作成されません。vault に vault_backup_ の秘密情報を設定してください"),
    (r"the backups are kept on the database host alone; a host in the group backup keeps them when it is lost",
     "バックアップがデータベースホストにしかありません。グループ backup のホストに置くと、その喪失後も残ります"),
    # Of Ansible.
    (r"Missing sudo password", "sudo のパスワードがありません"),
    (r"Attempting to decrypt but no vault secrets found", "vault のパスワードがないため復号できません"),
    (r"the inventory names version (\S+), which was live before (\S+)\. To keep that one, write (\S+ \S+) into the inventory's "
     r"group_vars; to change to the other one, name it: (.+)",
     r"インベントリのバージョン \1 は、現在の \2 より前に稼働していたものです。\2 のままにするには、インベントリの group_vars に \3 "
     r"と書いてください。\1 に変えるには明示してください: \4"),
    (r"there is no time zone (\S+); timedatectl list-timezones prints them",
     r"タイムゾーン \1 はありません。一覧: timedatectl list-timezones"),
    (r"(\S+) is neither YYYY-MM-DD nor MM-DD of a day that exists", r"\1 は YYYY-MM-DD または MM-DD 形式の有効な日付ではありません"),
    # The preflight of a host.
    (r"(\S+) has room for (\d+) (MiB|files), and (\d+) are needed for (.+); free some \((.+)\), or make the disk larger",
     r"\1 の空きが \2 \3 です(\5 に必要: \4 \3)。不要なファイルを削除するか(\6)、ディスクを拡張してください"),
    (r"port (\d+) is in use by (.+); stop it and disable its service",
     r"ポート \1 は \2 が使用中です。停止してサービスを無効にしてください"),
    (r"; (.+) is to listen there", r"(本来のプログラム: \1)"),
    (r"the host's clock is (\d+) s (?:later|earlier) than the controller's; set both by NTP \((.+)\); certificates and tokens "
     r"depend on it",
     r"ホストと制御端末の時計が \1 秒ずれています。両方を NTP で合わせてください(\2)。証明書とトークンに影響します"),
    (r"(\S+) \(process (\d+)\) is installing packages; wait until it has ended, or see why it does not",
     r"\1(プロセス \2)がパッケージをインストール中です。終了を待つか、終わらない原因を調べてください"),
    (r"an earlier installation of packages was interrupted(.*); run (`[^`]+`), then (`[^`]+`)",
     r"以前のパッケージのインストールが中断されています\1。\2、続いて \3 を実行してください"),
    (r"(.+) is none of the systems that this was verified on \((.+)\); set (\S+) to go on all the same",
     r"\1 は検証済みの OS(\2)ではありません。それでも続ける場合は \3 を設定してください"),
    (r"the host's Python is (\S+), and (\S+) is the oldest supported version; .*",
     r"ホストの Python は \1 です。\2 以降をインストールするか、ansible_python_interpreter を設定してください"),
    (r"the host's first process is (\S+), not systemd; .*",
     r"ホストの最初のプロセスが systemd ではなく \1 です。systemd で起動するホストを使ってください"),
    (r"(\S+=\S+): a user other than root can exchange it, since that user can write to (\S+); .*",
     r"\1: root 以外のユーザーが \2 に書き込めるため、差し替えられます。\2 の所有者を root、モードを 0755 にするか、"
     r"別のディレクトリを指定してください"),
    (r"nothing is deployed here, which monitoring would report as five faults; run deploy\.yml without --tags first",
     r"まだデプロイされていません。先に --tags なしで deploy.yml を実行してください"),
    (r"the provided certificate is self-signed, and no host trusts it: .*",
     r"指定された証明書は自己署名で、どのホストも信頼しません。tls_site_mode を selfsigned にするか、"
     r"この証明書を base_extra_ca_certificates に加えてください"),
    (r"(\w+)=(\S+) is out of its range: (\S+) to (.+)", r"\1=\2 は範囲外です(\3 から \4)"),
    (r"\bit could not be checked", "チェックできませんでした"),
    (r"NOT RUN: no host has it", "未実行: このグループのホストがありません"),
    (r"NOT RUN: no application host has Filebeat", "未実行: Filebeat のあるアプリケーションホストがありません"),
    (r"No check has run: no host of this inventory has a part of the logging pipeline, or none responded\. The groups are ",
     "チェックを 1 件も実行していません。ログ基盤のホストがインベントリにないか、応答がありません。グループ: "),
    # The report of a backup.
    (r"^Date: ", "日時: "),
    (r"^Database: (?=[SF])", "データベース: "),
    (r"^Logical dump: (?=[SF])", "論理ダンプ: "),
    (r"^Files: (?=[SF])", "ファイル: "),
    (r"^Configuration: (?=[SF])", "設定: "),
    (r": SUCCESS\b", ": 成功"),
    (r": SKIPPED\b", ": 対象外"),
    (r": FAILED\b", ": 失敗"),
    (r" \(full, ", "(フル、"),
    (r", restored and verified\)", "、リストアして検証済み)"),
    (r"^Total size: ", "合計サイズ: "),
    (r"^Location: ", "保存先: "),
    (r" ?\(did you mean (\S+)\?\)", r"(\1 の誤りではありませんか)"),
)  # fmt: skip


LONGEST = 1000


def japanese(line: str) -> str:
    # A message of a host may be one endless line, on which the expressions would take minutes.
    if len(line) > LONGEST:
        return line
    for pattern, text in SENTENCES:
        line = re.sub(pattern, text, line)
    return line
