"""`calibrate` on trained models of both tasks, and `predict --threshold` with what it wrote."""

import pytest
from PIL import Image

from zeroshot_d2.commands import calibrate, predict
from zeroshot_d2.storage import read_json


def words_of(cfg, system):
    return ["--config-file", f"demo/{system}.yaml", "--weights", cfg.MODEL.WEIGHTS]


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(tmp_path / "photos" / "photo.png")
    return tmp_path / "photos"


def given_photos(photo, tmp_path):
    """The words of `predict` on the photos, with what `calibrate` has written."""
    file = tmp_path / "out" / "thresholds.json"
    return ["--input", str(photo), "--output", str(tmp_path / "p"), "--threshold", str(file)]


def test_segmentation(trained_cfg, tmp_path, photo, capsys):
    model = words_of(trained_cfg(), "alignzeg")
    words = [*model, "--dataset", "demo_world_val", "--num-images", "6", "--output", str(tmp_path / "out")]
    assert calibrate.main([*words, "--accuracy", "1"]) == 0
    assert "demo_world_val, 6 images" in capsys.readouterr().out
    content = read_json(tmp_path / "out" / "thresholds.json")
    assert (content["system"], content["num_images"], content["accuracy"]) == ("AlignZeg", 6, 1)
    assert len(content["curve"]["accuracy"]) == len(content["curve"]["threshold"]) == 100
    with Image.open(tmp_path / "out" / "thresholds.png") as picture:
        assert picture.width > 800
    with pytest.raises(ValueError, match="lower --accuracy"):
        calibrate.main([*words, "--accuracy", "100.5"])
    given = given_photos(photo, tmp_path)
    assert predict.main([*model, *given]) == 0
    assert read_json(tmp_path / "p" / "vocabulary.json")[-1]["name"] == "other"


def test_labels(trained_cfg, trained_epsilon_cfg, tmp_path, photo, capsys):
    model = words_of(trained_epsilon_cfg(), "epsilon")
    out = ["--output", str(tmp_path / "out")]
    words = [*model, "--dataset", "demo_world_multilabel_test", "--num-images", "40", "--min-images", "3", *out]
    assert calibrate.main(words) == 0
    assert "classes have their own (at least 3 positive images)" in capsys.readouterr().out
    content = read_json(tmp_path / "out" / "thresholds.json")
    assert content["of_class"] and content["F1_with_own_thresholds"] >= content["F1"] - 1e-9
    given = given_photos(photo, tmp_path)
    assert predict.main([*model, *given]) == 0
    least = content["of_class"]
    for entry in read_json(tmp_path / "p" / "photo.json")["classes"]:
        assert entry["score"] >= least.get(entry["name"], content["threshold"])
    with pytest.raises(ValueError, match="a segmentation has one for all classes"):
        predict.main([*words_of(trained_cfg(), "alignzeg"), *given])


def test_data_sets_that_do_not_fit(trained_cfg, tmp_path):
    model = [*words_of(trained_cfg(), "alignzeg"), "--output", str(tmp_path)]
    with pytest.raises(ValueError, match="has labels of another kind"):
        calibrate.main([*model, "--dataset", "demo_world_multilabel_test"])
    with pytest.raises(ValueError, match="the model was trained on it"):
        calibrate.main([*model, "--dataset", trained_cfg().DATASETS.TRAIN[0]])
