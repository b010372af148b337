#!/bin/bash
# Certificates as a hospital gets them: root, intermediate and leaf; and the ways in which they arrive broken.
set -euo pipefail
umask 077
curve=(-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc)
names=subjectAltName=DNS:shift.test,DNS:*.shift.test

openssl req -x509 "${curve[@]}" -days 30 -subj '/CN=Root' -keyout root.key -out root.crt 2>/dev/null
openssl req -x509 "${curve[@]}" -days 30 -subj '/CN=Other root' -keyout other.key -out other.crt 2>/dev/null
openssl req -x509 "${curve[@]}" -days 30 -subj '/CN=Intermediate' -CA root.crt -CAkey root.key -keyout inter.key -out inter.crt 2>/dev/null

leaf() { # name, options of openssl
  local name=$1; shift
  openssl req -x509 "${curve[@]}" -subj '/CN=shift.test' -CA inter.crt -CAkey inter.key -addext basicConstraints=critical,CA:FALSE \
    -keyout "$name.key" -out "$name.leaf" "$@" 2>/dev/null
}

leaf good -days 20 -addext "$names"
cat good.leaf inter.crt >good.crt
leaf renewed -days 25 -addext "$names"
cat renewed.leaf inter.crt >renewed.crt
cat good.leaf >no-intermediate.crt
cat good.leaf root.crt inter.crt >disordered.crt
leaf other-name -days 20 -addext subjectAltName=DNS:shift.example,DNS:*.other.test
cat other-name.leaf inter.crt >other-name.crt
# -not_before and -not_after came with OpenSSL 3.4; `ca` has had them always.
mkdir -p ca && : >ca/index && echo 01 >ca/serial
printf '[ca]\ndefault_ca=d\n[d]\ndatabase=ca/index\nserial=ca/serial\nnew_certs_dir=ca\ndefault_md=sha256\npolicy=p\nx509_extensions=e\n[p]\ncommonName=supplied\n[e]\n%s\n' "$names" >ca/conf
openssl req "${curve[@]}" -new -subj '/CN=shift.test' -keyout expired.key -out expired.csr 2>/dev/null
openssl ca -batch -config ca/conf -in expired.csr -cert inter.crt -keyfile inter.key -startdate 20200101000000Z -enddate 20210101000000Z \
  -notext -out expired.leaf 2>/dev/null
cat expired.leaf inter.crt >expired.crt
openssl pkey -in good.key -aes256 -passout pass:x -out passphrase.key
