"""The command that draws figures: which there are, for which system, and where they go."""

import json

import pytest
from PIL import Image

from zeroshot_d2.commands.figures import find_figure, listing, main
from zeroshot_d2.demo_world import SPLIT
from zeroshot_d2.system import find_system


@pytest.mark.parametrize(("words", "status"), [([], 0), (["-h"], 0), (["--help"], 0), (["--output", "a.png"], 2)])
def test_without_a_name_the_figures_are_listed(words, status, capsys):
    assert main(words) == status
    printed = capsys.readouterr().out
    assert "NAME --help" in printed and listing() in printed


def test_each_system_has_its_figures_and_those_of_its_task():
    lines = listing().splitlines()
    first, second = lines.index("AlignZeg:"), lines.index("Epsilon:")
    names = [line.split()[0] for line in lines[first + 1 : second]]
    assert set(names) >= {"per-class-iou", "qualitative", "tsne", "pbc", "gamma-sweep"}
    assert {"top10", "sweep", "attention"} <= {line.split()[0] for line in lines[second + 1 :]}


def test_a_figure_of_another_system_is_refused():
    assert find_figure("tsne", None) is find_figure("tsne", find_system("AlignZeg"))
    with pytest.raises(ValueError, match="the system 'Epsilon' has no figure 'tsne'; choose one of attention, sweep, top10"):
        find_figure("tsne", find_system("Epsilon"))
    with pytest.raises(ValueError, match="there is no figure 'tnse'; choose one of .*tsne"):
        find_figure("tnse", None)
    with pytest.raises(ValueError, match="the system 'Epsilon' has no figure 'tsne'"):
        main(["tsne", "--config-file", "demo/epsilon.yaml", "--output", "a.png"])


def test_a_figure_is_written_where_it_was_asked_for(tmp_path, capsys):
    results = {"demo_world_val": {"IoU": dict.fromkeys(SPLIT.names, 50.0)}}
    (tmp_path / "results.json").write_text(json.dumps(results))
    words = ["per-class-iou", "--results", str(tmp_path / "results.json"), "--output", str(tmp_path / "new")]
    assert main(words) == 0
    assert capsys.readouterr().out == f"written: {tmp_path}/new/per-class-iou.png\n"
    with Image.open(tmp_path / "new/per-class-iou.png") as image:
        assert image.width > 500


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tsne", "--output", "a.png"], "which model? Give --model FOLDER"),
        (["tsne"], "the following arguments are required: --output"),
        (["tsne", "--output", "a.png", "--compare-modle", "x"], "unrecognized arguments: --compare-modle x"),
    ],
)
def test_arguments_that_do_not_fit(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and message in capsys.readouterr().err
