"""From the command line to a running process: configs, seeds, process groups, and the check of weights."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.engine import launch as launch_d2
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .checkpoint import Checkpointer, refuse_address
from .cli import find_config, load_config
from .startup import check_datasets
from .system import all_systems
from .trainer import Results, Trainer, with_seed

logger = logging.getLogger(__name__)

# What torchrun sets in the environment of each process that it starts.
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process that Detectron2's arguments ask for.

    Under torchrun, which has started the processes already, join its group instead. Without a GPU the processes talk
    through gloo and ``--num-gpus`` counts processes.
    """
    if all(name in os.environ for name in _TORCHRUN_VARIABLES):
        _join_torchrun()
        main(args)
        dist.destroy_process_group()
        return
    available = torch.cuda.device_count()
    if 0 < available < args.num_gpus:
        raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {available} GPU(s)")
    launch_d2(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


def _join_torchrun() -> None:
    """Join the process group that torchrun describes in the environment, as Detectron2's ``launch`` would make it."""
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend="NCCL" if has_gpu else "GLOO", init_method="env://")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))


def setup(args: argparse.Namespace) -> CfgNode:
    """The frozen config of a run: that of :func:`zeroshot_d2.cli.load_config`, with a seed.

    It also sets up logging, writes ``OUTPUT_DIR/config.yaml``, and seeds.

    Args:
        args: ``config_file``, ``opts``, ``modules``, ``resume`` and ``eval_only``.

    Raises:
        ValueError: without ``--config-file``; a data set is not registered or for another task; as ``load_config``.
        FileNotFoundError: the config does not exist.
    """
    if not args.config_file:
        raise ValueError("--config-file is missing; there is one per data set, for example coco/alignzeg.yaml")
    args.config_file = str(find_config(args.config_file))  # default_setup logs its content
    cfg = load_config(args.config_file, args.opts, modules=args.modules)
    check_datasets(cfg)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Otherwise each process would start as many threads as there are cores, and they would slow each other down.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
    if cfg.SEED < 0 and (args.resume or args.eval_only):
        cfg.SEED = _recorded_seed(Path(cfg.OUTPUT_DIR))
    packages = sorted({"zeroshot_d2", *(system.package for system in all_systems())})
    _leave_earlier_logs(["detectron2", "fvcore", *packages])
    for name in packages:  # default_setup sets up Detectron2's
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    cfg = with_seed(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    logger.info("device %s, seed %d", cfg.MODEL.DEVICE, cfg.SEED)
    return cfg


def _leave_earlier_logs(names: Sequence[str]) -> None:
    """A process that runs several trainings, as the demo does, says each line once, and in the log of its own run."""
    for name in names:
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
    setup_logger.cache_clear()  # it adds handlers once for the same arguments


def _recorded_seed(output_dir: Path) -> int:
    """Seed in ``output_dir/config.yaml``, -1 if there is none; the main process reads it for all."""
    seed = -1
    path = output_dir / "config.yaml"
    if comm.is_main_process() and path.is_file():
        seed = yaml.safe_load(path.read_text(encoding="utf-8"))["SEED"]
    return comm.all_gather(seed)[0]


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse to start from weights that are not there.

    Raises:
        ValueError: ``--eval-only`` without weights, unless ``MODEL.WEIGHTS ""`` is on the command line: a forgotten
            path would otherwise evaluate random numbers.
        FileNotFoundError: when MODEL.WEIGHTS names a local file that does not exist.
    """
    if args.resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
        return
    weights = cfg.MODEL.WEIGHTS
    if not weights and args.eval_only and "MODEL.WEIGHTS" not in args.opts:
        raise ValueError(
            "--eval-only needs weights: add `MODEL.WEIGHTS path`, or `--resume` for the last checkpoint in "
            f"OUTPUT_DIR ({cfg.OUTPUT_DIR}), or `MODEL.WEIGHTS ''` to evaluate random weights on purpose"
        )
    refuse_address("MODEL.WEIGHTS", weights)
    if weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {weights} does not exist (looked for it from {Path.cwd()})")


def run(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> Results:
    """Train and then evaluate, or evaluate only: what one process of ``train_net.py`` does.

    Args:
        args: as :func:`setup`.
        trainer_class: for programs with a trainer of their own.

    Returns:
        {dataset: metrics} on the main process; {} on the others and without DATASETS.TEST.
    """
    cfg = setup(args)
    check_weights(cfg, args)
    if args.eval_only:
        return evaluate(cfg, trainer_class, resume=args.resume)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train() or {}


def evaluate(cfg: CfgNode, trainer_class: type[Trainer] = Trainer, *, resume: bool = False) -> Results:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint of OUTPUT_DIR, on DATASETS.TEST."""
    model = trainer_class.build_model(cfg)
    Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return trainer_class.test(cfg, model)
