#!/usr/bin/env bash
# Carries packages and models to a GPU machine that has no network and takes files of at most 60 MiB. tests/test_kit.py
# rehearses it on a CPU.
#
#   benchmarks/kit.sh packages site freeze.txt vllm==0.32.0   # here; freeze.txt is `pip freeze` of the GPU machine
#   benchmarks/kit.sh pack kit site models/smollm2            # here
#   benchmarks/kit.sh join kit kit-whole                      # there: checks every part, then unpacks
#   PYTHONPATH=kit-whole/site python benchmarks/gpu.py --minutes 13 --model kit-whole/smollm2
#
# PART_SIZE is the size of a part (60M), PYTHON the interpreter whose pip is used (python).
set -euo pipefail

# Installs into SITE what the packages need and FREEZE lacks, and strips symbols that no import needs.
packages() { # SITE FREEZE PACKAGE...
  local site=$1 freeze=$2 pip="${PYTHON:-python} -m pip --disable-pip-version-check" missing
  shift 2
  missing=$($pip install --dry-run --ignore-installed "$@" | sed -n 's/^Would install //p' | tr ' ' '\n' | lacking "$freeze")
  echo "packages:" $missing
  [ -z "$missing" ] || $pip install --quiet --no-deps --target "$site" $missing
  find "$site" -name '*.so*' -exec strip --strip-unneeded {} + 2> /dev/null || true
}

# Reads lines of NAME-VERSION and prints NAME==VERSION where FREEZE does not have the name, in PyPI's normal form.
lacking() { # FREEZE
  awk '
    function normal(name) { gsub(/[-_.]+/, "-", name); return tolower(name) }
    FILENAME != "-" { sub(/[=@ ].*/, ""); present[normal($0)]; next }
    { name = $0; sub(/-[^-]*$/, "", name); if (!(normal(name) in present)) print name "==" substr($0, length(name) + 2) }
  ' "$1" -
}

# Writes each folder as KIT/NAME.000, .001, ... and the checksums of all parts.
pack() { # KIT FOLDER...
  local kit=$1 folder name
  shift
  mkdir -p "$kit"
  for folder; do
    name=$(basename "$folder")
    rm -f "$kit/$name".[0-9][0-9][0-9]
    tar -C "$(dirname "$folder")" -cz "$name" | split -b "${PART_SIZE:-60M}" -d -a 3 - "$kit/$name."
  done
  (cd "$kit" && sha256sum -- *.[0-9][0-9][0-9] | tee SHA256SUMS)
}

# Unpacks every folder of the kit, or names the parts that are missing or damaged and unpacks nothing.
join() { # KIT FOLDER
  local first
  (cd "$1" && sha256sum --check --quiet SHA256SUMS) || { echo "copy these parts again" >&2; exit 1; }
  mkdir -p "$2"
  for first in "$1"/*.000; do
    cat "${first%.000}".[0-9][0-9][0-9] | tar -C "$2" -xz
  done
}

case ${1-} in
  packages | pack | join | lacking) "$@" ;;
  *) sed -n '2,/^set/{/^#/p}' "$0" >&2; exit 2 ;;
esac
