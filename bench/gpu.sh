#!/usr/bin/env bash
# All that waits for a GPU, in stretches for one that is free for minutes at a time.
#
#     bench/gpu.sh STRETCH [FOLDER [SECONDS [options of bench.table]]]
#
#     tests     what is tested on GPUs only: FOLDER/gpu_tests.txt
#     speed     bench.speed: gpu_speed.txt
#     compile   the same with torch.compile, which needs a C++ compiler: gpu_compile.txt
#     table     GlaS at 128x128: the recommended model, the paper's VE model, U-Net and regression, trained and scored:
#               glas128.{csv,md,png}; the same command goes on where it stopped, as long as runs/ is still there
#     weights   of the recommended model as far as it is trained: glas.safetensors
#
# FOLDER is docs/results unless given. Every call ends within about SECONDS (default 540), prints what it has found last,
# and ends with 0 if the stretch is done, 1 if it is not, or failed; one that is done is printed again and not repeated.
# Prepare the data before, where the archive is: data.prepare with cfg/glas.yaml and with cfg/glas_recommended.yaml.
# PYTHON names the interpreter, SPEED the options of bench.speed.
set -euo pipefail
cd "$(dirname "$0")/.."
usage="usage: bench/gpu.sh tests|speed|compile|table|weights [FOLDER [SECONDS [options of bench.table]]]"
stretch=${1:-}
folder=${2:-docs/results}
limit=${3:-540}
case $stretch in tests | speed | compile | table | weights) ;; *) echo "$usage" >&2; exit 2 ;; esac
[[ $limit =~ ^[0-9]+$ ]] || { echo "error: SECONDS: $limit is not a whole number" >&2; exit 2; }
shift "$(($# < 3 ? $# : 3))"
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

# A command whose output is kept as FOLDER/$1 once it has ended well.
once() {
    local result="$folder/$1" status=0
    shift
    if [ ! -s "$result" ]; then
        timeout -k 30 "$limit" "$@" >"$result.part" 2>&1 || status=$?
        if [ "$status" -ne 0 ]; then
            cat "$result.part"
            echo "not done: $([ "$status" -eq 124 ] && echo "time is up after $limit s" || echo "exit code $status")"
            exit 1
        fi
        mv "$result.part" "$result"
    fi
    cat "$result"
}

case $stretch in
tests) once gpu_tests.txt "$python" -m pytest -q -rs -m gpu tests ;;
speed | compile)
    read -ra options <<<"${SPEED:---size 128 --draws 64 --rounds 5}"
    [ "$stretch" = speed ] || options+=(--compile)
    once "gpu_$stretch.txt" "$python" -m bench.speed --config cfg/glas_recommended.yaml "${options[@]}"
    ;;
table)
    [[ " $* " == *" --small "* ]] || for root in prepared/glas128 prepared/glas_small; do
        [ -d "$root" ] || { echo "error: $root is missing; see the first lines of bench/gpu.sh" >&2; exit 2; }
    done
    # A minute to save what is trained by then, and for the page.
    "$python" -m bench.table --protocol glas128 --output "$folder/glas128" --seconds "$((limit > 60 ? limit - 60 : 0))" \
        --only recommended "recommended direct mean" "VE paper" U-Net regression "$@" | tee "$folder/gpu_table.part"
    ! grep -q "time is up" "$folder/gpu_table.part" || exit 1
    ;;
weights)
    run=glas128-recommended-0
    [[ " $* " != *" --small "* ]] || run=glas128_small-recommended-0
    best=$(ls -d "runs/$run"/*/checkpoints/best.pt 2>/dev/null | tail -n 1 || true)
    [ -n "$best" ] || { echo "not done: runs/$run has no checkpoint yet; the stretch table makes it"; exit 1; }
    "$python" -m utils.export --run "$(dirname "$(dirname "$best")")" --output "$folder/glas.safetensors" \
        --licence "GlaS challenge data: research only"
    ;;
esac
