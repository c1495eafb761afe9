#!/usr/bin/env bash
# How fast do the served models answer, by concurrency, over gRPC and HTTP? Measured by Triton's own perf_analyzer.
set -euo pipefail

readonly ALL_MODELS=(medimageinsight_image medimageinsight_text medimageinsight image_encoder text_encoder)

usage() {
  cat <<'END'
Usage: perf/perf_analyzer.sh [OPTIONS] [MODEL...]

Measure MODELs with perf_analyzer, one run per protocol and concurrency. Without a MODEL, these five:
medimageinsight_image, medimageinsight_text, medimageinsight, image_encoder, text_encoder.

  --url URL            server to measure, as grpc://HOST:PORT or http://HOST:PORT; once for each protocol wanted.
                       If it caches text vectors, as `medimage serve` does by default, texts are answered from the
                       cache, because the same ones come again: start it with --text-cache-mb 0.
                       Default: a server of its own, without that cache, on free loopback ports, over both protocols
  --repository DIR     what the own server serves, after `medimage export`   [default: model_repository]
  --concurrency LIST   requests in flight, separated by commas               [default: 1,2,4,8,16,32]
  --seconds N          least time of each run; slow models take longer       [default: 10]
  --image-size PIXELS  side of the square PNG files                          [default: 512]
  --output DIR         folder for perf_analyzer.csv and perf_analyzer.md     [default: perf/results]
  --runs DIR           folder for all that perf_analyzer prints and writes   [default: build/perf_analyzer/runs]
  --help

The perf_analyzer on PATH is used; where there is none, version 2.51.0 is unpacked into build/perf_analyzer (x86-64
Linux, no root). Exit code 1 if a request failed or a measurement could not be made, 2 for bad use.
END
}

fail() {
  echo "Error: $1" >&2
  exit "${2:-1}"
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root tools="$root/build/perf_analyzer"
PATH="$root/.venv/bin:$PATH"
export PYTHONPATH="$root" # for perf.*

models=() urls=() summary=()
repository="$root/model_repository" output="$root/perf/results"
runs="$tools/runs"
concurrencies=1,2,4,8,16,32 seconds=10 image_size=512

while (($#)); do
  case $1 in
    --help) usage; exit 0 ;;
    --url | --repository | --concurrency | --seconds | --image-size | --output | --runs)
      (($# > 1)) || fail "$1 needs a value; see --help" 2
      case $1 in
        --url) urls+=("$2") summary=(--other-server) ;;
        --repository) repository=$(realpath -m "$2") ;;
        --concurrency) concurrencies=$2 ;;
        --seconds) seconds=$2 ;;
        --image-size) image_size=$2 ;;
        --output) output=$(realpath -m "$2") ;;
        --runs) runs=$(realpath -m "$2") ;;
      esac
      shift 2 ;;
    -*) fail "unknown option $1; see --help" 2 ;;
    *) models+=("$1"); shift ;;
  esac
done
((${#models[@]})) || models=("${ALL_MODELS[@]}")
for model in "${models[@]}"; do
  [[ " ${ALL_MODELS[*]} " == *" $model "* ]] || fail "unknown model $model; expected some of ${ALL_MODELS[*]}" 2
done
for url in "${urls[@]}"; do
  [[ $url =~ ^(grpc|http)://[^/]+:[0-9]+$ ]] || fail "--url $url: expected grpc://HOST:PORT or http://HOST:PORT" 2
done
[[ $concurrencies =~ ^[1-9][0-9]*(,[1-9][0-9]*)*$ ]] || fail "--concurrency $concurrencies: expected as in 1,2,4" 2
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "--seconds $seconds: expected a whole number from 1" 2
[[ $image_size =~ ^[1-9][0-9]*$ ]] || fail "--image-size $image_size: expected a whole number from 1" 2

# PyPI's perf-analyzer is an empty placeholder; the last wheel of tritonclient with the binary for glibc 2.36 is 2.51.0.
# It is unpacked and not installed, because it pins an old protobuf.
readonly WHEELS="\
tritonclient==2.51.0 --hash=sha256:c485bb0123bdf310f90bc8b03d3489b28df2ffed55b30c7eee0b795b48113d52
nvidia-cuda-runtime-cu12==12.6.77 --hash=sha256:a84d15d5e1da416dd4774cb42edf5e954a3e60cc945698dc1d5be02321c44dc8"
readonly LIBB64=libb64-0d=1.2-5+b1 # Debian 12's
readonly LIBB64_SHA256=b0e1d6fde8bdccc18c3884144aede064dc82464dd4777275fa80e74c05583e82

unpack_perf_analyzer() {
  local scratch=$tools/unpacking
  rm -rf "$scratch" && mkdir -p "$scratch"
  echo "getting perf_analyzer 2.51.0" >&2
  python3 -m pip download --quiet --quiet --disable-pip-version-check --dest "$scratch" --no-deps --only-binary=:all: \
    --platform manylinux1_x86_64 --platform manylinux2014_x86_64 \
    --require-hashes --requirement <(echo "$WHEELS") >&2
  for wheel in "$scratch"/*.whl; do
    python3 -m zipfile --extract "$wheel" "$scratch"
  done
  if ! ldconfig -p | grep -q 'libb64\.so\.0d'; then
    (cd "$scratch" && apt-get download --quiet "$LIBB64" >&2 && echo "$LIBB64_SHA256 $(echo libb64-0d_*.deb)" |
      sha256sum --check --quiet && dpkg --extract libb64-0d_*.deb .) ||
      fail "perf_analyzer needs libb64.so.0d, which apt-get could not download: run \`apt-get install libb64-0d\`"
  fi
  mkdir "$scratch/lib"
  find "$scratch" \( -name 'libcudart.so.12' -o -name 'libb64.so.*' \) -exec cp --target-directory "$scratch/lib" {} +
  install -D "$scratch/tritonclient-2.51.0.data/data/bin/perf_analyzer" "$scratch/bin/perf_analyzer"
  rm -rf "${tools:?}"/{bin,lib}
  mv "$scratch/lib" "$scratch/bin" "$tools" # bin last: it says that all is there
  rm -r "$scratch"
}

analyzer=(perf_analyzer)
if ! command -v perf_analyzer >/dev/null; then
  [[ -x $tools/bin/perf_analyzer ]] || unpack_perf_analyzer
  analyzer=(env LD_LIBRARY_PATH="$tools/lib" "$tools/bin/perf_analyzer") # its libraries are for it alone
fi

server=
stop_server() {
  if [[ $server ]]; then
    kill "$server" 2>/dev/null || true
    wait "$server" || true
  fi
}
trap stop_server EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# Without the cache of text vectors: perf_analyzer sends the same texts again and again.
start_server() {
  local ready=$runs/server.out
  : >"$ready" # else an earlier run's may be read before the background has emptied it
  echo "starting Triton over $repository" >&2
  medimage serve --repository "$repository" --text-cache-mb 0 --http-port 0 --grpc-port 0 --metrics-port 0 \
    --models medimageinsight --models medimageinsight_image --models medimageinsight_text \
    >"$ready" 2>"$runs/server.log" &
  server=$!
  until grep -q '^ready:' "$ready"; do
    kill -0 "$server" 2>/dev/null || fail "$(tail -n 1 "$runs/server.log") (log: $runs/server.log)"
    sleep 0.2
  done
  read -r -a urls < <(grep -o -E '(grpc|http)://[^ /]+' "$ready" | head -n 2 | xargs)
}

# Requests of a window, of which perf_analyzer takes three: as many as fill the time at the rate of the run before, and
# together twice those in flight, that what is sent first into an empty queue weighs less. 12 where requests take long.
window() { # CONCURRENCY REPORT_BEFORE
  awk -F, -v wanted="$1" -v seconds="$seconds" '
    NR == 1 { for (i = 1; i <= NF; i++) column[$i] = i }
    NR == 2 {
      rate = $column["Concurrency"] * 1e6 / $column["Avg latency"]
      n = rate * seconds
      if (n < 2 * wanted) n = 2 * wanted
      if (n < 12) n = 12
      print int((n + 2) / 3)
    }' "$2"
}

# The parts of the ensemble inside the public ones, of which perf_analyzer reports none by itself.
inner_parts() { # MODEL
  case $1 in
    medimageinsight | medimageinsight_text) echo --bls-composing-models=text_tokenizer,text_encoder ;;
  esac
}

# The three windows are averaged. Waiting for stable ones would not end in good time where a request takes seconds.
analyze() { # MODEL URL CONCURRENCY FOLDER OPTIONS...
  local model=$1 url=$2 concurrency=$3 folder=$4
  mkdir -p "$folder"
  local -a inner
  read -r -a inner < <(inner_parts "$model"; echo)
  # from within the folder, because reports of an ensemble's parts are named PART.FILE
  (cd "$folder" && "${analyzer[@]}" -m "$model" -u "${url#*://}" -i "${url%%:*}" --async \
    --input-data "$runs/$model/input.json" --concurrency-range "$concurrency" \
    --verbose-csv -f report.csv "${inner[@]}" "${@:5}" >printed.txt 2>&1) ||
    fail "perf_analyzer on $model, ${url%%:*}, concurrency $concurrency: $(tail -n 3 "$folder/printed.txt" | tr '\n' ' ')"
}

mkdir -p "$runs" "$output"
for model in "${ALL_MODELS[@]}"; do
  rm -rf "${runs:?}/$model" # of an earlier run
done
((${#urls[@]})) || start_server
for model in "${models[@]}"; do
  mkdir "$runs/$model"
  python3 -m perf.perf_analyzer_input "$model" --url "${urls[0]}" --image-size "$image_size" \
    --output "$runs/$model/input.json"
  for url in "${urls[@]}"; do
    folder=$runs/$model/${url%%:*}
    analyze "$model" "$url" 1 "$folder/first" --request-count 3 # not reported: warms up, and says how long one takes
    before=$folder/first
    for concurrency in ${concurrencies//,/ }; do
      requests=$(window "$concurrency" "$before/report.csv")
      echo "$model, ${url%%:*}, concurrency $concurrency: windows of $requests requests" >&2
      analyze "$model" "$url" "$concurrency" "$folder/$concurrency" --measurement-mode count_windows \
        --measurement-request-count "$requests" --stability-percentage 999
      before=$folder/$concurrency
    done
  done
done
python3 -m perf.perf_analyzer_summary "$runs" --output "$output" "${summary[@]}"
