"""One trainer for all systems: Detectron2's, with a repeatable data stream and results that name their protocol.

The mapper and the evaluator are those of the config's system, see :mod:`zeroshot_d2.system`.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import secrets
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetFromList,
    MapDataset,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import InferenceSampler
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from detectron2.utils.logger import setup_logger
from torch import nn
from torch.utils.data import DataLoader

from .best_model import KeepBest, WeightAverage, frozen_by_name, should_stop
from .checkpoint import AVERAGE, FINAL, Checkpointer, ModelRecord, read_run
from .metrics import numbers_only
from .precision import compile_parts
from .processes import use_served_forks
from .progress import ProgressLine, WandbWriter
from .provenance import run_facts
from .resume import RunState, check_resumed
from .shared_pass import EachEvaluator, SharedMapper, SharedPass, SharedRecords, sets_of_same_images
from .solver import build_lr_scheduler, build_optimizer, epochs_to_iterations
from .startup import check_datasets, check_evaluation, check_training, check_warmup
from .stopping import StopAtSignal
from .storage import write_json
from .system import find_system
from .training_step import TrainingStep
from .training_stream import DatasetDict, Mapper, Sample, TrainingLoader, WorkerDataset, kept_generators, seed_iteration

logger = logging.getLogger(__name__)

Results = dict[str, dict[str, Any]]  # {dataset: {metric: value}}
RESULTS_FILE = "results.json"


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` for all systems, on GPUs or on a CPU, in one or several processes.

    Samples and random numbers depend on ``SEED`` and the iteration only (see ``training_stream.py``), so a resumed run has
    the losses of an uninterrupted one, and the number of processes changes no batch. Evaluation runs in batches of several
    images. Results go to ``OUTPUT_DIR/results.json``.
    """

    @kept_generators()
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
        frozen_by_name(model, cfg.SOLVER.FREEZE)
        record = ModelRecord.for_training(cfg, model)
        if hasattr(model, "trained_classes"):
            model.trained_classes = frozenset(record.trained)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        run = RunState.of_config(cfg)  # with epochs as they were given: iterations follow from them
        cfg = epochs_to_iterations(cfg, data_loader.num_images)
        check_warmup(cfg)
        model = distribute(model)
        self._trainer = TrainingStep.of_config(cfg, model, data_loader, optimizer)
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
        self._enough = False  # evaluations have not become better for long enough
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks without PreciseBN; a stop at SIGTERM, the average and the best of the weights, and the report
        of skipped images."""
        cfg = self.cfg

        stop = self._stop = StopAtSignal()
        average = self._average = WeightAverage(self.model, cfg.SOLVER.EMA_DECAY) if cfg.SOLVER.EMA_DECAY else None
        best = None
        if cfg.TEST.BEST_METRIC and cfg.DATASETS.TEST:
            best = KeepBest(self.checkpointer, cfg.DATASETS.TEST[0], cfg.TEST.BEST_METRIC, cfg.TEST.PATIENCE)

        def test() -> dict[str, dict[str, float]]:
            enough = False
            with stop.around_evaluation(), contextlib.nullcontext() if average is None else average.in_place():
                self._last_eval_results = self.test(cfg, self.model)
                if best is not None and comm.is_main_process():
                    enough = best.look(self._last_eval_results, self.iter)
            self._enough = best is not None and should_stop(enough)
            return {dataset: numbers_only(metrics) for dataset, metrics in self._last_eval_results.items()}

        result: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        result += [hook for hook in (average, best) if hook is not None]
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
        if self.start_iter >= self.max_iter and newest.stem != FINAL:
            # Killed between the last periodic checkpoint and the final one, which no further step would write.
            self.checkpointer.save(FINAL, iteration=self.iter)

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

    @kept_generators()
    def train(self) -> Results | None:
        """Train from ``start_iter`` to ``SOLVER.MAX_ITER``, then evaluate; the data stream starts at ``start_iter``."""
        self.data_loader.start_at(self.start_iter)
        with self._stop.listening(), contextlib.suppress(_Enough):
            super().train()
        if self._average is not None and comm.is_main_process():
            with self._average.in_place():
                self.checkpointer.save_weights(AVERAGE)
        return getattr(self, "_last_eval_results", None)

    def after_step(self) -> None:
        super().after_step()
        if self._enough and self.iter + 1 < self.max_iter:
            self.checkpointer.save(FINAL, iteration=self.iter)
            raise _Enough

    def after_train(self) -> None:
        """As Detectron2's, but where the last step failed nothing is evaluated: the other processes would be waited for."""
        ended_well = self.iter >= self.max_iter
        self.storage.iter = self.iter
        for hook in self._hooks:
            if ended_well or not isinstance(hook, hooks.EvalHook):
                hook.after_train()

    def build_writers(self) -> list[EventWriter]:
        """Detectron2's, with a line of progress that says images per second, and Weights & Biases if a project is named."""
        line = ProgressLine(self.max_iter, self.cfg.SOLVER.IMS_PER_BATCH)
        writers = [line if isinstance(writer, CommonMetricPrinter) else writer for writer in super().build_writers()]
        if self.cfg.SOLVER.WANDB_PROJECT:
            settings = yaml.safe_load(self.cfg.dump())
            writers.append(WandbWriter(self.cfg.SOLVER.WANDB_PROJECT, self.cfg.OUTPUT_DIR, settings))
        return writers

    def run_step(self) -> None:
        seed_iteration(self.cfg.SEED, self.iter)
        super().run_step()

    @classmethod
    def build_model(cls, cfg: CfgNode) -> Any:
        """As Detectron2's, compiled where MODEL.COMPILE says so."""
        model = super().build_model(cfg)
        compile_parts(model, cfg)
        return model

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
        records = _test_records(dataset_name)
        return cls._test_loader(cfg, records, _Strict(cls.build_mapper(cfg, is_train=False)))

    @classmethod
    def _test_loader(cls, cfg: CfgNode, records: Any, mapper: Callable[[Any], Any]) -> DataLoader[Any]:
        return use_served_forks(
            build_detection_test_loader(
                WorkerDataset(MapDataset(records, mapper)),
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
            {dataset: metrics} on the main process, {} on the others. Among the metrics, "run" is
            :func:`zeroshot_d2.provenance.run_facts`, "model" the model's ``result_facts``, and "prompts" are those of the
            classes that have several texts or weights.
        """
        if evaluators is not None and not isinstance(evaluators, list):
            evaluators = [evaluators]
        if evaluators is not None and len(evaluators) != len(cfg.DATASETS.TEST):
            raise ValueError(f"{len(evaluators)} evaluator(s) for the datasets of DATASETS.TEST {cfg.DATASETS.TEST}")
        if not cfg.DATASETS.TEST:
            raise ValueError("DATASETS.TEST is empty: there is nothing to evaluate on")
        check_datasets(cfg)
        if evaluators is None:
            evaluators = [cls.build_evaluator(cfg, name) for name in cfg.DATASETS.TEST]
        evaluator_of = dict(zip(cfg.DATASETS.TEST, evaluators, strict=True))
        facts = getattr(getattr(model, "module", model), "result_facts", None)
        found: Results = {}
        for names in cls._test_groups(cfg):
            reports = cls._evaluate(cfg, model, names, [evaluator_of[name] for name in names])
            if comm.is_main_process():
                for name, report in zip(names, reports, strict=True):
                    found[name] = {**report, "run": run_facts(cfg), **({"model": facts} if facts else {})}
                    prompts = _composed_prompts(name, facts)
                    if prompts:
                        found[name]["prompts"] = prompts
        results = {name: found[name] for name in cfg.DATASETS.TEST if name in found}
        if comm.is_main_process() and cfg.OUTPUT_DIR:
            write_json(Path(cfg.OUTPUT_DIR) / RESULTS_FILE, results)
        return results

    @classmethod
    def _test_groups(cls, cfg: CfgNode) -> list[list[str]]:
        """``DATASETS.TEST``, those of the same images together; a mapper of the system's own may treat them differently."""
        system = find_system(cfg.MODEL.META_ARCHITECTURE)
        if len(cfg.DATASETS.TEST) == 1 or system.mapper is not None or "mapper" in system.parts:
            return [[name] for name in cfg.DATASETS.TEST]
        return sets_of_same_images({name: DatasetCatalog.get(name) for name in cfg.DATASETS.TEST})

    @classmethod
    def _evaluate(
        cls, cfg: CfgNode, model: nn.Module, names: Sequence[str], evaluators: Sequence[DatasetEvaluator]
    ) -> list[dict[str, Any]]:
        """What the evaluators report of test sets of the same images, on the main process."""
        if len(names) == 1:
            loader = cls.build_test_loader(cfg, names[0])
            number = len(loader.dataset)  # type: ignore[arg-type]
            logger.info("evaluating on %s (%d images)", names[0], number)
            by_task = [inference_on_dataset(model, loader, evaluators[0])]
        else:
            records = SharedRecords([_test_records(name) for name in names])
            logger.info("evaluating on %s in one pass (%d images)", " and ".join(names), len(records))
            mapper = SharedMapper(_Strict(cls.build_mapper(cfg, is_train=False)))
            loader = cls._test_loader(cfg, records, mapper)
            by_task = inference_on_dataset(SharedPass(model), loader, EachEvaluator(evaluators))
        if not comm.is_main_process():
            return []
        reports = []
        for evaluator, result in zip(evaluators, by_task, strict=True):
            details = getattr(evaluator, "details", None)
            if details is None:
                details = next(iter(result.values())) if len(result) == 1 else result
            reports.append(details)
        return reports


def _composed_prompts(dataset_name: str, facts: Mapping[str, Any] | None) -> dict[str, str]:
    """The prompts of a data set's classes that are more than one text, as the model was told them."""
    split = MetadataCatalog.get(dataset_name).get("class_split")
    return {} if split is None else split.composed_prompts((facts or {}).get("class_names", "reworded"))


def _test_records(dataset_name: str) -> Any:
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    return DatasetFromList(records, copy=False) if isinstance(records, list) else records


class _Enough(BaseException):
    """Ends a training before its last iteration; Detectron2's loop reports every Exception as a failure."""


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
    # Not out of the global generators, which are the same before each of several runs.
    (result.SEED, *_) = comm.all_gather(secrets.randbelow(2**31))
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


def _kind(optimizer_state: Mapping[str, Any]) -> set[str]:
    """The settings that an optimiser has, which differ between AdamW and SGD."""
    return set(optimizer_state["param_groups"][0]) - {"initial_lr"}
