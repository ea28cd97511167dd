#!/usr/bin/env bash
# All stages for arousal and valence, on a small corpus of synthetic voices: `make demo`.
#
#   bash runs/demo.sh [FOLDER]        all outputs go to FOLDER (default: demo)
#
# 2 to 3 minutes on 2 CPU cores: 40 s for the corpus, 25 to 35 s per attribute for stage 1, 10 to 20 s for stage 3,
# 1 to 3 s for each of the other stages.
# Expected Test1 CCC: Act about .7 to .85, Val about .35 to .6. Both vary by processor and number of threads. The voices
# follow their labels by construction, so the figures show that the program works, not how well it recognises people.
set -euo pipefail
PROGRAM=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
FOLDER=${1:-demo}

mkdir -p "$FOLDER"
cd "$FOLDER"
export PYTHONPATH="$PROGRAM" DEEPMI_CORPUS="$PWD/corpus" DEEPMI_UNLABELED="$PWD/corpus/Unlabeled"
step() { printf '\n== %s  [%d s since the start]\n' "$*" $SECONDS; }

echo "All file names below are relative to $PWD."
step "demo corpus: synthetic voices with openSMILE features"
"$PYTHON" -m tools.make_demo_corpus "$DEEPMI_CORPUS"
step "stage 0: normalisation statistics"
"$PYTHON" "$PROGRAM/norm_para.py"
for attribute in Act Val; do
  step "stage 1, $attribute: DeepEmoCluster, 15 epochs"
  "$PYTHON" "$PROGRAM/training_DeepEmoCluster.py" -ep 15 -batch 64 -emo $attribute -nc 10
  step "stage 2, $attribute: DeepMI"
  "$PYTHON" "$PROGRAM/extract_DeepMI.py" -ep 15 -batch 64 -emo $attribute -nc 10 --clusters kmeans --restarts 20
  step "stage 3, $attribute: curriculum, 70 epochs"
  "$PYTHON" "$PROGRAM/training_Curriculum.py" -ep 70 -batch 64 -emo $attribute -nc 10 --rate-decay late | tail -n 4
  step "stage 4, $attribute: test"
  "$PYTHON" "$PROGRAM/testing_Curriculum.py" -ep 70 -batch 64 -emo $attribute | tee test_$attribute.txt
done

step "done: these files are in $PWD"
grep -h '(CCC)' test_*.txt
find NormTerm Models curriculum_metric results -type f | sort
