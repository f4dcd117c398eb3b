"""Train a system, then evaluate it; or evaluate only. The same as train_net.py.

    python -m zeroshot_d2 train --config-file configs/coco/alignzeg.yaml --num-gpus 8
    python -m zeroshot_d2 train --config-file configs/coco/alignzeg.yaml --num-gpus 8 --resume
    python -m zeroshot_d2 train --config-file coco/alignzeg.yaml --eval-only MODEL.WEIGHTS model_final.pth

The arguments are Detectron2's, and --import. Without a GPU, --num-gpus counts processes on the CPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..cli import Parser, positive
from ..launch import launch, load, run
from ..overfit import overfit_one_batch, verdict


def parser() -> Parser:
    """The arguments, as Detectron2's ``default_argument_parser`` has them."""
    arguments = Parser("python -m zeroshot_d2 train", __doc__)
    arguments.add_argument("--config-file", default="", metavar="FILE", help="a path, or a name such as coco/alignzeg.yaml")
    arguments.add_argument("--resume", action="store_true", help="go on from the newest whole checkpoint in OUTPUT_DIR")
    arguments.add_argument(
        "--force-resume", action="store_true", help="as --resume, although settings differ that change the run's course"
    )
    arguments.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS and do not train")
    arguments.add_argument(
        "--overfit-one-batch",
        type=positive,
        nargs="?",
        const=200,
        metavar="STEPS",
        help="only check, in so many steps (200), that the model can learn one batch by heart; the exit status is 1 if not",
    )
    arguments.add_argument("--num-gpus", type=positive, default=1, help="GPUs per machine; without a GPU: processes")
    arguments.add_argument("--num-machines", type=positive, default=1, help="how many machines")
    arguments.add_argument("--machine-rank", type=int, default=0, help="the number of this machine, from 0")
    arguments.add_argument(
        "--dist-url",
        default="auto",
        help="where the processes meet, for several machines tcp://HOST:PORT; default: a file on this machine",
    )
    return arguments


def process(args: argparse.Namespace) -> None:
    """What each process does: without a result, which a spawned process could not hand back."""
    run(args)


def main(argv: Sequence[str] | None = None) -> int:
    """Train with command-line arguments ``argv``.

    Raises:
        FileNotFoundError: the config or the weights do not exist.
        ValueError: the config, a data set or an argument is faulty.
    """
    arguments = parser()
    args = arguments.parse(argv)
    if not 0 <= args.machine_rank < args.num_machines:
        arguments.fail(f"--machine-rank {args.machine_rank} must be from 0 to {args.num_machines - 1} (--num-machines)")
    if args.overfit_one_batch:
        learnt, text = verdict(*overfit_one_batch(load(args), args.overfit_one_batch))
        print(text)
        return 0 if learnt else 1
    launch(process, args)
    return 0
