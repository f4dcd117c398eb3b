"""From the command line to a running process: configs, seeds, process groups, and the check of weights."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import default_setup
from detectron2.engine import launch as launch_d2
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from .trainer import Results, Trainer, with_seed

logger = logging.getLogger(__name__)

# Names only, nothing of the systems is imported: their log lines go where Detectron2's go.
LOGGED_PACKAGES = ("zeroshot_d2", "alignzeg_d2", "epsilon_d2")
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


def setup(args: argparse.Namespace, *add_configs: Callable[[CfgNode], None]) -> CfgNode:
    """The frozen config of a run: Detectron2's defaults, the systems' keys, the file, the command line.

    It also sets up logging, writes ``OUTPUT_DIR/config.yaml``, and seeds.

    Raises:
        ValueError: without ``--config-file``.
        FileNotFoundError: when that file does not exist.
    """
    if not args.config_file:
        raise ValueError("--config-file is missing; configs/ holds one per dataset, for example coco/alignzeg.yaml")
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"--config-file {args.config_file} does not exist (looked for it from {Path.cwd()})")
    cfg = get_cfg()
    for add_config in add_configs:
        add_config(cfg)
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Otherwise each process would start as many threads as there are cores, and they would slow each other down.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
    if cfg.SEED < 0 and (args.resume or args.eval_only):
        cfg.SEED = _recorded_seed(Path(cfg.OUTPUT_DIR))
    for name in LOGGED_PACKAGES:  # default_setup does the same for Detectron2 and fvcore
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    cfg = with_seed(cfg)
    cfg.freeze()
    default_setup(cfg, args)
    logger.info("device %s, seed %d", cfg.MODEL.DEVICE, cfg.SEED)
    return cfg


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
    if weights and "://" not in weights and not Path(weights.partition("?")[0]).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {weights} does not exist (looked for it from {Path.cwd()})")


def run(args: argparse.Namespace, trainer_class: type[Trainer], *add_configs: Callable[[CfgNode], None]) -> Results:
    """Train and then evaluate, or evaluate only: what one process of ``train_net.py`` does.

    Returns:
        {dataset: metrics} on the main process; {} on the others and without DATASETS.TEST.
    """
    cfg = setup(args, *add_configs)
    check_weights(cfg, args)
    if args.eval_only:
        return evaluate(cfg, trainer_class, resume=args.resume)
    trainer = trainer_class(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train() or {}


def evaluate(cfg: CfgNode, trainer_class: type[Trainer], *, resume: bool = False) -> Results:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint of OUTPUT_DIR, on DATASETS.TEST."""
    model = trainer_class.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return trainer_class.test(cfg, model)
