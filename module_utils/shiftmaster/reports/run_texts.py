"""Phases of a run by its roles and task files, the texts of its output, and the next command after a failure."""

from __future__ import annotations

from ..health.text import CATALOG, PYTHON, SUDO
from ..host.texts import Texts

# The phase that a role belongs to. A role that is not named here belongs to the phase that runs, or, at the beginning
# of a play, to one with the name of the play.
ROLES = {
    **dict.fromkeys(("base", "firewall"), "host"),
    **dict(tls="certificates", postgresql="database", redis="cache", shiftmaster="application", nginx="web"),
    **{name: name for name in ("preflight", "backup", "restore", "health", "diagnosis", "checklist")},
    **dict.fromkeys(("alertmanager", "prometheus", "grafana"), "monitoring"),
    **dict.fromkeys("elastic_repository elasticsearch logstash kibana filebeat log_watch".split(), "logging"),
    "exporter": "exporters",
}
# The phase that a task file of a release begins. Other roles that run between them belong to it.
RELEASE_FILES = {name: name for name in ("lock", "recover", "build", "migrate", "cutover", "finish")}
RELEASE_FILES.update(plan="lock", rollback="choose", batch="cutover", abort="revert")
# Plays that are one phase, whatever roles they use.
PLAYS = {"Options": "preflight", "Preflight": "preflight", "Summary": "summary", "Status": "status"}
# What to do next where the first failure matches a regular expression, in English and Japanese: of any task, and of a
# host that cannot be reached.
HINTS = (
    (r"no vault secrets",
     "put the password of {vaults} into ~/.shiftmaster.vault-password, which ./shiftmaster reads; or "
     "--vault-password-file FILE or ANSIBLE_VAULT_PASSWORD_FILE",
     "{vaults} のパスワードを ~/.shiftmaster.vault-password に置いてください(./shiftmaster が読みます)。または "
     "--vault-password-file ファイル、ANSIBLE_VAULT_PASSWORD_FILE"),
    (r"Decryption failed",
     "{password} does not open {vaults}: put the right password there, from the copy of it",
     "{password} では {vaults} を復号できません。控えのパスワードに置き換えてください"),
    (r"which a run deploys that names none|The code alone cannot go back|-e shiftmaster_allow_contract=true",
     "one of the commands above", "上のコマンドのいずれか"),
    (SUDO, *CATALOG["hint.sudo"]),
    (r"holds the lock",
     "wait until that run has ended, then the same command again",
     "その実行が終わってから、同じコマンドを再実行してください"),
    (r"there is no tag, branch or commit ",
     "the same command with one that is there; git ls-remote --tags with the address of the repository lists the tags",
     "存在するものを指定して、同じコマンドを再実行してください。タグの一覧: git ls-remote --tags リポジトリ"),
    (r"there is no release ",
     "the same command with one that is there; ansible-playbook playbooks/status.yml lists the releases of the hosts",
     "存在するものを指定して、同じコマンドを再実行してください。"
     "ホストのリリース一覧: ansible-playbook playbooks/status.yml"),
    (r"nothing was deployed here yet",
     "deploy first: ansible-playbook deploy.yml", "先にデプロイしてください: ansible-playbook deploy.yml"),
    (r"No space left on device",
     "find the full disk, make room on it, then the same command: "
     "ansible {name} --become -m ansible.builtin.command -a 'df -h'",
     "満杯のディスクを調べ、空きを作ってから同じコマンドを再実行してください: "
     "ansible {name} --become -m ansible.builtin.command -a 'df -h'"),
    (r"nothing to roll back|no older release to go back to|was never live|is marked bad",
     "deploy what is to be live: ansible-playbook deploy.yml -e shiftmaster_version=VERSION",
     "稼働させるバージョンをデプロイしてください: ansible-playbook deploy.yml -e shiftmaster_version=バージョン"),
    (PYTHON, *CATALOG["hint.python"]),
    (r"Docker daemon|docker:? command not found|No such file or directory: b?'docker'",
     "start Docker, where the demo's container {name} runs, then `make demo`; for other hosts name their inventory "
     "(./shiftmaster -E NAME, or -i inventory/NAME)",
     "デモのコンテナー {name} には Docker が必要です。Docker を起動し、make demo を実行してください。"
     "他のホストはインベントリを指定してください"
     "(./shiftmaster -E 名前、または -i inventory/名前)"),
    (r"No such container|[Cc]ontainer .* is not running",
     "{name} is a container that is not running: `make demo` starts the demo; for other hosts name their inventory "
     "(./shiftmaster -E NAME, or -i inventory/NAME)",
     "コンテナー {name} が起動していません。デモは make demo で起動します。"
     "他のホストはインベントリを指定してください"
     "(./shiftmaster -E 名前、または -i inventory/名前)"),
)  # fmt: skip
HINTS_UNREACHABLE = (
    (r'Load key "(.+)": bad permissions',
     "other users can read the key, so ssh ignores it: chmod 600 '{0}'",
     "他のユーザーが読める鍵を ssh は使用しません: chmod 600 '{0}'"),
    (r"IDENTIFICATION HAS CHANGED",
     "the host's key has changed: a new installation, or an attack. Compare it on the console of {name}; then remove "
     "the old one: ssh-keygen -R {host}",
     "ホスト鍵が変わっています(再インストール、または攻撃)。{name} のコンソールで確認してから古い鍵を削除してください: "
     "ssh-keygen -R {host}"),
    (r"[Hh]ost key verification failed",
     "compare the key of the host and accept it: ssh {address} true", "ホスト鍵の確認と承認: ssh {address} true"),
    (r"Permission denied|[Tt]oo many authentication failures",
     "let the host accept your key: ssh-copy-id {address}", "公開鍵をホストに登録してください: ssh-copy-id {address}"),
    (r"Could not resolve hostname|Name or service not known",
     "correct the name of {name} in the inventory, or give it ansible_host",
     "インベントリの {name} のホスト名を修正するか、ansible_host を指定してください"),
    (r"", "check that {name} is running and its address: ssh {address} true",
     "{name} の稼働とアドレスの確認: ssh {address} true"),
)  # fmt: skip
TEXTS = Texts({
    "preflight": ("Preflight", "事前チェック"),
    "host": ("Host", "ホスト"),
    "certificates": ("Certificates", "証明書"),
    "database": ("Database", "データベース"),
    "cache": ("Cache and broker", "キャッシュとブローカー"),
    "application": ("Application hosts", "アプリケーションホスト"),
    "web": ("Web server", "Web サーバー"),
    "backup": ("Backups", "バックアップ"),
    "exporters": ("Exporters", "エクスポーター"),
    "monitoring": ("Monitoring", "監視"),
    "logging": ("Logging", "ログ基盤"),
    "restore": ("Restore", "リストア"),
    "health": ("Health checks", "ヘルスチェック"),
    "diagnosis": ("Diagnosis", "診断"),
    "checklist": ("Checklist", "チェックリスト"),
    "lock": ("Lock and plan", "ロックと計画"),
    "recover": ("Recover", "中断した処理の復旧"),
    "build": ("Build", "ビルド"),
    "migrate": ("Migrate", "マイグレーション"),
    "choose": ("Choose the release", "リリースの選択"),
    "cutover": ("Cutover", "切り替え"),
    "finish": ("Finish", "後処理"),
    "revert": ("Revert", "切り戻し"),
    "end": ("End of the run", "実行の終了"),
    "summary": ("Summary", "概要"),
    "status": ("Status", "状態"),
    "interrupted": ("INTERRUPTED", "中断"),
    "comma": (", ", "、"),
    "unchanged": ("nothing changed", "変更なし"),
    "change": ("1 change", "変更 1 件"),
    "changes": ("{n} changes", "変更 {n} 件"),
    "would_change": ("1 change to make", "変更予定 1 件"),
    "would_changes": ("{n} changes to make", "変更予定 {n} 件"),
    "new": ("new: {text}", "新規: {text}"),
    "seconds": ("{n} s", "{n} 秒"),
    "on": ("{hosts}: ", "{hosts}: "),
    "failed": ("FAILED", "失敗"),
    "unreachable": ("cannot be reached", "接続できません"),
    "hidden": (
        "the message is hidden, because it can contain secrets (no_log)",
        "秘密情報を含む可能性があるため、メッセージは表示されません(no_log)",
    ),
    "warnings": ("Warnings: {n}, in the log.", "警告: {n} 件(ログを参照)"),
    "more": ("{n} more lines or failures in the log", "残り {n} 件はログを参照"),
    "at": ("Task:      {text}", "タスク:     {text}"),
    "file": ("File:      {text}", "ファイル:   {text}"),
    "live": ("Live:      version {text}", "稼働中:     バージョン {text}"),
    "noticed": ("Failed requests: {text}", "失敗したリクエスト: {text}"),
    "of": ("{errors} of {requests}", "{requests} 件中 {errors} 件"),
    "never": ("0 by this run, the new release received no traffic", "この実行によるものは 0 件(切り替え前)"),
    "log": ("Log:       {text}", "ログ:       {text}"),
    "next": ("Next:      correct the cause and run the same command again",
             "次の操作:   原因を修正し、同じコマンドを再実行してください"),
    "hint": ("Next:      {text}", "次の操作:   {text}"),
    "diagnose": ("Diagnose:  {text}", "調査:       {text}"),
    "ended": ("This run did not finish. It stopped in: {text}", "実行は完了していません。中断した段階: {text}"),
    "again": ("Next:      run the same command again: it finishes or reverts what was begun",
              "次の操作:   同じコマンドを再実行してください。途中の処理を完了するか元に戻します"),
    "found": ("Result:    {text}", "判定:       {text}"),
})  # fmt: skip


def phase_of(role: str, stem: str) -> str | None:
    """The phase of a task of a role, by the name of its task file without its ending."""
    if role == "release" and stem in RELEASE_FILES:
        return RELEASE_FILES[stem]
    return ROLES.get(role)


def phase_of_play(name: str) -> str:
    """The phase of a play's tasks that belong to no role: that of its roles where it is named so, else its name."""
    return PLAYS.get(name) or next((key for key in ROLES.values() if TEXTS[key][0] == name), name)
