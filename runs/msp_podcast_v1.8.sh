#!/usr/bin/env bash
# The paper's experiment: all stages for arousal, dominance and valence on MSP-Podcast v1.8, with the paper's parameters.
#
#   export DEEPMI_CORPUS=/data/MSP-PODCAST-Publish-1.8 DEEPMI_UNLABELED=/data/Unlabeled_SpeechDataSet
#   bash runs/msp_podcast_v1.8.sh [FOLDER]        all outputs go to FOLDER (default: msp_podcast_v1.8)
#
# Nobody has run this script yet: the corpus is licensed, and the authors of this program do not have it. The times are
# computed from the rates in benchmarks/RESULTS.md, for 2 CPU cores of an AMD EPYC: per attribute 5 hours for stage 1
# (90 s per epoch, 200 epochs), 5 minutes for stage 3, less than a minute for each of the other stages: 15 to 16 hours
# in all. A killed run goes on where it stopped when the script is started again.
# If the corpus has no openSMILE features yet, extract them first (docs/features.md): 1 hour per 100 hours of audio.
#
# Published Test1 CCC, by the original program: Act .626, Dom .553, Val .304. This program differs from the original on
# purpose (docs/differences.md), so expect other figures.
set -euo pipefail
PROGRAM=$(cd "$(dirname "$0")/.." && pwd)
PYTHON=${PYTHON:-python3}
DEEPMI_CORPUS=$(realpath "$DEEPMI_CORPUS")
DEEPMI_UNLABELED=$(realpath "$DEEPMI_UNLABELED")
FOLDER=${1:-msp_podcast_v1.8}

mkdir -p "$FOLDER"
cd "$FOLDER"
export DEEPMI_CORPUS DEEPMI_UNLABELED

"$PYTHON" "$PROGRAM/norm_para.py"
for attribute in Act Dom Val; do
  "$PYTHON" "$PROGRAM/training_DeepEmoCluster.py" -ep 200 -batch 512 -emo $attribute -nc 50 --unlabeled-size 90000
  "$PYTHON" "$PROGRAM/extract_DeepMI.py" -ep 200 -batch 512 -emo $attribute -nc 50
  "$PYTHON" "$PROGRAM/training_Curriculum.py" -ep 70 -batch 512 -emo $attribute -nc 50
  "$PYTHON" "$PROGRAM/testing_Curriculum.py" -ep 70 -batch 512 -emo $attribute
done
