"""Checkpoints without the frozen part, and with a record of it."""

import pytest
import torch
from torch import nn

from zeroshot_d2.frozen import leave_out_frozen


class Model(nn.Module):
    def __init__(self, sha="1", path="a.pt", width=2):
        super().__init__()
        self.frozen, self.head = nn.BatchNorm1d(3).requires_grad_(False), nn.Linear(3, width)
        self.prompt = nn.Parameter(torch.zeros(1))
        leave_out_frozen(self, ["frozen"], {"backbone": {"pretrained": path, "sha256": sha}})


def test_frozen_weights_stay_out_and_learnt_ones_come_back():
    source, target = Model(), Model(path="elsewhere.pt")
    state = source.state_dict()
    assert set(state) == {"prompt", "head.weight", "head.bias", "frozen_record"}
    before = target.frozen.weight.clone()
    target.load_state_dict(state)
    torch.testing.assert_close(target.head.weight, source.head.weight)
    assert torch.equal(target.frozen.weight, before)
    assert b"elsewhere.pt" in bytes(target.state_dict()["frozen_record"].tolist())


def test_another_frozen_part_is_refused():
    with pytest.raises(ValueError, match=r"with the backbone \{'pretrained': 'b.pt'\} \(2\), this model has .*'a.pt'"):
        Model().load_state_dict(Model(sha="2", path="b.pt").state_dict())


def test_missing_weights_are_refused_even_where_strict_is_off():
    state = Model().state_dict()
    del state["prompt"]
    with pytest.raises(ValueError, match=r"lacks 1 weights of Model.*\['prompt'\]"):
        Model().load_state_dict(state, strict=False)
    with pytest.raises(ValueError, match=r"lacks 4 weights"):
        Model().load_state_dict({}, strict=False)


def test_inside_another_module():
    outer = nn.ModuleDict({"inner": Model()})
    outer.load_state_dict({key: value.clone() for key, value in outer.state_dict().items()})
    with pytest.raises(ValueError, match="trained with the backbone"):
        nn.ModuleDict({"inner": Model(sha="2")}).load_state_dict(outer.state_dict())


def test_too_long_a_record():
    with pytest.raises(ValueError, match="too long for a checkpoint"):
        Model(path="x" * 3000)
