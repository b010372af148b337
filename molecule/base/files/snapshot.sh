#!/bin/sh
# Everything on a host that a run could change, except what Ansible itself needs: the package index and its temporary files.
find /etc /home /opt /root /srv /usr /var -xdev \
  \( -path /root/.ansible -o -path /var/cache -o -path /var/lib/apt -o -path /var/lib/systemd -o -path /var/log -o -path /root/before \
     -o -path /root/after -o -name '*.pyc' \) -prune -o ! -path /root ! -path /root/compared -printf '%p %y %m %u %g %s %T@ %l\n' | sort
dpkg-query -W -f '${Package} ${Version} ${db:Status-Status}\n'
systemctl list-units --type service,timer,socket --state active --plain --no-legend | awk '{ print $1 }' | grep -v '^user' | sort
cat /proc/sys/net/ipv4/tcp_max_syn_backlog
nft list ruleset 2>/dev/null || true # not installed yet
