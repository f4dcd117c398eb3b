"""Which models the web page shows, and with which keys."""

import argparse

import pytest

from zeroshot_d2.commands.web import main, model_configs


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The runs of both demos, as far as the command looks at them; the current folder is empty."""
    for name in ("alignzeg", "epsilon"):
        (tmp_path / name).mkdir()
        system = {"alignzeg": "AlignZeg", "epsilon": "Epsilon"}[name]
        (tmp_path / name / "config.yaml").write_text(f"MODEL: {{META_ARCHITECTURE: {system}}}\n")
        (tmp_path / name / "model_final.pth").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    return tmp_path


def arguments(*models: object, config_file=None, weights=None, opts=()) -> argparse.Namespace:
    return argparse.Namespace(model=list(models), config_file=config_file, weights=weights, opts=list(opts))


def test_a_tab_for_each_model(folders):
    models = [folders / "alignzeg", folders / "epsilon", folders / "alignzeg"]
    config = {"config_file": "demo/epsilon.yaml", "weights": str(folders / "epsilon/model_final.pth")}
    titles = list(model_configs(arguments(*models, **config)))
    assert titles == ["Segmentation (AlignZeg)", "Tags (Epsilon)", "Segmentation (AlignZeg, 2)", "Tags (Epsilon, 2)"]


def test_keys_go_to_the_models_that_have_them(folders):
    opts = ["MODEL.ALIGNZEG.PBC.GAMMA", "0.7", "SEED", "5", "TEST.TOP_K", "(1,)"]
    found = model_configs(arguments(folders / "alignzeg", folders / "epsilon", opts=opts))
    masks, tags = found.values()
    assert masks.MODEL.ALIGNZEG.PBC.GAMMA == 0.7 and tags.TEST.TOP_K == (1,) and masks.SEED == tags.SEED == 5
    with pytest.raises(ValueError, match="no model on the page has a key MODEL.EPSILON.NUM_GROUPS"):
        model_configs(arguments(folders / "alignzeg", opts=["MODEL.EPSILON.NUM_GROUPS", "3"]))


def test_without_arguments_the_demos_models_are_shown(folders, capsys):
    with pytest.raises(FileNotFoundError, match="there is no model to show .*run `make demo`, or name --model FOLDER"):
        model_configs(arguments())
    assert "no tab for AlignZeg: output/demo/model_final.pth does not exist" in capsys.readouterr().out
    (folders / "empty/output/demo").mkdir(parents=True)
    (folders / "empty/output/demo/model_final.pth").write_text("")
    assert list(model_configs(arguments())) == ["Segmentation (AlignZeg)"]
    assert "no tab for Epsilon" in capsys.readouterr().out


def test_what_does_not_fit(folders, capsys):
    with pytest.raises(ValueError, match="--weights a.pth needs its --config-file"):
        model_configs(arguments(weights="a.pth"))
    pytest.importorskip("gradio", reason="the extra 'web' is not installed")
    with pytest.raises(FileNotFoundError, match="absent"):
        main(["--model", "absent"])
    with pytest.raises(SystemExit):
        main(["--max-pixels", "0"])
    assert "must be a positive whole number, got '0'" in capsys.readouterr().err
