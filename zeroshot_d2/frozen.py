"""Checkpoints of models with frozen parts: what is frozen stays out, and what it was goes in.

A checkpoint holds the weights that were learnt and a record of the frozen ones they were learnt upon. Loading it on top of
others is an error instead of a model whose scores mean nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

_RECORD_BYTES = 2048
_RECORD = "frozen_record"


def guard_checkpoints(model: nn.Module, frozen: Sequence[str], record: Mapping[str, Mapping[str, str]]) -> None:
    """Leave ``frozen`` submodules out of the state dict of ``model``, and check ``record`` when one is loaded.

    A checkpoint that lacks learnt weights, or has them in another shape, is refused too.

    Args:
        model: gets a buffer ``frozen_record`` and hooks.
        frozen: names of submodules; their buffers and those of their parameters that take no gradient stay out.
        record: {what it is, for example "backbone": {"name": ..., "pretrained": ..., "sha256": ...}}. Of two records
            only "sha256" is compared; the rest is for the error message.

    Raises:
        ValueError: the record is too long.
    """
    model.register_buffer(_RECORD, _to_bytes(record))
    keys = frozenset(f"{part}.{key}" for part in frozen for key in _frozen_keys(model.get_submodule(part)))

    def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
        for key in keys:
            state.pop(prefix + key, None)

    def compare(module: nn.Module, state: dict[str, Any], prefix: str, *unused: Any) -> None:
        stored = state.get(prefix + _RECORD)
        if stored is None:
            return  # reported as missing by check_completeness
        theirs = _from_bytes(torch.as_tensor(stored))
        for what, ours in record.items():
            if theirs.get(what, {}).get("sha256") != ours["sha256"]:
                raise ValueError(
                    f"the checkpoint was trained with the {what} {_described(theirs.get(what, {}))}, this model has "
                    f"{_described(ours)}: its scores would be meaningless. Set the config as it was in training (see the "
                    "config.yaml beside the checkpoint)"
                )
        state[prefix + _RECORD] = getattr(module, _RECORD).clone()  # the path of equal weights may differ

    def check_completeness(module: nn.Module, incompatible: Any) -> None:
        missing = [key for key in incompatible.missing_keys if not any(key.endswith(frozen_key) for frozen_key in keys)]
        incompatible.missing_keys[:] = []
        if missing:
            raise ValueError(
                f"the checkpoint lacks {len(missing)} weights of {type(module).__name__} or has them in another shape, the "
                f"first being {missing[:3]}: it belongs to another model or config (compare it with the config.yaml beside "
                "the checkpoint)"
            )

    model.register_state_dict_post_hook(leave_out)
    model.register_load_state_dict_pre_hook(compare)
    model.register_load_state_dict_post_hook(check_completeness)


def _frozen_keys(module: nn.Module) -> set[str]:
    learnt = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return set(module.state_dict()) - learnt


def _described(entry: Mapping[str, str]) -> str:
    facts = {key: value for key, value in entry.items() if key != "sha256"}
    return f"{facts or 'unknown'} ({entry.get('sha256', 'not recorded')[:12]})"


def _to_bytes(record: Mapping[str, Any]) -> Tensor:
    """A uint8 tensor of fixed length, which Detectron2's checkpointer can carry."""
    text = json.dumps(record, sort_keys=True).encode()
    if len(text) > _RECORD_BYTES:
        raise ValueError(f"the record of frozen weights is too long for a checkpoint; shorten its paths: {record}")
    return torch.tensor(list(text.ljust(_RECORD_BYTES)), dtype=torch.uint8)


def _from_bytes(record: Tensor) -> dict[str, dict[str, str]]:
    return json.loads(bytes(record.cpu().tolist()).decode())
