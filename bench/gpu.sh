#!/usr/bin/env bash
# GlaS at 128x128 on a GPU that is lent for minutes at a time: throughput once, then the recommended model, the paper's VE
# model, U-Net and regression, trained and scored.
#
#     bench/gpu.sh FOLDER [SECONDS [options of bench.table]]
#
# Every call ends within about SECONDS (default 480), prints its table last and goes on where the one before stopped, as
# long as runs/ is still there. FOLDER gets speed.txt, glas128.{csv,md,png}, log.txt, and the recommended model's weights.
# The prepared data of cfg/glas.yaml have to be in place. PYTHON names the interpreter, SPEED the options of bench.speed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: bench/gpu.sh FOLDER [SECONDS [options of bench.table]]}
limit=${2:-480}
shift "$(($# < 2 ? $# : 2))"
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

if [ ! -s "$folder/speed.txt" ]; then
    read -ra speed <<<"${SPEED:---size 128 --draws 64 --rounds 5 --compile}"
    "$python" -m bench.speed --config cfg/glas_recommended.yaml "${speed[@]}" >"$folder/speed.part" 2>>"$folder/log.txt"
    mv "$folder/speed.part" "$folder/speed.txt"
fi
cat "$folder/speed.txt"

status=0
"$python" -m bench.table --protocol glas128 --output "$folder/glas128" --seconds "$((limit - SECONDS))" \
    --only "VP recommended" "VP direct mean" "VE paper" U-Net regression "$@" >"$folder/table.txt" 2>>"$folder/log.txt" \
    || status=$?

best=$(ls -d runs/glas128*-VP_recommended-*/*/checkpoints/best.pt 2>/dev/null | tail -n 1 || true)
if [ -n "$best" ]; then
    "$python" -m utils.export --run "$(dirname "$(dirname "$best")")" --output "$folder/glas.safetensors" \
        --licence "GlaS challenge data: research only" >>"$folder/log.txt" 2>&1
fi
[ "$status" -eq 0 ] || tail -n 1 "$folder/log.txt"
cat "$folder/table.txt"
exit "$status"
