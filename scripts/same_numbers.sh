#!/usr/bin/env bash
# Do two commits give the same numbers? Runs one config in both on this machine and compares every metric, bit for bit.
#
#   scripts/same_numbers.sh HEAD~1 HEAD freeze=full model.weights=null trainer.epochs=2
#
# Uses the python on the PATH (or $PYTHON), with the code of each commit before whatever is installed.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: $0 COMMIT COMMIT [OVERRIDES]" >&2; exit 2; }
first=$1 second=$2; shift 2
root=$(git rev-parse --show-toplevel)
work=$(mktemp -d)
trap 'for n in 1 2; do git -C "$root" worktree remove --force "$work/$n" 2>/dev/null || true; done; rm -rf "$work"' EXIT
n=0
for commit in "$first" "$second"; do
  n=$((n + 1))
  git -C "$root" worktree add --quiet --detach "$work/$n" "$commit"
  (cd "$work/$n" && PYTHONPATH="$work/$n/src" "${PYTHON:-python}" -m fourfold logger=none trainer.progress=false "$@" >"$work/$n.log" 2>&1) ||
    { cat "$work/$n.log" >&2; exit 1; }
  "${PYTHON:-python}" - "$work/$n" >"$work/$n.txt" <<'PY'
import json, sys
from pathlib import Path

(folder,) = (Path(sys.argv[1]) / "outputs/runs").iterdir()
for line in (folder / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    row.pop("seconds")
    print(json.dumps(row, sort_keys=True))
print(json.dumps(json.loads((folder / "result.json").read_text())["metrics"], sort_keys=True))
PY
done
if cmp -s "$work/1.txt" "$work/2.txt"; then
  echo "same numbers: $first and $second agree in $(wc -l <"$work/1.txt") rows, bit for bit"
else
  echo "different numbers:"; diff "$work/1.txt" "$work/2.txt"; exit 1
fi
