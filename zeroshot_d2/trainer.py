"""One trainer for all systems: Detectron2's, with a repeatable data stream and results that name their protocol.

The mapper and the evaluator are those of the config's system, see :mod:`zeroshot_d2.system`.
"""

from __future__ import annotations

import inspect
import logging
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import (
    AMPTrainer,
    DefaultTrainer,
    HookBase,
    SimpleTrainer,
    create_ddp_model,
    hooks,
)
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import get_event_storage
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from .checkpoint import Checkpointer, ModelRecord, read_run
from .metrics import numbers_only
from .processes import use_served_forks
from .resume import RunState, check_resumed
from .solver import build_lr_scheduler, build_optimizer, epochs_to_iterations
from .startup import check_datasets, check_evaluation, check_training, check_warmup
from .stopping import StopAtSignal, check_finite
from .storage import write_json
from .system import find_system
from .training_stream import DatasetDict, Mapper, Sample, TrainingLoader, WorkerDataset, seed_iteration

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, Any]]  # {dataset: {metric: value}}
RESULTS_FILE = "results.json"


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` for all systems, on GPUs or on a CPU, in one or several processes.

    Samples and random numbers depend on ``SEED`` and the iteration only (see ``training_stream.py``), so a resumed run has
    the losses of an uninterrupted one, and the number of processes changes no batch. Evaluation runs in batches of several
    images. Results go to ``OUTPUT_DIR/results.json``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # DefaultTrainer.__init__ wraps the model for GPUs only and knows neither epochs nor our loader. The same
        # objects are built here, in its order; everything else is inherited.
        super(DefaultTrainer, self).__init__()
        if not logging.getLogger("detectron2").isEnabledFor(logging.INFO):
            setup_logger()
        check_training(cfg)
        check_evaluation(cfg, self.build_evaluator)
        cfg = DefaultTrainer.auto_scale_workers(with_seed(cfg), comm.get_world_size())
        seed_all_rng(cfg.SEED)

        model = self.build_model(cfg)
        record = ModelRecord.for_training(cfg, model)
        if hasattr(model, "trained_classes"):
            model.trained_classes = frozenset(record.trained)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        run = RunState.of_config(cfg)  # with epochs as they were given: iterations follow from them
        cfg = epochs_to_iterations(cfg, data_loader.num_images)
        check_warmup(cfg)
        model = distribute(model)
        self._trainer = _build_step(cfg, model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = Checkpointer(
            model,
            cfg.OUTPUT_DIR,
            record=record,
            run=run,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            trainer=weakref.proxy(self),
        )
        self.start_iter = 0
        self._forced = False  # resumed although settings differ
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks without PreciseBN, a stop at SIGTERM, the report of skipped images."""
        cfg = self.cfg

        stop = self._stop = StopAtSignal()

        def test() -> dict[str, dict[str, float]]:
            with stop.around_evaluation():
                self._last_eval_results = self.test(cfg, self.model)
            return {dataset: numbers_only(metrics) for dataset, metrics in self._last_eval_results.items()}

        result: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if comm.is_main_process():
            result.append(hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        result += [stop, ReportSkippedImages()]
        if cfg.DATASETS.TEST:
            result.append(hooks.EvalHook(cfg.TEST.EVAL_PERIOD, test))
        if comm.is_main_process():
            result.append(hooks.PeriodicWriter(self.build_writers(), period=20))
        return result

    def resume_or_load(self, resume: bool = True, *, force: bool = False) -> None:
        """Go on from the newest whole checkpoint in OUTPUT_DIR, or else load the weights MODEL.WEIGHTS alone.

        Args:
            resume: look for a checkpoint.
            force: go on although settings differ that change the run's course; the solver's new ones count from then on.

        Raises:
            ValueError: such settings differ and ``force`` is not set, or no checkpoint is whole.
        """
        newest = self.checkpointer.newest() if resume else None
        if newest is None:
            self.checkpointer.load(self.cfg.MODEL.WEIGHTS, checkpointables=[])
            return
        saved = read_run(newest)
        now = self.checkpointer.run
        self._forced = saved is not None and now is not None and check_resumed(saved, now, force=force)
        self.checkpointer.load(str(newest))
        # The checkpoint stores the iteration that was just finished.
        self.start_iter = self.iter + 1
        if self.start_iter >= self.max_iter and newest.stem != "model_final":
            # Killed between the last periodic checkpoint and the final one, which no further step would write.
            self.checkpointer.save("model_final", iteration=self.iter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As Detectron2's; after a forced resumption the optimiser keeps the settings of this run's config."""
        optimizer = self._trainer.optimizer
        fresh = optimizer.state_dict()
        if self._forced and _kind(fresh) != _kind(state_dict["_trainer"]["optimizer"]):
            logger.warning("the optimiser is another one than in the checkpoint: its state starts anew")
            state_dict = {**state_dict, "_trainer": {**state_dict["_trainer"], "optimizer": fresh}}
        rates = list(self.scheduler.base_lrs)
        super().load_state_dict(state_dict)
        if self._forced:
            for group, settings in zip(optimizer.param_groups, fresh["param_groups"], strict=True):
                group.update({key: value for key, value in settings.items() if key != "params"})
            self.scheduler.base_lrs = rates
            for group, rate in zip(optimizer.param_groups, self.scheduler.get_lr(), strict=True):
                group["lr"] = rate

    def save_checkpoint(self, iteration: int) -> None:
        """Write the checkpoint of an iteration that is done, as the periodic ones are written."""
        self.checkpointer.save(f"model_{iteration:07d}", iteration=iteration)

    def train(self) -> Results | None:
        """Train from ``start_iter`` to ``SOLVER.MAX_ITER``, then evaluate; the data stream starts at ``start_iter``."""
        self.data_loader.start_at(self.start_iter)
        with self._stop.listening():
            super().train()
        return getattr(self, "_last_eval_results", None)

    def run_step(self) -> None:
        seed_iteration(self.cfg.SEED, self.iter)
        super().run_step()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingLoader:
        """The repeatable stream over ``DATASETS.TRAIN``; samplers and groupings that would break it are refused."""
        if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
            raise ValueError(
                f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN!r} is not supported, only 'TrainingSampler' is"
            )
        if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
            raise ValueError(
                "DATALOADER.ASPECT_RATIO_GROUPING True is not supported: batches would depend on the number of "
                "processes; set it to False"
            )
        return TrainingLoader(
            get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS),
            cls.build_mapper(cfg, is_train=True),
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=cfg.SEED,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            skip_unreadable=cfg.INPUT.SKIP_UNREADABLE,
        )

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader[list[Sample]]:
        """Batches of ``TEST.IMS_PER_BATCH`` images, each image once, shared out over the processes."""
        records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
        if isinstance(records, list):
            records = DatasetFromList(records, copy=False)
        return use_served_forks(
            build_detection_test_loader(
                WorkerDataset(MapDataset(records, _Strict(cls.build_mapper(cfg, is_train=False)))),
                mapper=None,
                sampler=InferenceSampler(len(records)),
                batch_size=cfg.TEST.IMS_PER_BATCH,
                num_workers=cfg.DATALOADER.NUM_WORKERS,
            )
        )

    @classmethod
    def build_mapper(cls, cfg: CfgNode, *, is_train: bool) -> Mapper:
        """The mapper of the config's system."""
        return find_system(cfg.MODEL.META_ARCHITECTURE).part("mapper")(cfg, is_train=is_train)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """The evaluator of the config's system for a data set."""
        return find_system(cfg.MODEL.META_ARCHITECTURE).part("evaluator")(cfg, dataset_name)

    @classmethod
    def test(
        cls, cfg: CfgNode, model: nn.Module, evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None
    ) -> Results:
        """Evaluate ``model`` on each of ``DATASETS.TEST``, write ``OUTPUT_DIR/results.json``.

        Returns:
            {dataset: metrics} on the main process, {} on the others; "model" among the metrics is the model's
            ``result_facts``.
        """
        if evaluators is not None and not isinstance(evaluators, list):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(evaluators)} evaluator(s) for the datasets of DATASETS.TEST {cfg.DATASETS.TEST}")
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty: there is nothing to evaluate on")
        check_datasets(cfg)
        results: Results = {}
        for index, dataset_name in enumerate(cfg.DATASETS.TEST):
            data_loader = cls.build_test_loader(cfg, dataset_name)
            evaluator = evaluators[index] if evaluators is not None else cls.build_evaluator(cfg, dataset_name)
            logger.info("evaluating on %s (%d images)", dataset_name, len(data_loader.dataset))  # type: ignore[arg-type]
            by_task = inference_on_dataset(model, data_loader, evaluator)
            if not comm.is_main_process():
                continue
            details = getattr(evaluator, "details", None)
            if details is None:
                details = next(iter(by_task.values())) if len(by_task) == 1 else by_task
            facts = getattr(getattr(model, "module", model), "result_facts", None)
            results[dataset_name] = {**details, "model": facts} if facts else details
        if comm.is_main_process() and cfg.OUTPUT_DIR:
            write_json(Path(cfg.OUTPUT_DIR) / RESULTS_FILE, results)
        return results


class ReportSkippedImages(HookBase):
    """At the end of the training, say how many samples of all processes stood in for unreadable images."""

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.max_iter:
            return  # after a failure the other processes may not be there to answer
        counts = comm.gather(self.trainer.data_loader.skipped)
        total = sum(sum(count.values()) for count in counts)
        if total:
            files = sorted(set().union(*counts))
            logger.warning("%d samples replaced %d unreadable files: %s", total, len(files), ", ".join(files[:20]))


class _Strict:
    """A mapper for evaluation: an image without a sample is an error, since leaving it out would change the numbers."""

    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    def __call__(self, dataset_dict: DatasetDict) -> Sample:
        sample = self._mapper(dataset_dict)
        if sample is None:
            raise ValueError(
                f"the mapper gave no sample for {dataset_dict.get('file_name')}: evaluation skips no image, "
                "mend the file or take it out of the dataset"
            )
        return sample


def with_seed(cfg: CfgNode) -> CfgNode:
    """``cfg`` itself if it has a seed, else a copy with one that is drawn now and shared by all processes."""
    if cfg.SEED >= 0:
        return cfg
    result = cfg.clone()
    result.defrost()
    result.SEED = comm.shared_random_seed()
    if cfg.is_frozen():
        result.freeze()
    logger.info("SEED is negative: this run draws %d", result.SEED)
    return result


def distribute(model: nn.Module) -> nn.Module:
    """``model`` itself in a single process, else wrapped in ``DistributedDataParallel``, on GPUs or on the CPU."""
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cpu" and dist.get_backend() == dist.Backend.NCCL:
        raise ValueError(
            "MODEL.DEVICE is cpu, but the processes talk through NCCL, which needs GPUs; "
            "hide the GPUs with CUDA_VISIBLE_DEVICES='' to train on the CPU in several processes"
        )
    known = inspect.signature(nn.parallel.DistributedDataParallel).parameters
    # Buffers are constants. Older releases of torch have only the second name.
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    # Whether a parameter gets a gradient may depend on the batch (an image without any seen class, say), and the
    # batches of two processes differ: without looking for unused parameters they would wait for each other.
    return create_ddp_model(
        model,
        find_unused_parameters=True,
        device_ids=None if device.type == "cpu" else [device.index],
        **{buffers: False},
    )


def _build_step(
    cfg: CfgNode, model: nn.Module, data_loader: TrainingLoader, optimizer: torch.optim.Optimizer
) -> SimpleTrainer:
    """The inner trainer that runs one step: with mixed precision where it is wanted and the model is on a GPU."""
    if not cfg.SOLVER.AMP.ENABLED:
        return _Step(model, data_loader, optimizer)
    if next(model.parameters()).device.type != "cuda":
        logger.info("SOLVER.AMP.ENABLED is ignored: mixed precision is used on CUDA devices only")
        return _Step(model, data_loader, optimizer)
    return _AMPStep(model, data_loader, optimizer, grad_scaler=torch.amp.GradScaler("cuda"))


def _kind(optimizer_state: Mapping[str, Any]) -> set[str]:
    """The settings that an optimiser has, which differ between AdamW and SGD."""
    return set(optimizer_state["param_groups"][0]) - {"initial_lr"}


class _Step(SimpleTrainer):
    """Detectron2's step, which ends at a loss that is not finite before the weights are changed by it."""

    def _write_metrics(
        self, loss_dict: Mapping[str, torch.Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        check_finite(loss_dict, self.iter, self.data_loader.images)
        super()._write_metrics(loss_dict, data_time, prefix, iter)


class _AMPStep(_Step, AMPTrainer):
    """The same in mixed precision; steps that the scaler skips, since a gradient is not finite, are counted and shown."""

    skipped = 0

    def run_step(self) -> None:
        scale = self.grad_scaler.get_scale()
        super().run_step()
        if self.grad_scaler.get_scale() < scale:
            self.skipped += 1
            logger.warning("iteration %d is skipped: a gradient was not finite (%d so far)", self.iter, self.skipped)
        get_event_storage().put_scalar("amp_skipped_steps", self.skipped, smoothing_hint=False)
