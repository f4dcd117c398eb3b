"""One step of a training: its batch in one piece or in several, in full or in mixed precision."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from .precision import PRECISIONS
from .stopping import check_finite
from .training_stream import Sample, TrainingLoader

logger = logging.getLogger(__name__)


class TrainingStep(SimpleTrainer):
    """Detectron2's step, which also accumulates gradients, and ends at a loss that is not finite before it changes weights.

    With ``parts`` above 1, a batch goes through the network in so many pieces, whose gradients are summed in proportion to
    their images, so that a GPU holds the activations of one piece. A loss that is a mean over images stays the same. What
    looks at a whole batch (a count that a loss is divided by, or AlignZeg's feature expansion) sees a piece of it.
    """

    skipped = 0

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainingLoader,
        optimizer: torch.optim.Optimizer,
        *,
        parts: int = 1,
        precision: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: possibly wrapped for several processes.
            data_loader: this process's batches.
            optimizer: its optimiser.
            parts: pieces of a batch.
            precision: of mixed precision; None: float32 throughout.
        """
        super().__init__(model, data_loader, optimizer)
        self.parts, self.precision = parts, precision
        self.device = next(model.parameters()).device
        # Gradients in float16 would underflow; bfloat16 has float32's range.
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=precision is torch.float16)

    @classmethod
    def of_config(
        cls, cfg: CfgNode, model: nn.Module, data_loader: TrainingLoader, optimizer: torch.optim.Optimizer
    ) -> TrainingStep:
        """The step of SOLVER.ACCUMULATION_STEPS and SOLVER.AMP.

        Raises:
            ValueError: a process's share of the batch cannot be cut into so many pieces.
        """
        parts, share = cfg.SOLVER.ACCUMULATION_STEPS, cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        if parts > share:
            raise ValueError(
                f"SOLVER.ACCUMULATION_STEPS {parts} exceeds the {share} image(s) that a process has in a batch "
                f"(SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH}, {comm.get_world_size()} process(es)): lower it"
            )
        precision = None
        if cfg.SOLVER.AMP.ENABLED:
            precision = PRECISIONS[cfg.SOLVER.AMP.DTYPE]
            if next(model.parameters()).device.type != "cuda" and precision is torch.float16:
                logger.info(
                    "SOLVER.AMP.ENABLED is ignored: float16 is for CUDA devices; SOLVER.AMP.DTYPE bfloat16 runs here"
                )
                precision = None
        return cls(model, data_loader, optimizer, parts=parts, precision=precision)

    def run_step(self) -> None:
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        batch: list[Sample] = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        self.optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        pieces = _pieces(batch, self.parts)
        for number, piece in enumerate(pieces, start=1):
            share = len(piece) / len(batch)
            # Processes add up their gradients once, behind the last piece.
            waiting = getattr(self.model, "no_sync", None) if number < len(pieces) else None
            with contextlib.nullcontext() if waiting is None else waiting():
                with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                    found = self.model(piece)
                    found = {"total_loss": found} if isinstance(found, Tensor) else found
                    loss = sum(found.values())
                self.grad_scaler.scale(share * loss).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + share * value.detach()
        self.after_backward()
        self._write_metrics(losses, data_time)
        self._take_step()

    def _take_step(self) -> None:
        """Change the weights; a step whose gradients overflow in float16 is skipped, counted and shown."""
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        if not self.grad_scaler.is_enabled():
            return
        if self.grad_scaler.get_scale() < scale:
            self.skipped += 1
            logger.warning("iteration %d is skipped: a gradient was not finite (%d so far)", self.iter, self.skipped)
        get_event_storage().put_scalar("amp_skipped_steps", self.skipped, smoothing_hint=False)

    def _write_metrics(
        self, loss_dict: Mapping[str, Tensor], data_time: float, prefix: str = "", iter: int | None = None
    ) -> None:
        check_finite(loss_dict, self.iter, self.data_loader.images)
        super()._write_metrics(loss_dict, data_time, prefix, iter)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if self.grad_scaler.is_enabled():
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.grad_scaler.is_enabled() and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _pieces(batch: Sequence[Sample], parts: int) -> list[list[Sample]]:
    """``batch`` in ``parts`` pieces whose sizes differ by at most one."""
    bounds = [round(len(batch) * part / parts) for part in range(parts + 1)]
    return [list(batch[start:stop]) for start, stop in zip(bounds[:-1], bounds[1:], strict=True)]
