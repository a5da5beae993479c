#!/usr/bin/env bash
# A throw-away PostgreSQL on 127.0.0.1, for trying a study on a database server. Installs nothing, needs no account.
#
#   scripts/postgres.sh [SECONDS]      prints its URL once it answers; ends after SECONDS (3600), on Ctrl-C or SIGTERM
#   kill -USR1 PID                     restarts the server as a crash would: every connection dies
set -euo pipefail
seconds=${1:-3600}

bin=$(dirname "$(command -v initdb || ls -d /usr/lib/postgresql/*/bin/initdb 2>/dev/null | tail -n 1)")
[ -x "$bin/initdb" ] || { echo "PostgreSQL's initdb is missing (Debian and Ubuntu: apt install postgresql)" >&2; exit 1; }
bin=$(dirname "$(realpath "$bin/initdb")") # Debian links initdb from elsewhere, but not pg_ctl

work=$(mktemp -d /tmp/fourfold-postgres.XXXXXX) # short, and open to all: a socket's path has 107 characters at most
run() { "$@"; }
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
  chown nobody "$work"
  run() { setpriv --reuid nobody --regid "$(id -g nobody)" --clear-groups -- "$@"; }
fi
cd "$work"

stop() {
  trap - EXIT
  kill "$sleeping" 2>/dev/null || true
  run "$bin/pg_ctl" -D "$work/data" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
restart() { run "$bin/pg_ctl" -D "$work/data" -l "$work/log" -m immediate -w restart >/dev/null; }
sleeping=
trap stop EXIT
trap 'exit 0' INT TERM HUP

run "$bin/initdb" -D "$work/data" -A trust -U fourfold -E UTF8 --no-sync >/dev/null
for attempt in 1 2 3 4 5; do # the port may be taken
  port=$((20000 + RANDOM % 10000))
  run "$bin/pg_ctl" -D "$work/data" -l "$work/log" -w -o "-p $port -k $work -c listen_addresses=127.0.0.1" start >/dev/null 2>&1 && break
  [ "$attempt" -lt 5 ] || { cat "$work/log" >&2; exit 1; }
done
trap restart USR1
echo "postgresql://fourfold@127.0.0.1:$port/postgres"

ends=$((SECONDS + seconds))
while [ $SECONDS -lt $ends ]; do # a signal ends `wait` at once; it would have to wait for a plain `sleep`
  sleep $((ends - SECONDS)) >/dev/null 2>&1 &
  sleeping=$!
  wait $sleeping || kill $sleeping 2>/dev/null || true
done
