"""The figure commands: what they gather, by hand and beside the evaluation; and the commands of docs/pictures.md."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from PIL import Image

from alignzeg_d2.figures import choose_classes, embed, matched_proposals, separation
from alignzeg_d2.gamma_sweep import DEFAULT_GAMMAS
from alignzeg_d2.pictures.corrections import Corrections
from alignzeg_d2.predictor import AlignZegPredictor
from zeroshot_d2.__main__ import main
from zeroshot_d2.class_split import ClassSplit
from zeroshot_d2.commands import figures
from zeroshot_d2.demo_world import SPLIT, register_demo_world
from zeroshot_d2.segmentation.evaluation import ZeroShotSemSegEvaluator
from zeroshot_d2.segmentation.figures import read_truth, shows_unseen
from zeroshot_d2.system import find_system

ROOT = Path(__file__).parents[2]
DATASET, NUM_IMAGES = "figures_val", 24
ABC = ClassSplit(("a", "b", "c"), unseen=("b",))
IGNORED = 65535


@pytest.fixture(scope="module", autouse=True)
def dataset() -> Iterator[None]:
    register_demo_world(DATASET, seed=61, num_images=NUM_IMAGES)
    yield
    DatasetCatalog.remove(DATASET)
    MetadataCatalog.remove(DATASET)


Draw = Callable[..., Figure]


@pytest.fixture
def draw(alignzeg_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Draw:
    """``draw("tsne", "--seed", "1")``: the figure that the command would write for the short training."""

    def run(figure: str, *arguments: str, model: bool = True) -> Figure:
        drawn: list[Figure] = []
        monkeypatch.setattr(figures, "save_figure", lambda figure, path: drawn.append(figure))
        given = ["--model", str(alignzeg_checkpoint.parent)] if model else []
        assert figures.main([figure, *given, "--dataset", DATASET, "--output", str(tmp_path), *arguments]) == 0
        return drawn[0]

    return run


@pytest.fixture
def predictor(trained_cfg: Callable) -> AlignZegPredictor:
    return AlignZegPredictor(trained_cfg("DATASETS.TEST", f"('{DATASET}',)"))


# ---- by hand ----


def test_one_proposal_per_class_by_its_mask():
    truth = np.zeros((4, 8), dtype=np.int64)
    truth[:, 4:] = 2
    truth[0] = IGNORED
    masks = torch.full((4, 2, 4), -9.0)
    masks[1, :, 2:], masks[3, :, :2] = 9.0, 9.0  # the right halves
    masks[0, :, :1] = 9.0  # a part of the left one
    indices, classes = matched_proposals(masks, truth, 3)
    assert dict(zip(classes.tolist(), indices.tolist(), strict=True)) == {0: 3, 2: 1}


def test_a_proposal_left_with_a_class_that_it_does_not_cover_is_dropped():
    truth = np.zeros((4, 8), dtype=np.int64)
    truth[:, 4:] = 2
    masks = torch.full((2, 4, 8), -9.0)
    masks[0, :, :4], masks[1, :, :3] = 9.0, 9.0  # nothing on the right
    indices, classes = matched_proposals(masks, truth, 3)
    assert (indices.tolist(), classes.tolist()) == ([0], [0])


def test_no_proposal_matches_an_image_without_labels():
    indices, classes = matched_proposals(torch.zeros(2, 4, 4), np.full((8, 8), IGNORED), 3)
    assert len(indices) == len(classes) == 0


def test_classes_are_those_that_every_model_has():
    counts = [np.array([9, 9, 9]), np.array([3, 3, 2])]
    assert choose_classes(counts, ABC, 5, np.random.default_rng(0)) == [0, 1]
    assert len(choose_classes(counts[:1], ABC, 1, np.random.default_rng(0))) == 2
    with pytest.raises(ValueError, match=r"two classes with at least 3 .* found 1: .*--num-images"):
        choose_classes([np.array([9, 2, 0])], ABC, 5, np.random.default_rng(0))


def test_tsne_keeps_clusters_apart_and_is_seeded():
    generator = np.random.default_rng(0)
    classes = np.repeat([0, 1], 10)
    features = np.eye(8)[classes] + 0.05 * generator.normal(size=(20, 8))
    positions = embed(features.astype(np.float32), 3)
    assert positions.shape == (20, 2)
    centres = [positions[classes == k].mean(axis=0) for k in (0, 1)]
    nearest = np.argmin([np.linalg.norm(positions - centre, axis=1) for centre in centres], axis=0)
    assert nearest.tolist() == classes.tolist()
    np.testing.assert_array_equal(positions, embed(features.astype(np.float32), 3))
    assert separation(features, classes) > 0.9 > 0.2 > separation(features, generator.permutation(classes))


def test_tsne_of_few_points():
    features = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    assert np.isfinite(embed(features, 0)).all()
    with pytest.raises(ValueError, match="at least four points, got 3"):
        embed(features[:3], 0)


def test_corrections_are_counted_and_the_heaviest_are_kept():
    image, truth = np.zeros((4, 4, 3), dtype=np.uint8), np.ones((4, 4), dtype=np.int64)
    before = torch.tensor([[5.0, 1, 0, 0], [0.0, 1, 3, 0], [5.0, 1, 0, 0], [5.0, 1, 0, 0]])
    after = before.clone()
    after[:3, [0, 2]] = 0.0  # to class 1 all
    masks = torch.full((4, 4, 4), 9.0)
    masks[2] = -9.0  # claims nothing
    proposals = {
        "class_logits": before,
        "corrected_logits": after,
        "class_indicator": torch.ones(4),
        "mask_logits": masks,
    }
    corrections = Corrections(ABC, background_in_softmax=True)
    corrections.add(image, truth, proposals)
    assert (corrections.changed, corrections.num_mended, corrections.num_spoiled) == (2, 2, 0)
    assert [c.proposal.index for c in corrections.mended] == [0]  # one per image, the heaviest
    corrections.add(image, 2 * truth, proposals)
    assert (corrections.changed, corrections.num_mended, corrections.num_spoiled) == (4, 2, 1)
    assert [c.proposal.index for c in corrections.spoiled] == [1]
    assert "4 proposals" in corrections.text() and "2 became right, 1 became wrong, and 1 were" in corrections.text()


# ---- with a model ----


def test_iou_is_that_of_the_evaluation(draw: Draw, predictor: AlignZegPredictor):
    evaluator = ZeroShotSemSegEvaluator(DATASET, distributed=False)
    records = DatasetCatalog.get(DATASET)
    for record, found in zip(records, predictor([r["file_name"] for r in records]), strict=True):
        evaluator.process([record], [{"sem_seg_labels": torch.from_numpy(found.labels)}])
    expected = evaluator.report()["IoU"]
    for classes, names in (("unseen", SPLIT.unseen), ("all", (*SPLIT.unseen, *SPLIT.seen))):
        axes = draw("per-class-iou", "--classes", classes).axes[0]
        widths = [patch.get_width() for patch in axes.patches]
        assert widths == pytest.approx([expected[name] or 0.0 for name in names], abs=0.5)  # a tie may fall either way
        assert [text.get_text().removeprefix("★ ") for text in axes.get_yticklabels()] == list(names)


def test_iou_from_files(draw: Draw, tmp_path: Path):
    for number, file in enumerate(("ours.json", "other.json")):
        ious = {name: 10.0 * number + k for k, name in enumerate(SPLIT.names)}
        (tmp_path / file).write_text(json.dumps({"elsewhere": {}, DATASET: {"IoU": ious}}))
    files = ["--results", str(tmp_path / "ours.json"), "--compare-results", str(tmp_path / "other.json")]
    axes = draw("per-class-iou", *files, "--compare-name", "Other", model=False).axes[0]
    k = SPLIT.names.index(SPLIT.unseen[0])
    widths = [patch.get_width() for patch in axes.patches]
    assert (widths[0], widths[len(SPLIT.unseen)]) == (10.0 + k, k)  # the other one is first, as the paper's baseline
    assert [line.get_label().partition(" ")[0] for line in axes.lines] == ["Other", "results"]


def test_iou_files_that_do_not_fit(draw: Draw, tmp_path: Path):
    (tmp_path / "results.json").write_text(json.dumps({"elsewhere": {"IoU": {}}}))
    given = ["--results", str(tmp_path / "results.json")]
    with pytest.raises(ValueError, match=f"no IoU of classes on '{DATASET}', it has results on elsewhere"):
        draw("per-class-iou", *given, model=False)
    with pytest.raises(ValueError, match="no data set of .* is registered: elsewhere"):
        figures.main(["per-class-iou", *given, "--output", str(tmp_path)])
    with pytest.raises(FileNotFoundError, match=r"absent\.json does not exist"):
        draw("per-class-iou", "--results", "absent.json", model=False)
    with pytest.raises(ValueError, match="needs a model .*, or --results FILE"):
        draw("per-class-iou", model=False)


def test_the_sweep_has_every_threshold_and_marks_the_one_in_use(draw: Draw):
    axes = draw("gamma-sweep", "--num-images", "4", "MODEL.ALIGNZEG.PBC.GAMMA", "0.35").axes[0]
    curves = {line.get_label(): line for line in axes.lines}
    assert list(curves["hIoU"].get_xdata()) == sorted(DEFAULT_GAMMAS)
    assert any("0.35" in text.get_text() for text in axes.texts)
    register_demo_world("figures_zs3", seed=61, num_images=2, vocabulary="unseen")
    with pytest.raises(ValueError, match="GZS3; 'figures_zs3' is of ZS3"):
        draw("gamma-sweep", "--dataset", "figures_zs3")


def test_examples_show_unseen_classes_beside_the_model_without_pbc(draw: Draw, predictor: AlignZegPredictor):
    figure = draw("qualitative", "--num-images", "2")
    assert [axes.get_title() for axes in figure.axes[:4]] == ["Image", "Ground truth", "Without PBC", "AlignZeg"]
    records = DatasetCatalog.get(DATASET)
    wanted = [r for r in records if shows_unseen(read_truth(r), SPLIT)][:2]
    for record, row in zip(wanted, (0, 4), strict=True):
        shown = figure.axes[row].get_images()[0].get_array()
        np.testing.assert_array_equal(shown, np.asarray(Image.open(record["file_name"])))
        right = (predictor(record["file_name"]).labels == read_truth(record)).mean()
        shown = re.fullmatch(r"(\d+) % of labelled pixels right", figure.axes[row + 3].get_xlabel())
        assert int(shown[1]) == pytest.approx(100 * right, abs=0.6)


def test_two_models_side_by_side(draw: Draw, alignzeg_checkpoint: Path):
    other = ["--compare-weights", str(alignzeg_checkpoint), "--compare-name", "Short"]
    figure = draw("qualitative", "--num-images", "1", *other)
    assert [axes.get_title() for axes in figure.axes] == ["Image", "Ground truth", "Short", "AlignZeg"]
    with pytest.raises(ValueError, match="--compare-config-file needs --compare-weights"):
        draw("qualitative", "--compare-config-file", "demo/alignzeg.yaml")
    with pytest.raises(ValueError, match="--name and --compare-name are both 'Short'"):
        draw("qualitative", *other, "--name", "Short")


def test_tsne_shows_the_same_classes_of_both_models(draw: Draw, alignzeg_checkpoint: Path):
    same = ["--compare-weights", str(alignzeg_checkpoint), "--num-classes", "3", "--prototypes"]
    figure = draw("tsne", *same)
    left, right = figure.axes
    assert (left.get_title(), right.get_title()) == ("Baseline", "AlignZeg")
    assert left.get_xlabel() == right.get_xlabel() != ""
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[-1] == "text prototype"
    assert 2 <= len(names) - 1 <= 6
    assert {name.removeprefix("★ ") for name in names[:-1]} <= set(SPLIT.names)
    with pytest.raises(ValueError, match="--num-classes must be between 1 and 7, got 8"):
        draw("tsne", "--num-classes", "8")
    with pytest.raises(ValueError, match="two classes"):
        draw("tsne", "--num-images", "1")


def test_pbc_needs_a_model_with_an_indicator(draw: Draw):
    figure = draw("pbc", "MODEL.ALIGNZEG.PBC.GAMMA", "0.05")
    assert figure.axes[1].get_title() == "before PBC"
    with pytest.raises(ValueError, match="became right or wrong at gamma 1: .*lower"):
        draw("pbc", "MODEL.ALIGNZEG.PBC.GAMMA", "1.0")


def test_other_data_sets_are_refused(draw: Draw, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(ValueError, match="'demo_world_multilabel_test' has labels of another kind"):
        draw("tsne", "--dataset", "demo_world_multilabel_test")
    with pytest.raises(SystemExit):
        draw("per-class-iou", "--num-images", "0")
    assert "--num-images: must be a positive whole number, got '0'" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the system 'AlignZeg' has no figure 'attention'; choose one of"):
        draw("attention")


# ---- docs/pictures.md ----

PAGE = (ROOT / "docs/pictures.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = re.findall(r"^python -m zeroshot_d2 (.*)$", PAGE, re.M)
OURS = [command for command in COMMANDS if "output/demo" in command and "epsilon" not in command]
OURS += [command for command in COMMANDS if command.startswith("train ")]
# The page's training is a long one; after 40 iterations no class indicator exceeds the config's threshold.
SHORT = [
    *("SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("DATASETS.TRAIN", "('short_alignzeg_train',)", "DATASETS.TEST", "()", "OUTPUT_DIR", "output/documented"),
]
LOW_THRESHOLD = ["MODEL.ALIGNZEG.PBC.GAMMA", "0.05"]


def test_the_page_draws_every_figure():
    drawn = {command.split()[1] for command in OURS if command.startswith("figures ")}
    assert drawn == set(figures.figures_of(find_system("AlignZeg")))


@pytest.mark.slow
@pytest.mark.parametrize("command", OURS)
def test_commands_of_the_page(command: str, user_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(user_folder)
    words = shlex.split(command)
    if words[0] == "train":
        assert main([*words, *SHORT]) == 0
        assert Path("output/documented/model_final.pth").is_file()
        return
    if words[0] == "bias-report":
        assert main(words) == 0
        return
    compared = Path("output/demo/pbc_mrpe")  # what the page trains
    if not compared.is_dir():
        compared.mkdir()
        for file in ("model_final.pth", "config.yaml"):
            (compared / file).symlink_to(Path("output/demo", file).absolute())
    path = Path(words[words.index("--output") + 1])
    assert main([*words, *LOW_THRESHOLD] if words[1] == "pbc" else words) == 0
    assert path.stat().st_size > 5000
    if path.suffix == ".png":
        assert Image.open(path).width > 500


@pytest.mark.slow
def test_python_of_the_page(user_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(user_folder)
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, {})
    assert Image.open("classes.png").width > 500
