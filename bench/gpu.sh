#!/usr/bin/env bash
# GlaS at 128x128 on a GPU that is free for minutes at a time: throughput once, then the recommended model, the paper's VE
# model, U-Net and regression, trained and scored.
#
#     bench/gpu.sh FOLDER [SECONDS [options of bench.table]]
#
# Every call ends within about SECONDS (default 480), prints its table last and goes on where the one before stopped, as
# long as runs/ is still there. FOLDER gets speed.txt, glas128.{csv,md,png}, log.txt, and the recommended model's weights.
# Prepare the data before, where the archive is: data.prepare with cfg/glas.yaml and with cfg/glas_recommended.yaml.
# PYTHON names the interpreter, SPEED the options of bench.speed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:?usage: bench/gpu.sh FOLDER [SECONDS [options of bench.table]]}
limit=${2:-480}
[[ $limit =~ ^[0-9]+$ ]] || { echo "error: SECONDS: $limit is not a whole number" >&2; exit 2; }
shift "$(($# < 2 ? $# : 2))"
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

run=glas128-recommended-0
case " $* " in *" --small "*) run=glas128_small-recommended-0 ;;
*)
    for root in prepared/glas128 prepared/glas_small; do
        [ -d "$root" ] || { echo "error: $root is missing; see the first lines of bench/gpu.sh" >&2; exit 2; }
    done ;;
esac

if [ ! -s "$folder/speed.txt" ]; then
    read -ra speed <<<"${SPEED:---size 128 --draws 64 --rounds 5 --compile}"
    if timeout "$((limit / 2 + 1))" "$python" -m bench.speed --config cfg/glas_recommended.yaml "${speed[@]}" \
        >"$folder/speed.part" 2>"$folder/speed.err"; then
        mv "$folder/speed.part" "$folder/speed.txt"
    else
        echo "bench.speed did not end well: $(tail -n 1 "$folder/speed.err")"
    fi
fi
cat "$folder"/speed.txt "$folder"/speed.part 2>/dev/null || true

left=$((limit - SECONDS))
status=0
"$python" -m bench.table --protocol glas128 --output "$folder/glas128" --seconds "$((left > 0 ? left : 0))" \
    --only recommended "recommended direct mean" "VE paper" U-Net regression "$@" >"$folder/table.txt" 2>"$folder/table.err" \
    || status=$?

best=$(ls -d "runs/$run"/*/checkpoints/best.pt 2>/dev/null | tail -n 1 || true)
if [ -n "$best" ]; then
    "$python" -m utils.export --run "$(dirname "$(dirname "$best")")" --output "$folder/glas.safetensors" \
        --licence "GlaS challenge data: research only" >>"$folder/log.txt" 2>&1 || echo "no weights: see $folder/log.txt"
fi
[ "$status" -eq 0 ] || tail -n 1 "$folder/table.err"
cat "$folder/table.txt"
exit "$status"
