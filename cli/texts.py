"""Texts of `./shiftmaster` in English and Japanese, by key; the fields of a text are those of str.format()."""

from __future__ import annotations

import os
import sys

from shiftmaster.host.texts import Texts, language_of

TEXTS = Texts({
    # Help: the summary of a command, by its name and its values.
    "usage": (
        "usage: ./shiftmaster [-E ENVIRONMENT] {form} [options of ansible-playbook]",
        "使い方: ./shiftmaster [-E 環境] {form} [ansible-playbook のオプション]",
    ),
    "form": ("COMMAND [VALUES]", "コマンド [値]"),
    "about": (
        "ShiftMaster's operations: each command is one call of ansible-playbook, which is printed.",
        "ShiftMaster の運用コマンド。各コマンドは ansible-playbook を 1 回呼び出し、その内容を表示します。",
    ),
    "environment": (
        "-E names a directory of inventory/; without it $SHIFTMASTER_ENVIRONMENT, then $ANSIBLE_INVENTORY, then the "
        "demo.\n"
        "--version prints the version of this repository.",
        "-E は inventory/ のディレクトリ名。省略時は $SHIFTMASTER_ENVIRONMENT、$ANSIBLE_INVENTORY、demo の順に"
        "使います。\n"
        "--version はこのリポジトリのバージョンを表示します。",
    ),
    "init": (
        "ask for host, domain, repository and version; write inventory, variables and a vault",
        "ホスト・ドメイン・リポジトリ・バージョンを尋ね、インベントリ・変数・vault を作成",
    ),
    "deploy [VERSION]": (
        "install, configure, deploy (--check shows what would change; --tags release)",
        "インストール・設定・デプロイ (--check で変更内容のみ表示、--tags release)",
    ),
    "rollback [RELEASE]": (
        "back to the release before, or to a named one",
        "直前の、または指定したリリースに戻す",
    ),
    "status": (
        "the releases and the services of each application host",
        "各アプリケーションホストのリリースとサービス",
    ),
    "history": (
        "what was deployed and rolled back, when and by whom",
        "デプロイとロールバックの履歴 (対象・日時・実行者)",
    ),
    "health": ("health checks", "ヘルスチェック"),
    "diagnose": ("faults, their causes and the commands that fix them", "障害とその原因、対処のコマンド"),
    "checklist PERIOD": (
        "morning, evening, weekly or monthly",
        "チェックリスト (morning, evening, weekly, monthly)",
    ),
    "backup": ("make a backup and verify it by a restore", "バックアップを取り、リストアして確認"),
    "restore": (
        "what a restore would do; -e confirm=HOST does it, -e list=true lists the backups",
        "リストアの内容を表示。-e confirm=ホスト名 で実行、-e list=true で一覧",
    ),
    "maintenance on|off": (
        "the maintenance page (-e \"reason='Database upgrade'\" -e end=14:30)",
        "メンテナンスページ (-e \"reason='データベース更新'\" -e end=14:30)",
    ),
    "upgrade-postgresql": (
        "what a move to PostgreSQL's next major version would do; -e confirm=HOST does it",
        "PostgreSQL の次のメジャーバージョンへの移行内容を表示。-e confirm=ホスト名 で実行",
    ),
    "move STEP": (
        "to a new host: prepare, switch, back, commit; -e confirm=ADDRESS does it",
        "新しいホストへの移行: prepare, switch, back, commit。-e confirm=アドレス で実行",
    ),
    "grow FUNCTION HOST [ADDRESS]": (
        "show the plan to move database, cache or both to HOST; -e confirm=HOST writes it into the inventory and does "
        "it. For app, write a further application host: then deploy",
        "database, cache, またはその両方を HOST に移す計画を表示。-e confirm=HOST でインベントリに書き込み、実行。"
        "app はアプリケーションホストの追加で、続けて deploy",
    ),
    "keys": (
        "the fingerprints of the backups' keys; then compare keys that are typed from the safe",
        "バックアップの鍵のフィンガープリントを表示し、金庫の用紙から入力した鍵と照合",
    ),
    "ssh [HOST] [COMMAND]": (
        "a terminal on a host, without a name on the first application host; or a command there as root",
        "ホストの端末 (省略時は最初のアプリケーションホスト)、または root でのコマンド実行",
    ),
    "manage ARGUMENTS": (
        "a command of Django in the live release, e.g. manage createsuperuser (--host HOST, --release NAME)",
        "稼働中のリリースで Django のコマンドを実行 (例: manage createsuperuser。--host HOST、--release NAME)",
    ),
    "shell [--read-only]": ("Django's shell in the live release", "稼働中のリリースの Django シェル"),
    "db [--write]": (
        "psql as the application's login, read-only without --write",
        "アプリケーションのログインでの psql。--write がなければ読み取り専用",
    ),
    "NAME": (
        "any other playbooks/NAME.yml: verify, patch, rotate, ...",
        "その他の playbooks/NAME.yml: verify, patch, rotate など",
    ),
    "ansible ARGUMENTS": (
        "a command of Ansible on the hosts, e.g. ansible app -m ping",
        "ホストに対する Ansible のコマンド (例: ansible app -m ping)",
    ),
    # Errors and results.
    "error": ("ERROR: {message}", "エラー: {message}"),
    "did_you_mean": ("Did you mean {near}? ", "{near} ではありませんか。"),
    "value": ("VALUE", "値"),
    "environment_unnamed": ("-E needs the name of an environment.", "-E には環境の名前が必要です。"),
    "environment_unknown": (
        "There is no inventory/{name}. {meant}There are {known}; `./shiftmaster -E {name} init` makes one.",
        "inventory/{name} がありません。{meant}存在する環境: {known}。`./shiftmaster -E {name} init` で作成できます。",
    ),
    "password_readable": (
        "WARNING: Other users can read {path}: chmod 600 {path}",
        "警告: {path} を他のユーザーが読めます: chmod 600 {path}",
    ),
    "command_unknown": (
        "There is no command {command}. {meant}See ./shiftmaster --help.",
        "コマンド {command} はありません。{meant}./shiftmaster --help を参照してください。",
    ),
    "option_unknown": (
        "There is no option {option}. {meant}`.venv/bin/ansible-playbook --help` lists all.",
        "オプション {option} はありません。{meant}一覧: `.venv/bin/ansible-playbook --help`",
    ),
    "value_missing": (
        "{command} needs a value, {form}: {summary}.",
        "{command} には値 {form} が必要です: {summary}。",
    ),
    "no_host": ("There is no host in group {group}.", "グループ {group} にホストがありません。"),
    "host_unknown": (
        "There is no host {name}. {meant}There are {known}.",
        "ホスト {name} はありません。{meant}存在するホスト: {known}。",
    ),
    "host_unnamed": ("--host needs the name of a host.", "--host にはホスト名が必要です。"),
    "connection_unknown": (
        "{host} is reached by the connection {kind}; this command supports ssh, docker and local.",
        "{host} の接続方式は {kind} です。このコマンドは ssh、docker、local に対応しています。",
    ),
    "host_unreachable": (
        "{host} cannot be reached, or the connection broke.",
        "{host} に接続できないか、接続が切れました。",
    ),
    "word_unknown": (
        "{command} has no {word}. {meant}It takes: {known}.",
        "{command} に {word} はありません。{meant}使用できるもの: {known}。",
    ),
    "program_missing": ("{program} is not installed.", "{program} がインストールされていません。"),
    "manage_usage": (
        "manage needs a command of Django, e.g. ./shiftmaster manage showmigrations.",
        "manage には Django のコマンドが必要です (例: ./shiftmaster manage showmigrations)。",
    ),
    "interrupted": (
        "\nInterrupted. What is live (the same command again finishes or reverts the {command}):",
        "\n中断しました。同じコマンドを再実行すると、{command} を完了するか元に戻します。現在の状態:",
    ),
    "grow_usage": (
        "grow needs a function and a host: grow database,cache db1.example.jp. See ./shiftmaster --help.",
        "grow には機能とホストが必要です (例: grow database,cache db1.example.jp)。説明: ./shiftmaster --help",
    ),
    "grow_inventory": (
        "grow writes the inventory of an environment: name it by -E, not by -i.",
        "grow は環境のインベントリに書き込みます。-i ではなく -E で指定してください。",
    ),
    "grow_undo": (
        "{hosts} names {host} from now on. To give it up: {line}",
        "{hosts} には {host} が書き込まれています。取りやめるには: {line}",
    ),
    # init: the questions, what an answer must be, and what was written.
    "ask_host": ("Host, as ssh reaches it (app1.example.jp)", "ssh で接続するホスト (app1.example.jp)"),
    "form_host": (
        "a name or an address, without user and port",
        "ユーザーとポートを除いた名前またはアドレス",
    ),
    "ask_shiftmaster_domain": (
        "Domain, the name that users type (shift.example.jp)",
        "利用者が入力するドメイン名 (shift.example.jp)",
    ),
    "form_shiftmaster_domain": (
        "a name without https:// and without a path",
        "https:// とパスを除いた名前",
    ),
    "ask_shiftmaster_repository": (
        "Git repository of ShiftMaster (https://git.example.jp/shiftmaster.git)",
        "ShiftMaster の Git リポジトリ (https://git.example.jp/shiftmaster.git)",
    ),
    "form_shiftmaster_repository": (
        "a URL or a path without spaces, quotes and braces",
        "空白・引用符・波括弧を含まない URL またはパス",
    ),
    "ask_shiftmaster_version": (
        "Version to deploy, a tag, branch or commit (2.1.0)",
        "デプロイするバージョン。タグ、ブランチ、またはコミット (2.1.0)",
    ),
    "form_shiftmaster_version": (
        "the name of a tag or branch, or a commit",
        "タグ・ブランチの名前、またはコミット",
    ),
    "answer_needed": ("An answer is needed.", "入力してください。"),
    "answer_unusable": (
        "This cannot be used; what is needed is {form}.",
        "使用できません。{form}を入力してください。",
    ),
    "no_terminal": (
        "No response: init asks on a terminal. Nothing was written.",
        "入力がありません。init は端末で質問します。何も作成していません。",
    ),
    "init_interrupted": ("Interrupted. Nothing was written.", "中断しました。何も作成していません。"),
    "environment_name": (
        "The name of an environment consists of a-z, 0-9 and _, and is not that of a group of hosts.",
        "環境の名前には a-z、0-9、_ を使い、ホストグループの名前は使えません。",
    ),
    "environment_present": (
        "{present} exists: nothing was changed. Edit it, or choose another name by -E.",
        "{present} は既に存在します。何も変更していません。編集するか、-E で別の名前を指定してください。",
    ),
    "vault_failed": (
        "The vault could not be encrypted: {reason}",
        "vault を暗号化できませんでした: {reason}",
    ),
    "written": (
        """
Written: {files}
Password of the vault: {password}. Keep a copy of it on another machine: without it the vault and the backups
are lost.

Next:
  cp CERTIFICATE {secrets}/shiftmaster.crt; cp KEY {secrets}/shiftmaster.key   (in PEM form, with its chain;
    without a certificate of your own: tls_site_mode acme or selfsigned in group_vars/{name}/vars.yml)
  ssh root@{host} true   (compare the fingerprint with that on the host's console: ssh-keygen -lf
    /etc/ssh/ssh_host_ed25519_key.pub; then accept it)
  ./shiftmaster -E {name} deploy --check   (what would change)
  ./shiftmaster -E {name} deploy""",
        """
作成したファイル: {files}
vault のパスワード: {password}。別のマシンに控えを保管してください。失うと vault もバックアップも復元できません。

次の手順:
  cp 証明書 {secrets}/shiftmaster.crt; cp 秘密鍵 {secrets}/shiftmaster.key   (PEM 形式、証明書チェーン付き。
    証明書がない場合は group_vars/{name}/vars.yml の tls_site_mode を acme または selfsigned にします)
  ssh root@{host} true   (表示されたフィンガープリントを、ホストのコンソールで実行した
    ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub の結果と比べてから承認します)
  ./shiftmaster -E {name} deploy --check   (変更内容の確認)
  ./shiftmaster -E {name} deploy""",
    ),
    # keys
    "vault_unreadable": ("The vault cannot be read: {reason}", "vault を読めません: {reason}"),
    "no_keys": (
        "The vault holds no keys of backups, or encrypts them one by one instead of the file.",
        "vault にバックアップの鍵がないか、ファイル全体ではなく値ごとに暗号化されています。",
    ),
    "keys_of": ("Keys of the backups, {inventory}\n", "バックアップの鍵、{inventory}\n"),
    "vault_backup_cipher_passphrase": ("pgBackRest: database and WAL", "pgBackRest: データベースと WAL"),
    "vault_backup_restic_password": (
        "restic: dumps, files, configuration",
        "restic: ダンプ・ファイル・設定",
    ),
    "vault_backup_offsite_password": ("restic: off-site copy", "restic: 院外コピー"),
    "type_keys": (
        "\nType each as it is in the safe; nothing is shown. An empty line leaves it out.",
        "\n金庫の用紙のとおりに入力してください(表示されません)。空行にすると省略します。",
    ),
    "same": ("the same", "一致"),
    "different": ("DIFFERENT", "不一致"),
})  # fmt: skip


def say(key: str, **fields) -> str:
    """Return a text in the language of the person."""
    return TEXTS.say(language_of(os.environ), key, **fields)


def fail(key: str, code: int = 1, **fields):
    """End with a sentence. Code 2: wrong usage, nothing was contacted."""
    print(say("error", message=say(key, **fields)), file=sys.stderr)
    sys.exit(code)
