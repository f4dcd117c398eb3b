"""From the command line to a running process: configs, seeds, process groups, and the check of weights."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from detectron2.utils.collect_env import collect_env_info
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger
from torch.distributed.elastic.multiprocessing.errors import record

from .checkpoint import Checkpointer, checkpoints_in, newest_whole_checkpoint, refuse_address
from .cli import find_config, load_config
from .config_file import read_yaml
from .processes import run_together, serve_forks
from .run_folder import hold
from .startup import check_datasets
from .storage import write_text
from .system import all_systems
from .threads import how_threads_wait
from .trainer import Results, Trainer, with_seed
from .training_stream import kept_generators

logger = logging.getLogger(__name__)

# What torchrun sets in the environment of each process that it starts.
_TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

TORCHRUN_MARK = ".torchrun"
"""File of OUTPUT_DIR whose age says when torchrun first started the run."""


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run ``main(args)`` in every process that Detectron2's arguments ask for.

    Under torchrun, which has started the processes already, join its group instead. Without a GPU the processes talk
    through gloo and ``--num-gpus`` counts processes.

    Raises:
        ValueError: more processes than GPUs, or several machines without an address where they meet.
        Exception: as :func:`zeroshot_d2.processes.run_together`.
    """
    if all(name in os.environ for name in _TORCHRUN_VARIABLES):
        serve_forks()
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        record(_in_group)(local_rank, main, args, local_size, "env://")  # for torchrun's last words
        return
    available = torch.cuda.device_count()
    if 0 < available < args.num_gpus:
        raise ValueError(f"--num-gpus {args.num_gpus}, but this machine has {available} GPU(s)")
    if args.num_machines > 1 and args.dist_url == "auto":
        raise ValueError(
            f"--num-machines {args.num_machines} needs --dist-url tcp://HOST:PORT, an address of machine 0 with a free port"
        )
    world_size = args.num_gpus * args.num_machines
    if world_size == 1:
        serve_forks()
        main(args)
        return
    with tempfile.TemporaryDirectory(prefix="zeroshot-d2-") as meeting:
        # On one machine the processes meet in a file: no port that another run may have taken.
        url = Path(meeting, "store").as_uri() if args.dist_url == "auto" else args.dist_url
        first_rank = args.num_gpus * args.machine_rank
        run_together(_in_group, args.num_gpus, (main, args, args.num_gpus, url, world_size, first_rank))


def _in_group(
    local_rank: int,
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    local_size: int,
    url: str,
    world_size: int = -1,
    first_rank: int | None = None,
) -> None:
    """Run ``main(args)`` as a member of a process group, as Detectron2's ``launch`` would make it.

    Args:
        local_rank: of the process, on this machine.
        main, args: see :func:`launch`.
        local_size: processes on this machine.
        url: where the processes meet; env:// says the rest as well.
        world_size: processes on all machines.
        first_rank: of the processes on this machine.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:  # a launcher that shows each process its GPU alone calls all of them 0
        torch.cuda.set_device(local_rank if torch.cuda.device_count() > 1 else 0)
    backend = "NCCL" if has_gpu else "GLOO"
    if first_rank is not None:
        rank = first_rank + local_rank
        dist.init_process_group(backend, url, timeout=DEFAULT_TIMEOUT, world_size=world_size, rank=rank)
    elif os.environ.get("GROUP_WORLD_SIZE") == "1":
        # torchrun keeps one store for all starts, where addresses of ended processes lie (pytorch issue 135712). On several
        # machines they are not told apart: the machines count starts differently.
        store, rank, world_size = next(dist.rendezvous(url, timeout=DEFAULT_TIMEOUT))
        store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        dist.init_process_group(backend, timeout=DEFAULT_TIMEOUT, world_size=world_size, rank=rank, store=store)
    else:
        dist.init_process_group(backend, url, timeout=DEFAULT_TIMEOUT)
    comm.create_local_process_group(local_size)
    comm.synchronize()
    main(args)
    dist.destroy_process_group()


def setup(args: argparse.Namespace, cfg: CfgNode | None = None) -> CfgNode:
    """The frozen config of a run: that of :func:`zeroshot_d2.cli.load_config`, with a seed.

    It also sets up logging, writes ``OUTPUT_DIR/config.yaml``, and seeds. The caller holds OUTPUT_DIR
    (:func:`zeroshot_d2.run_folder.hold`).

    Args:
        args: ``config_file``, ``opts``, ``modules``, ``resume`` and ``eval_only``.
        cfg: what :func:`load` gave for them, where it was called before.

    Raises:
        ValueError: without ``--config-file``; a data set is not registered or for another task; as ``load_config``.
        FileNotFoundError: the config does not exist.
    """
    cfg = load(args) if cfg is None else cfg
    check_datasets(cfg)
    if cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1 and "OMP_NUM_THREADS" not in os.environ:
        # Otherwise each process would start as many threads as there are cores, and they would slow each other down.
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // comm.get_local_size()))
    if cfg.SEED < 0 and (args.resume or args.eval_only):
        cfg.SEED = _recorded_seed(Path(cfg.OUTPUT_DIR))
    names = ["detectron2", "fvcore", *sorted({"zeroshot_d2", *(system.package for system in all_systems())})]
    _leave_earlier_logs(names)
    for name in names:
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    cfg = with_seed(cfg)
    cfg.freeze()
    _begin(cfg, args)
    return cfg


def load(args: argparse.Namespace) -> CfgNode:
    """The config that the arguments name, as :func:`zeroshot_d2.cli.load_config` returns it."""
    if not args.config_file:
        raise ValueError("--config-file is missing; there is one per data set, for example coco/alignzeg.yaml")
    args.config_file = str(find_config(args.config_file))
    return load_config(args.config_file, args.opts, modules=args.modules)


def _begin(cfg: CfgNode, args: argparse.Namespace) -> None:
    """What Detectron2's ``default_setup`` does, with a config.yaml that is whole or absent."""
    logger.info("process %d of %d", comm.get_rank(), comm.get_world_size())
    logger.info("environment:\n%s", collect_env_info())
    logger.info(how_threads_wait())
    logger.info("arguments: %s", args)
    logger.info("config:\n%s", cfg.dump())
    logger.info("device %s, seed %d", cfg.MODEL.DEVICE, cfg.SEED)
    if comm.is_main_process() and cfg.OUTPUT_DIR:
        write_text(Path(cfg.OUTPUT_DIR) / "config.yaml", cfg.dump())
    seed_all_rng(cfg.SEED + comm.get_rank())
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only


def _leave_earlier_logs(names: Sequence[str]) -> None:
    """A process that runs several trainings, as the demo does, says each line once, and in the log of its own run."""
    for name in names:
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            log.removeHandler(handler)
    setup_logger.cache_clear()  # it adds handlers once for the same arguments


def _recorded_seed(output_dir: Path) -> int:
    """The seed that an earlier run in ``output_dir`` drew, -1 if there was none; the main process reads it for all.

    Raises:
        ValueError: its config.yaml is damaged.
    """
    path = output_dir / "config.yaml"
    found: int | str = -1
    if comm.is_main_process() and path.is_file():
        try:
            found = int(read_yaml(path)["SEED"])
        except (ValueError, TypeError, KeyError) as error:
            found = f"{path} is damaged and does not say which SEED the run had ({error}): give it as `SEED number`"
    (found, *_) = comm.all_gather(found)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Refuse to start from weights that are not there.

    Raises:
        ValueError: ``--eval-only`` without weights, unless ``MODEL.WEIGHTS ""`` is on the command line: a forgotten
            path would otherwise evaluate random numbers.
        FileNotFoundError: when MODEL.WEIGHTS names a local file that does not exist.
    """
    if args.resume and checkpoints_in(cfg.OUTPUT_DIR):
        return  # which of them is whole is looked at when it is loaded
    weights = cfg.MODEL.WEIGHTS
    if not weights and args.eval_only and "MODEL.WEIGHTS" not in args.opts:
        raise ValueError(
            "--eval-only needs weights: add `MODEL.WEIGHTS path`, or `--resume` for the last checkpoint in "
            f"OUTPUT_DIR ({cfg.OUTPUT_DIR}), or `MODEL.WEIGHTS ''` to evaluate random weights on purpose"
        )
    refuse_address("MODEL.WEIGHTS", weights)
    if weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.WEIGHTS {weights} does not exist (looked for it from {Path.cwd()})")


@kept_generators()
def run(args: argparse.Namespace, trainer_class: type[Trainer] = Trainer) -> Results:
    """Train and then evaluate, or evaluate only: what one process of ``train_net.py`` does.

    Args:
        args: as :func:`setup`.
        trainer_class: for programs with a trainer of their own.

    Returns:
        {dataset: metrics} on the main process; {} on the others and without DATASETS.TEST.
    """
    args.resume = args.resume or args.force_resume
    cfg = load(args)
    folder = cfg.OUTPUT_DIR
    with hold(folder):
        if folder and not args.eval_only and _restarted_by_torchrun(Path(folder)):
            args.resume = True
        cfg = setup(args, cfg)
        check_weights(cfg, args)
        if args.eval_only:
            return evaluate(cfg, trainer_class, resume=args.resume)
        trainer = trainer_class(cfg)
        trainer.resume_or_load(resume=args.resume, force=args.force_resume)
        return trainer.train() or {}


def _restarted_by_torchrun(folder: Path) -> bool:
    """Whether torchrun has started this run anew, after a failure, and the run has a checkpoint in ``folder``.

    The run's first start leaves a mark: checkpoints that are older belong to another run.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT")
    if count is None:
        return False
    restarted = any(comm.all_gather(count != "0"))  # each machine counts its own
    found = False
    if comm.is_main_process():
        mark = folder / TORCHRUN_MARK
        if not restarted:
            mark.touch()
        elif mark.is_file():
            newest = newest_whole_checkpoint(folder)
            found = newest is not None and newest.stat().st_mtime_ns >= mark.stat().st_mtime_ns
    (found, *_) = comm.all_gather(found)
    return found


def evaluate(cfg: CfgNode, trainer_class: type[Trainer] = Trainer, *, resume: bool = False) -> Results:
    """Evaluate MODEL.WEIGHTS, or with ``resume`` the last checkpoint of OUTPUT_DIR, on DATASETS.TEST."""
    seed_all_rng(cfg.SEED)  # weights that are random are the same in all processes
    model = trainer_class.build_model(cfg)
    Checkpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return trainer_class.test(cfg, model)
