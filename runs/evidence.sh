#!/usr/bin/env bash
# Does the curriculum help under noisy labels? Ten seeds of each order, schedule and kind of clusters, under five kinds
# of Train labels, for arousal and valence. Ends with the tables of benchmarks/evidence.py.
#
#   bash runs/evidence.sh CORPUS FEATURES [FOLDER]
#
# CORPUS has individual ratings (labels_detailed), FEATURES is a folder of .mat files, FOLDER takes the outputs (default:
# evidence). A stopped run continues with the same command.
#
# Per attribute and kind of labels 10 DeepEmoClusters and 210 regressors: about 10 minutes on 2 CPU cores for the 278
# Train utterances of EmoDB with 384 features, 30 with IS13's 6,373; two or five hours in all.
set -euo pipefail
PROGRAM=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
CORPUS=$(realpath "$1")
FEATURES=$(realpath "$2")
FOLDER=${3:-evidence}

mkdir -p "$FOLDER"
cd "$FOLDER"
export PYTHONPATH="$PROGRAM" DEEPMI_CORPUS="$CORPUS"

"$PYTHON" "$PROGRAM/norm_para.py" --features "$FEATURES"
for labels in "--label-noise 0.3" "" "--train-labels single-rater" "--label-noise 0.5" "--label-noise 0.1"; do
  for attribute in Act Val; do
    # shellcheck disable=SC2086  # the label flags are several words
    "$PYTHON" -m tools.compare_curricula -emo $attribute -nc 10 -batch 64 -ep 70 --seeds 10 --features "$FEATURES" \
      --ssl-epochs 20 --unlabeled-size 0 --clusters head kmeans --restarts 20 --rate-decay paper late $labels \
      --orders deepmi deepmi-balanced random none selftaught prediction ridge ${JOBS:+--jobs $JOBS}
  done
done
"$PYTHON" -m benchmarks.evidence results
