#!/bin/sh
# Every file of the host with its kind, mode, owner, size, content and target; what runs by itself is left out.
set -eu
find / -xdev \( -path /proc -o -path /sys -o -path /run -o -path /tmp -o -path /var/log -o -path /var/lib/apt \
  -o -path /var/cache -o -path /var/lib/systemd -o -path /root \) -prune \
  -o \( ! -type f -printf '%p %y %m %u %g %l\n' -o -type f -printf '%p %y %m %u %g %s\n' \) \
  | grep -v -e '/__pycache__' -e '^/etc/ld.so.cache' | sort
find /etc /usr/local -xdev -type f ! -name ld.so.cache -exec sha256sum {} + | sort -k 2
