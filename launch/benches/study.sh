#!/usr/bin/env bash
# Trains as much of a study as a GPU can in a few minutes, and scores it.
#
#   launch/benches/study.sh CORPUS TASKS FOLDER [further flags of launch.sweep]
#
# Run from the repository root. Runs of one shape train packed, with batches of
# 128; at the time limit the rest is saved where it stands. The machine's cores
# then score what is trained. FOLDER gets log.txt and, in files of at most 15 MB
# each, the records of every run and the checkpoints of those not yet scored:
#
#   cat FOLDER/runs.tar.gz.* | tar xz -C ROOT
#   python -m launch.worker --root=ROOT --roles=score     scores the rest
#
# With ROOT set to that folder, the same command goes on with the rest.
# Environment: TRAIN and SCORE, seconds for each (360 and 120); SCALE of the
# config (small); CONFIG; BATCH; ROOT, the sweep's folder; PARTS, the number of
# files that may come back (7); SCORERS, processes that score (all cores).
# SCALE=smoke BATCH=4 and the flag --devices=cpu try it on a CPU.
set -uo pipefail
corpus=${1:?expected a prepared corpus}
tasks=${2:?expected a folder of tasks}
out=${3:?expected a folder for the results}
shift 3
root=${ROOT:-$(mktemp -d)/study}
mkdir -p "$out"
log=$out/log.txt

echo "study: training for at most ${TRAIN:-360} s" | tee -a "$log"
timeout --signal=TERM --kill-after=20 "${TRAIN:-360}" \
  python3 -m launch.sweep --config="${CONFIG:-configs/study.py}" \
  --scale="${SCALE:-small}" --root="$root" --roles=train --noreport \
  --config.data.root="$corpus" --config.eval.tasks="$tasks" \
  --config.train.batch="${BATCH:-128}" "$@" 2>&1 | tee -a "$log"
echo "study: $(ls "$root"/*/TRAINED 2>/dev/null | wc -l) runs trained" |
  tee -a "$log"

# Each worker claims a run of its own; none uses the GPU.
for _ in $(seq "${SCORERS:-$(nproc)}"); do
  JAX_PLATFORMS=cpu timeout --signal=TERM --kill-after=20 "${SCORE:-120}" \
    python3 -m launch.worker --root="$root" --roles=score >>"$log" 2>&1 &
done
wait
echo "study: $(ls "$root"/*/DONE 2>/dev/null | wc -l) runs scored" |
  tee -a "$log"

# Records first: they are small, and what cannot be had again.
cd "$root" || exit 1
list=$(mktemp)
find . -type f -not -path '*/checkpoints/*' -not -name LEASE |
  LC_ALL=C sort >"$list"
for run in */; do
  if [ -e "$run/TRAINED" ] && [ ! -e "$run/DONE" ]; then
    last=$(ls "$run/checkpoints" | grep -E '^[0-9]+$' | sort -n | tail -1)
    find "./${run}checkpoints" -maxdepth 1 -type f -name "*$last*"
    find "./${run}checkpoints/$last" -type f
  fi
done >>"$list"
tar cz -T "$list" | split -b 15M -d - "$out/runs.tar.gz."
# What does not fit: the last files, so the archive ends early but is readable.
ls "$out"/runs.tar.gz.* | tail -n +$((${PARTS:-7} + 1)) | while read -r part; do
  echo "study: $part is beyond the limit and left out" | tee -a "$log"
  rm -f "$part"
done
ls -l "$out"
