#!/usr/bin/env bash
# A throw-away Slurm of one node on 127.0.0.1, for trying launchers and array jobs. Needs root, no cgroups, no systemd.
#
#   scripts/one_node_slurm.sh [SECONDS]     prints two lines once it takes jobs, to be exported:
#                                             SLURM_CONF=...   its configuration
#                                             SACCT=...        a folder that goes first in PATH
#                                           ends with all its jobs after SECONDS (3600), on Ctrl-C or SIGTERM
#
# The folder holds a `sacct`: there is no accounting here, and submitit asks sacct what became of a job.
set -euo pipefail
seconds=${1:-3600}

for tool in slurmctld slurmd munged; do
  PATH=$PATH:/usr/sbin command -v $tool >/dev/null || {
    echo "$tool is missing (Debian and Ubuntu: apt install slurm-wlm slurmctld slurmd munge)" >&2
    exit 1
  }
done
[ "$(id -u)" = 0 ] || { echo "a Slurm of one's own needs root: slurmd becomes the user of each job" >&2; exit 1; }
PATH=$PATH:/usr/sbin:/sbin

work=$(mktemp -d /tmp/fourfold-slurm.XXXXXX)
chmod 755 "$work"
daemons=()
sleeping=
stop() {
  trap - EXIT
  kill "$sleeping" 2>/dev/null || true
  scancel --user=root 2>/dev/null || true # slurmd stays as long as a job of its does
  for _ in $(seq 100); do [ "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.2; done
  kill "${daemons[@]}" 2>/dev/null || true
  wait "${daemons[@]}" 2>/dev/null || true
  rm -rf "$work"
}
trap stop EXIT
trap 'exit 0' INT TERM HUP

# munge, which signs what the daemons tell each other, with a key and a socket of its own
install -d -o munge -g munge -m 755 "$work/munge"
head -c 1024 /dev/urandom >"$work/munge/key"
chown munge:munge "$work/munge/key"
chmod 400 "$work/munge/key"
setpriv --reuid munge --regid munge --clear-groups -- munged --foreground --key-file="$work/munge/key" --socket="$work/munge/socket" \
  --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" 2>/dev/null &
daemons+=($!)

name=$(hostname -s)
port=$((20000 + RANDOM % 10000))
mkdir -p "$work/controller" "$work/node" "$work/bin"
cat >"$work/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$name(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire: a job that was requeued begins that many seconds later
AuthInfo=socket=$work/munge/socket,cred_expire=5
CryptoType=crypto/munge
SlurmctldPort=$port
SlurmdPort=$((port + 1))
StateSaveLocation=$work/controller
SlurmdSpoolDir=$work/node
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,batch_sched_delay=0
MinJobAge=3600
KillWait=5
# as many CPUs as jobs shall run at once, whatever the machine has
NodeName=$name NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=$name Default=YES MaxTime=INFINITE State=UP
CONF
cat >"$work/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
# As much of sacct as submitit asks for: sacct -o JobID,State,NodeList --parsable2 -j JOB [-j JOB]...
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
  if [ "$1" = -j ]; then
    scontrol --oneliner show job "$2" 2>/dev/null | awk '{
      delete at
      for (i = 1; i <= NF; i++) { key = $i; sub(/=.*/, "", key); value = $i; sub(/[^=]*=/, "", value); if (!(key in at)) at[key] = value }
      id = ("ArrayJobId" in at) ? at["ArrayJobId"] "_" (at["ArrayTaskId"] ~ /[-,%]/ ? "[" at["ArrayTaskId"] "]" : at["ArrayTaskId"]) : at["JobId"]
      print id "|" at["JobState"] "|" at["NodeList"]
    }'
    shift
  fi
  shift
done
SACCT
chmod +x "$work/bin/sacct"
export SLURM_CONF=$work/slurm.conf

for _ in $(seq 50); do [ -S "$work/munge/socket" ] && break; sleep 0.1; done
slurmctld -D >/dev/null 2>&1 &
daemons+=($!)
for _ in $(seq 100); do scontrol ping 2>/dev/null | grep -q "is UP" && break; sleep 0.1; done
slurmd -D -N "$name" >/dev/null 2>&1 &
daemons+=($!)
for _ in $(seq 100); do sinfo --noheader --states=idle 2>/dev/null | grep -q idle && break; sleep 0.2; done
sinfo --noheader --states=idle 2>/dev/null | grep -q idle || { cat "$work/slurmctld.log" "$work/slurmd.log" "$work/munge/log" >&2; exit 1; }
echo "SLURM_CONF=$SLURM_CONF"
echo "SACCT=$work/bin"

ends=$((SECONDS + seconds))
while [ $SECONDS -lt $ends ]; do # a signal ends `wait` at once; it would have to wait for a plain `sleep`
  sleep $((ends - SECONDS)) >/dev/null 2>&1 &
  sleeping=$!
  wait $sleeping || kill $sleeping 2>/dev/null || true
done
