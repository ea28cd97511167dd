#!/usr/bin/env bash
# The whole chain on a small corpus of synthetic voices: `make demo`. Everything it makes is below $DEMO.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
DEMO=${DEMO:-demo}
EPOCHS=15 BATCH=64 CLUSTERS=10

step() { printf '\n== %s  [%d s since the start]\n' "$*" $SECONDS; }
folders=(--corpus "$DEMO/corpus" --norm-dir "$DEMO/NormTerm" --cache-dir "$DEMO/feature_cache")

step "demo corpus: synthetic voices with openSMILE features"
"$PYTHON" -m tools.make_demo_corpus "$DEMO/corpus"
step "stage 0: norm terms"
"$PYTHON" norm_para.py --corpus "$DEMO/corpus" --norm-dir "$DEMO/NormTerm"
for attribute in Act Val; do
  step "stage 1, $attribute: DeepEmoCluster, $EPOCHS epochs"
  "$PYTHON" training_DeepEmoCluster.py -ep $EPOCHS -batch $BATCH -emo $attribute -nc $CLUSTERS "${folders[@]}" \
    --unlabeled "$DEMO/corpus/Unlabeled" --model-dir "$DEMO/Models"
  step "stage 2, $attribute: DeepMI"
  "$PYTHON" extract_DeepMI.py -ep $EPOCHS -batch $BATCH -emo $attribute -nc $CLUSTERS "${folders[@]}" \
    --model-dir "$DEMO/Models" --metric-dir "$DEMO/curriculum_metric"
  step "stage 3, $attribute: curriculum, 70 epochs"
  "$PYTHON" training_Curriculum.py -ep 70 -batch $BATCH -emo $attribute -nc $CLUSTERS "${folders[@]}" \
    --model-dir "$DEMO/Models" --metric-dir "$DEMO/curriculum_metric" | tail -n 4
  step "stage 4, $attribute: test"
  "$PYTHON" testing_Curriculum.py -ep 70 -batch $BATCH -emo $attribute "${folders[@]}" \
    --model-dir "$DEMO/Models" --results-dir "$DEMO/results" | tee "$DEMO/test_$attribute.txt"
done

step "done"
grep -h '(CCC)' "$DEMO"/test_*.txt
find "$DEMO" -maxdepth 2 -type f \( -path '*/Models/*' -o -path '*/curriculum_metric/*' -o -path '*/results/*' \
  -o -path '*/NormTerm/*' \) | sort
