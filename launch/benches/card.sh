#!/usr/bin/env bash
# What a GPU that is lent for five minutes is asked, the most important first:
# training steps against the official trainer's (four minutes at most), RankMe,
# and whether the card's numbers are the CPU's.
#
#   launch/benches/card.sh FOLDER
#
# Run from the repository root. FOLDER gets each area's table and JSON; every
# row is there as soon as it is known. `python -m launch.bench card` measures
# whole sweeps, in another three minutes. AUDIORANK_DEVICES=gpu:1 tries all of
# it at toy size on a CPU.
set -uo pipefail
out=${1:?expected a folder for the results}
mkdir -p "$out"
end=$((SECONDS + 295))
for area in train rankme parity; do
  left=$((end - SECONDS))
  if [ "$left" -lt 10 ]; then
    echo "$area: left out, the time is over"
    continue
  fi
  timeout --kill-after=5 "$left" python3 -m launch.bench "$area" \
    --out="$out/$area.json" 2>"$out/$area.log" | tee "$out/$area.md"
done
