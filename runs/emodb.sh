#!/usr/bin/env bash
# All stages for arousal and valence on Berlin EmoDB: 535 acted German sentences, with human ratings on a scale of 0 to 100.
#
#   bash runs/emodb.sh RATINGS.csv CLIPS [FOLDER]        all outputs go to FOLDER (default: emodb)
#
# RATINGS.csv has one line per clip, for instance 03a01Fa;62.2567;66.7317;3;H below the header
# file;arousal;valence;speaker;emotion. CLIPS is the folder of the recordings. There is no unlabeled set here, so the
# clusters come from the Train split alone.
#
# 1 to 2 minutes on 2 CPU cores of an AMD EPYC: 18 s for the features, 10 to 20 s for each training.
# Test1 CCC there: Act .918 (95 % interval .664 to 1.000), Val .564 (-1.000 to 1.000). Both vary by processor and number of
# threads. Only 2 of the 10 speakers are in Test1, so the intervals are wide.
set -euo pipefail
PROGRAM=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
RATINGS=$(realpath "$1")
CLIPS=$(realpath "$2")
FOLDER=${3:-emodb}

mkdir -p "$FOLDER"
cd "$FOLDER"
export PYTHONPATH="$PROGRAM" DEEPMI_CORPUS=corpora/emodb

"$PYTHON" -m tools.prepare_corpus csv "$RATINGS" --audio "$CLIPS" --out corpora/emodb --norm-dir NormTerm \
  --file-column file --arousal-column arousal --valence-column valence --speaker-column speaker --class-column emotion \
  --split-by-speaker .6 .2 .2 --label-scale 0 100
for attribute in Act Val; do
  "$PYTHON" "$PROGRAM/training_DeepEmoCluster.py" -ep 20 -batch 64 -emo $attribute -nc 10 --unlabeled-size 0
  "$PYTHON" "$PROGRAM/extract_DeepMI.py" -ep 20 -batch 64 -emo $attribute -nc 10 --clusters kmeans --restarts 20
  "$PYTHON" "$PROGRAM/training_Curriculum.py" -ep 70 -batch 64 -emo $attribute -nc 10 --rate-decay late \
    --order deepmi-balanced
  "$PYTHON" "$PROGRAM/testing_Curriculum.py" -ep 70 -batch 64 -emo $attribute --order deepmi-balanced
done
