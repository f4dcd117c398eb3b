"""Optimiser, learning-rate schedule and length of the training, from the config."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler, get_default_optimizer_params
from detectron2.solver import build_lr_scheduler as build_d2_lr_scheduler
from detectron2.solver.build import (
    _generate_optimizer_class_with_gradient_clipping,
    maybe_add_gradient_clipping,
    reduce_param_groups,
)
from fvcore.common.param_scheduler import ParamScheduler
from timm.optim import RMSpropTF
from torch import nn

logger = logging.getLogger(__name__)

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "ADAMW": torch.optim.AdamW,
    "ADAM": torch.optim.Adam,
    "SGD": torch.optim.SGD,
    "RMSPROP": RMSpropTF,
}


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Groups of the parameters that require a gradient, each with its rate and weight decay.

    Detectron2's rules, and ``SOLVER.WEIGHT_DECAY_EMBED`` for the weights of ``nn.Embedding`` and for parameters whose
    last name is in ``SOLVER.WEIGHT_DECAY_EMBED_NAMES``.
    """
    groups = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    embeddings = [
        parameter
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad and (isinstance(module, nn.Embedding) or name in cfg.SOLVER.WEIGHT_DECAY_EMBED_NAMES)
    ]
    if embeddings:  # a later group overrides an earlier one
        groups = reduce_param_groups([*groups, {"params": embeddings, "weight_decay": cfg.SOLVER.WEIGHT_DECAY_EMBED}])
    if not groups:
        raise ValueError(f"{type(model).__name__} has no parameter that requires a gradient: there is nothing to train")
    return groups


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser of ``SOLVER.OPTIMIZER`` with the gradient clipping of ``SOLVER.CLIP_GRADIENTS``."""
    name = cfg.SOLVER.OPTIMIZER.upper()
    if name not in OPTIMIZERS:
        raise ValueError(f"SOLVER.OPTIMIZER {cfg.SOLVER.OPTIMIZER!r} is unknown; choose one of {sorted(OPTIMIZERS)}")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE == "full_model":

        def clip_all(parameters: Iterable[torch.Tensor]) -> None:
            nn.utils.clip_grad_norm_(list(parameters), clip.CLIP_VALUE, clip.NORM_TYPE)

        optimizer_class = _generate_optimizer_class_with_gradient_clipping(OPTIMIZERS[name], global_clipper=clip_all)
    else:
        optimizer_class = maybe_add_gradient_clipping(cfg, OPTIMIZERS[name])
    arguments: dict[str, Any] = {"lr": cfg.SOLVER.BASE_LR, "weight_decay": cfg.SOLVER.WEIGHT_DECAY}
    if name == "SGD":
        arguments.update(momentum=cfg.SOLVER.MOMENTUM, nesterov=cfg.SOLVER.NESTEROV)
    elif name == "RMSPROP":
        arguments.update(momentum=cfg.SOLVER.MOMENTUM, alpha=cfg.SOLVER.RMSPROP_DECAY, eps=cfg.SOLVER.RMSPROP_EPS)
    return optimizer_class(parameter_groups(cfg, model), **arguments)


class PolyParamScheduler(ParamScheduler):
    """(1 - progress) ** power, but never below ``constant_ending``; progress runs from 0 to 1."""

    def __init__(self, power: float, constant_ending: float) -> None:
        self.power, self.constant_ending = power, constant_ending

    def __call__(self, where: float) -> float:
        return max((1.0 - where) ** self.power, self.constant_ending)


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Detectron2's schedules, and ``"WarmupPolyLR"``.

    The latter is not the class of that name in Detectron2's DeepLab project, because that one keeps its MAX_ITER in the
    checkpoint: a resumed run could not be made longer. Both give the same rates without warm-up.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_d2_lr_scheduler(cfg, optimizer)
    schedule = WarmupParamScheduler(
        PolyParamScheduler(cfg.SOLVER.POLY_LR_POWER, cfg.SOLVER.POLY_LR_CONSTANT_ENDING),
        cfg.SOLVER.WARMUP_FACTOR,
        min(cfg.SOLVER.WARMUP_ITERS / cfg.SOLVER.MAX_ITER, 1.0),
        cfg.SOLVER.WARMUP_METHOD,
        cfg.SOLVER.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=schedule, max_iter=cfg.SOLVER.MAX_ITER)


def epochs_to_iterations(cfg: CfgNode, num_images: int) -> CfgNode:
    """``cfg`` with MAX_ITER and STEPS computed from MAX_EPOCHS and STEPS_EPOCHS; ``cfg`` itself if MAX_EPOCHS is 0.

    Rounded up, so that each of the ``num_images`` images is seen at least MAX_EPOCHS times. Steps stay distinct and below
    MAX_ITER, also where an epoch is less than an iteration; those for which there is no iteration are left out.
    """
    if cfg.SOLVER.MAX_EPOCHS < 0:
        raise ValueError(f"SOLVER.MAX_EPOCHS {cfg.SOLVER.MAX_EPOCHS} is negative; 0 means SOLVER.MAX_ITER iterations")
    if cfg.SOLVER.MAX_EPOCHS == 0:
        return cfg

    def iterations(epochs: float) -> int:
        return math.ceil(epochs * num_images / cfg.SOLVER.IMS_PER_BATCH)

    result = cfg.clone()
    result.defrost()
    result.SOLVER.MAX_ITER = iterations(cfg.SOLVER.MAX_EPOCHS)
    steps: list[int] = []
    for epochs in sorted(cfg.SOLVER.STEPS_EPOCHS):
        step = max(iterations(epochs), steps[-1] + 1 if steps else 1)
        if step >= result.SOLVER.MAX_ITER:
            logger.warning(
                "%d images make %d iterations: too few for the step of SOLVER.STEPS_EPOCHS after %s epochs",
                *(num_images, result.SOLVER.MAX_ITER, epochs),
            )
            break
        steps.append(step)
    result.SOLVER.STEPS = tuple(steps)
    if cfg.is_frozen():
        result.freeze()
    logger.info(
        "%s epochs of %d images in batches of %d: %d iterations, steps at %s",
        cfg.SOLVER.MAX_EPOCHS,
        num_images,
        cfg.SOLVER.IMS_PER_BATCH,
        result.SOLVER.MAX_ITER,
        result.SOLVER.STEPS,
    )
    return result
