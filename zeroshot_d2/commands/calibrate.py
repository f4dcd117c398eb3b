"""Choose the threshold of predictions on a labelled data set, and draw what a threshold does.

    python -m zeroshot_d2 calibrate --model output/demo --dataset demo_world_val --output out/
    python -m zeroshot_d2 calibrate --model output/demo/epsilon --dataset demo_world_multilabel_test --output out/
    python -m zeroshot_d2 predict --model output/demo --input photos/ --output out/ --threshold out/thresholds.json

Segmentation: the lowest confidence from which on the pixels that keep their class are right as often as --accuracy says.
Labels of images: the score with the best F1, one for all and one for each class with enough images. It writes
thresholds.json, which `predict --threshold` takes, and thresholds.png. Thresholds of unseen classes need labels of unseen
classes: a data set that does not have them gives them the threshold of all.
"""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.data import MetadataCatalog

from ..cli import Parser, add_model_arguments, folder, model_config, positive
from ..pictures.command import check_dataset, first_records
from ..pictures.style import save_figure
from ..predictor import build_predictor
from ..storage import write_json
from ..system import TASKS, find_system
from ..thresholds import THRESHOLDS_FILE

PICTURE = "thresholds.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Run with the command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the model or the data set's files do not exist.
        ValueError: the data set is of another task, or no threshold does what is asked for.
    """
    parser = Parser("python -m zeroshot_d2 calibrate", __doc__)
    add_model_arguments(parser)
    parser.add_argument("--dataset", required=True, metavar="NAME", help="registered, with labels, and not trained on")
    parser.add_argument("--num-images", type=positive, default=5000, help="at most, from the first on; default: 5000")
    parser.add_argument("--output", type=folder, required=True, help=f"folder of {THRESHOLDS_FILE} and {PICTURE}")
    calibrator, args = parser.parse_with_part(argv, "calibrator")
    cfg = model_config(args)
    check_dataset(args.dataset, TASKS[find_system(cfg.MODEL.META_ARCHITECTURE).task].evaluator_type)
    if args.dataset in cfg.DATASETS.TRAIN:
        raise ValueError(f"--dataset {args.dataset}: the model was trained on it, and is too sure there; choose another")
    predictor = build_predictor(cfg)
    predictor.set_vocabulary(MetadataCatalog.get(args.dataset).class_split)
    records = first_records(args.dataset, args.num_images)
    found = calibrator.calibrate(predictor, records, args)
    args.output.mkdir(parents=True, exist_ok=True)
    facts = {"system": cfg.MODEL.META_ARCHITECTURE, "dataset": args.dataset, "num_images": len(records)}
    write_json(args.output / THRESHOLDS_FILE, {**facts, **found.content})
    save_figure(found.figure, args.output / PICTURE)
    print(f"{args.dataset}, {len(records)} images", *found.lines, sep="\n  ")
    print(f"written: {args.output / THRESHOLDS_FILE} and {PICTURE}")
    return 0
