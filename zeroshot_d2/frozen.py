"""Models with frozen parts: what is frozen stays out of their state dicts, and nothing that was learnt may be missing.

A checkpoint thus holds the weights that were learnt. Which frozen weights they were learnt upon is in the checkpoint's
record, see :mod:`zeroshot_d2.checkpoint`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

FrozenRecord = Mapping[str, Mapping[str, str]]
"""{what it is, for example "CLIP": {"name": ..., "pretrained": ..., "sha256": ...}}; of two records only "sha256" counts."""


def leave_out_frozen(model: nn.Module, parts: Sequence[str], record: FrozenRecord) -> None:
    """Leave frozen submodules out of the state dict of ``model``, and refuse a state dict that lacks learnt weights.

    Args:
        model: gets hooks, and ``record`` as its ``frozen_record``.
        parts: names of submodules; their buffers and those of their parameters that take no gradient stay out.
        record: what the frozen weights are.
    """
    keys = frozenset(f"{part}.{key}" for part in parts for key in _frozen_keys(model.get_submodule(part)))
    model.frozen_record = record  # type: ignore[assignment]  # nn.Module declares tensors and modules only
    # Functions of this module, so that the model can be pickled.
    model.register_state_dict_post_hook(partial(_leave_out, keys))
    model.register_load_state_dict_pre_hook(_check_completeness)
    model.register_load_state_dict_post_hook(partial(_expect_no_frozen, keys))


def _leave_out(keys: frozenset[str], module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    for key in keys:
        state.pop(prefix + key, None)


def _check_completeness(module: nn.Module, state: Mapping[str, Any], prefix: str, *others: Any) -> None:
    own = module.state_dict()
    other_kind = [
        f"{key} ({state[prefix + key].dtype}, not {value.dtype})"
        for key, value in own.items()
        # Counts, as batch norms have them, may come as the mean of several checkpoints.
        if prefix + key in state and value.is_floating_point() and not state[prefix + key].is_floating_point()
    ]
    if other_kind:
        raise ValueError(f"the checkpoint has weights of another kind, such as {other_kind[0]}: take the original file")
    missing = [prefix + key for key in own if prefix + key not in state]
    if missing:
        raise ValueError(
            f"the checkpoint lacks {len(missing)} weights of {type(module).__name__} or has them in another shape, the "
            f"first being {missing[:3]}: it belongs to another model or config (compare it with the config.yaml beside "
            "the checkpoint)"
        )


def _expect_no_frozen(keys: frozenset[str], module: nn.Module, incompatible: Any) -> None:
    expected = tuple(keys)
    incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if not key.endswith(expected)]


def _frozen_keys(module: nn.Module) -> set[str]:
    learnt = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return set(module.state_dict()) - learnt
