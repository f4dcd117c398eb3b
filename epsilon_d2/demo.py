"""The report of Epsilon on the demo world, evaluated on a seed that nothing was tuned on.

It draws ``labels.png`` (Fig. 4) and for the first example ``group_attention.png`` and ``global_attention.png`` (Fig. 1).
"""

from __future__ import annotations

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from epsilon_d2.pictures.attention import MODULES, attention_by_module, attention_figure, spoken_labels
from epsilon_d2.predictor import EpsilonPredictor
from zeroshot_d2.commands.demo import DemoReport, DemoRun
from zeroshot_d2.multilabel.evaluation import format_multilabel_table, table_of_results
from zeroshot_d2.multilabel.figures import example_records
from zeroshot_d2.multilabel.pictures import LabelledImage, top_labels_figure
from zeroshot_d2.pictures.command import predictions
from zeroshot_d2.pictures.report import Picture, Section, Table
from zeroshot_d2.pictures.style import save_figure
from zeroshot_d2.trainer import Results

TEST_SET = "demo_world_multilabel_held_out"
NUM_EXAMPLES = 8


class Demo:
    """See :class:`zeroshot_d2.commands.demo.Demo`."""

    CONFIG = "demo/epsilon.yaml"
    BASELINE = "demo/epsilon_ablation/backbone_only.yaml"
    OPTIONS = ("DATASETS.TEST", f"('{TEST_SET}',)")

    @staticmethod
    def report(run: DemoRun) -> DemoReport:
        run.results |= {f"{name} (backbone only)": numbers for name, numbers in run.baseline_results.items()}
        return DemoReport(
            "Epsilon on the demo world",
            _lead(run),
            _table(run.results),
            _EXPLANATIONS,
            [*_picture_sections(run), _next_section(run)],
            format_multilabel_table(run.results),
        )


_EXPLANATIONS = {
    "ZSL": "Labels are ranked among the unseen classes only.",
    "GZSL": "Labels are ranked among all classes, seen and unseen.",
    "image set": "All test images, or those that show at least one unseen class; the literature uses both.",
    "mAP": "Mean over the classes of the average precision with which a class ranks the images.",
    "P, R, F1 @K": "Precision, recall and F1 of the first K labels of every image, counted over all images together.",
}


def _table(results: Results) -> Table:
    """A column less than on the command line, to fit on a page: here every class occurs."""
    headings, rows = table_of_results({name.replace(TEST_SET, "Epsilon"): numbers for name, numbers in results.items()})
    dropped = headings.index("mAP, none = 0")
    first, *others = ([*row[:dropped], *row[dropped + 1 :]] for row in (["model", *headings[1:]], *rows))
    return Table(first, others)


def chance() -> tuple[float, float]:
    """mAP of a random ranking, in percent, for ZSL and GZSL: the mean share of the images that show a class."""
    split = MetadataCatalog.get(TEST_SET).class_split
    records = DatasetCatalog.get(TEST_SET)
    counts = np.bincount(np.concatenate([record["positive_labels"] for record in records]), minlength=len(split))
    share = 100 * counts / len(records)
    return float(share[split.unseen_indices].mean()), float(share.mean())


def _lead(run: DemoRun) -> list[str]:
    cfg = run.cfg
    name = cfg.DATASETS.TRAIN[0]
    zsl, gzsl = chance()
    length = f"{cfg.SOLVER.MAX_EPOCHS} epochs of" if cfg.SOLVER.MAX_EPOCHS else f"{cfg.SOLVER.MAX_ITER} iterations on"
    effort = (
        f"The weights were loaded from {run.weights}."
        if run.weights
        else f"It was trained for {length} {len(DatasetCatalog.get(name))} images, and then evaluated, in "
        f"{run.seconds:.0f} seconds."
    )
    return [
        "Multi-label zero-shot classification names everything that an image shows, also classes that no training label "
        "ever named. Epsilon (Liu et al., AAAI 2025) turns the tokens of a frozen vision transformer into a few semantic "
        "vectors, by prompts that gather groups of tokens and by weighted sums over all of them, and compares these with "
        "the vectors of the labels. This model was trained on image-level labels of "
        f"{len(MetadataCatalog.get(name).class_split)} classes. {effort}",
        f"Nothing was tuned on the test images, {TEST_SET}. A random ranking would reach an mAP of {zsl:.1f} (ZSL) and "
        f"{gzsl:.1f} (GZSL).",
    ]


def _picture_sections(run: DemoRun) -> list[Section]:
    """The first test images that show an unseen class: their labels, and where the groups look in the first one."""
    output, cfg = run.output, run.cfg.clone()
    cfg.defrost()
    cfg.MODEL.WEIGHTS = str(run.checkpoint)
    predictor = EpsilonPredictor(cfg)
    split = predictor.vocabulary
    examples: list[LabelledImage] = []
    attention: list[Picture] = []
    for record, image, tags in predictions(predictor, example_records(TEST_SET, split, NUM_EXAMPLES), attention=True):
        if not examples:
            labels = spoken_labels(tags)
            for module, groups in attention_by_module(tags).items():
                path = output / f"{MODULES[module]}.png"
                title = f"where each group looks: {module}"
                save_figure(attention_figure(image, groups, title=title, labels=labels), path)
                attention.append(Picture(path, _ATTENTION_CAPTIONS[module], f"attention of the groups of {module}", 52))
        examples.append(LabelledImage(image, tags.scores, present=record["positive_labels"].tolist()))
    path = output / "labels.png"
    save_figure(top_labels_figure(examples, split, top_k=10), path)
    caption = (
        "The ten best labels of the first test images that show an unseen class, not picked by result (as Fig. 4). Bold: "
        "right. A star marks unseen classes, red those of them that are right. The number is the score."
    )
    return [
        Section("Labels", pictures=[Picture(path, caption, "test images with their ten best labels")]),
        Section("Where the groups look", pictures=attention),
    ]


_ATTENTION_CAPTIONS = {
    "GPA": "Group Prompts Aggregation (Eq. 3): the share of each patch in what a group sees (as Fig. 1). "
    "Under its number stands the best label that a group speaks for (Eq. 9).",
    "GFP": "Global Forward Propagation (Eq. 5): the same for its blocks, averaged over the channels.",
}


def _next_section(run: DemoRun) -> Section:
    return Section(
        "Going on",
        ["Labels of an image of your own, the same without the two modules (Table 3), or the page in the browser:"],
        commands=[
            f"python -m zeroshot_d2 predict --model {run.checkpoint.parent} --input image.png",
            "python -m zeroshot_d2 demo --system Epsilon --with-baseline",
            "python -m zeroshot_d2 web",
        ],
    )
