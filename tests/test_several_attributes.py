"""All attributes in one go, the table per utterance and the challenge's file."""

import json

import numpy as np
import pandas as pd
import pytest

from deepmi import metric

ALL = ("-emo", "Act", "Dom", "Val")


def test_stages_1_to_4_run_for_several_attributes_and_end_with_one_table(prepared):
    for number in (1, 2, 3, 4):
        code, out, err = prepared.stage(number, "-emo", "Act", "Val")
        assert code == 0, err
        assert [line.split("|")[1].strip() for line in out.splitlines()[-2:]] == ["Act", "Val"]
    assert {file.name for file in prepared.folder.glob("curriculum_metric/*")} == {
        f"DeepMI_5clusters@_{attribute}.json" for attribute in ("Act", "Val")
    }


def test_several_attributes_do_not_share_a_file(trained):
    for number, flag in ((2, "--table"), (3, "--metric"), (4, "--model")):
        trained.refuses(trained.stage(number, "-emo", "Act", "Val", flag, "x.csv"), flag, "one attribute")


def test_the_challenge_file_has_its_columns_and_labels_within_the_scale(trained):
    for number in (1, 2, 3):
        assert trained.stage(number, "-emo", "Act", "Dom")[0] == 0
    code, _, err = trained.stage(4, *ALL, "--challenge", "challenge.csv")
    assert code == 0, err
    table = pd.read_csv("challenge.csv")
    assert list(table) == ["FileName", "EmoAct", "EmoVal", "EmoDom"]
    predictions = pd.read_csv("results/SimpleEmoRegressor_DeepMI@_Val_Test1.csv")["prediction"]
    assert table["EmoVal"].to_numpy() == pytest.approx(predictions.clip(1, 7).to_numpy())
    trained.refuses(trained.stage(4, "--challenge", "challenge.csv"), "--challenge", "-emo Act Dom Val")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("clusters", [(), ("--clusters", "kmeans", "--restarts", 3)])
def test_the_table_explains_each_value_of_the_metric(trained, ending, clusters):
    code, _, err = trained.stage(2, *clusters, "--table", f"table.{ending}")
    assert code == 0, err
    table = pd.read_csv("table.csv") if ending == "csv" else pd.read_parquet("table.parquet")
    values = json.loads(trained.metric.read_text())
    assert dict(zip(table["FileName"], table["DeepMI"])) == values
    parts = (table["part_of_clusters"] + table["part_of_prediction"]) / 2  # alpha is .5 for valence
    assert parts.to_numpy() == pytest.approx(table["DeepMI"].to_numpy(), abs=1e-5)
    assert table["residual"].to_numpy() == pytest.approx((table["prediction"] - table["label"]).to_numpy(), abs=1e-5)
    assert (table["level"] == metric.emotion_levels(table["label"])).all()
    by_rank = table.sort_values("rank")
    assert by_rank["DeepMI"].is_monotonic_decreasing and by_rank["bin"].is_monotonic_increasing
    assert sorted(table["rank"]) == list(range(1, len(table) + 1))
    if not clusters:
        joint = pd.crosstab(table["cluster"], table["level"], normalize=True)
        independent = pd.DataFrame(np.outer(joint.sum(axis=1), joint.sum(axis=0)), joint.index, joint.columns)
        cells = zip(table["cluster"], table["level"], table["part_of_clusters"])
        for x, y, found in cells:
            p = joint.loc[x, y]
            assert found == pytest.approx(p * np.log(p / independent.loc[x, y]), abs=1e-5)


def test_a_table_of_another_kind_is_refused(trained):
    trained.refuses(trained.stage(2, "--table", "table.xlsx"), "table.xlsx", ".csv or .parquet")


def test_the_table_has_speakers_and_ratings_of_the_corpus(trained):
    labels = pd.read_csv(trained.labels, index_col="FileName")
    first, second = labels.index[labels["Split_Set"] == "Train"][:2]
    rows = [f"{first},w1,3", f"{first},w2,5", f"{second},w1,2"]
    detailed = trained.labels.with_name("labels_detailed.csv")
    detailed.write_text("\n".join(["FileName,WorkerID,EmoVal", *rows]) + "\n")
    trained.runs(2, "--table", "new/table.csv")
    table = pd.read_csv("new/table.csv", index_col="FileName")
    assert table["SpkrID"].to_dict() == labels.loc[table.index, "SpkrID"].to_dict()
    assert table.loc[[first, second], "raters"].tolist() == [2, 1]
    assert table.loc[first, "rater_sd"] == 1 and np.isnan(table.loc[second, "rater_sd"])
    trained.refuses(trained.stage(2, "--table", trained.labels), "one of the inputs")


def test_stage_4_has_the_figures_of_each_gender_and_speaker(trained):
    def halve(table):
        table["Gender"] = np.where(np.arange(len(table)) % 2, "Female", "Male")
        return table

    halve(pd.read_csv(trained.labels)).to_csv(trained.labels, index=False)
    out, _ = trained.runs(4)
    result, predictions = trained.result()
    labels = pd.read_csv(trained.labels, index_col="FileName").loc[predictions["FileName"]]
    women = predictions[(labels["Gender"] == "Female").to_numpy()]
    error = (women["prediction"] - women["label"]).abs().mean()
    assert result["by_gender"]["Female"]["mae"] == pytest.approx(error) and "by gender" in out
    assert set(result["by_speaker"]) == set(labels["SpkrID"]) - {"Unknown"}
