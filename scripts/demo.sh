#!/usr/bin/env bash
# All demos: scripts/demo.sh PYTHON [options of "python -m zeroshot_d2 demo" and KEY VALUE pairs, for each of them]
#
# So small a network gains little from a second core. AlignZeg's two worlds therefore train side by side, each on half of
# the cores, unless OMP_NUM_THREADS says otherwise. What the near world prints goes to a file until it is done.
set -euo pipefail

python=$1
shift
log=output/demo/near.log
half=$((($(getconf _NPROCESSORS_ONLN) + 1) / 2))

alignzeg=(env "OMP_NUM_THREADS=${OMP_NUM_THREADS:-$half}" "$python" -m zeroshot_d2 demo --system AlignZeg "$@")

mkdir -p "$(dirname "$log")"
echo "AlignZeg in the near world runs beside what follows; see $log"
"${alignzeg[@]}" --config-file demo_near/alignzeg_overlap.yaml > "$log" 2>&1 &
near=$!
trap '{ kill "$near" && wait "$near"; } 2> /dev/null || true' EXIT # Ctrl-C does not reach what runs in the background

"${alignzeg[@]}"
if ! wait "$near"; then
    tail -n 30 "$log"
    echo "AlignZeg in the near world failed; its whole output is in $log" >&2
    exit 1
fi
tail -n 4 "$log"

"$python" -m zeroshot_d2 demo --system Epsilon "$@"
