"""State dicts without the frozen part, and the refusal of those that lack what was learnt."""

import copy
import pickle

import pytest
import torch
from torch import nn

from zeroshot_d2.frozen import leave_out_frozen

RECORD = {"backbone": {"pretrained": "a.pt", "sha256": "1"}}


class Model(nn.Module):
    """A frozen part with buffers and a learnt prompt in it, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.BatchNorm1d(3).requires_grad_(False), nn.Linear(3, 2)
        self.frozen.prompt = nn.Parameter(torch.zeros(1))
        leave_out_frozen(self, ["frozen"], RECORD)


LEARNT = {"frozen.prompt", "head.weight", "head.bias"}


def test_frozen_weights_stay_out_and_learnt_ones_come_back():
    source, target = Model(), Model()
    state = source.state_dict()
    assert set(state) == LEARNT
    with torch.no_grad():
        target.frozen.weight.fill_(7.0)
    target.load_state_dict(state)
    torch.testing.assert_close(target.head.weight, source.head.weight)
    assert (target.frozen.weight == 7).all()
    assert source.frozen_record == RECORD


def test_a_state_dict_that_has_frozen_weights_too_is_taken():
    source = Model()
    state = {**source.state_dict(), "frozen.weight": torch.full((3,), 5.0)}
    target = Model()
    target.load_state_dict(state)
    assert (target.frozen.weight == 5).all()


@pytest.mark.parametrize("strict", [True, False])
def test_missing_weights_are_refused_even_where_strict_is_off(strict):
    state = Model().state_dict()
    del state["frozen.prompt"]
    with pytest.raises(ValueError, match=r"lacks 1 weights of Model.*\['frozen\.prompt'\].*config\.yaml beside"):
        Model().load_state_dict(state, strict=strict)
    with pytest.raises(ValueError, match=r"lacks 3 weights"):
        Model().load_state_dict({}, strict=strict)


def test_a_learnt_weight_whose_name_ends_as_a_frozen_one_does_is_missed():
    outer = Model()
    outer.other = nn.ModuleDict({"frozen": nn.BatchNorm1d(3)})  # "other.frozen.weight" is learnt, "frozen.weight" is not
    state = {key: value for key, value in outer.state_dict().items() if key != "other.frozen.weight"}
    with pytest.raises(ValueError, match=r"lacks 1 weights of Model.*\['other\.frozen\.weight'\]"):
        outer.load_state_dict(state)


def test_inside_another_module():
    outer = nn.ModuleDict({"inner": Model()})
    state = outer.state_dict()
    assert set(state) == {f"inner.{key}" for key in LEARNT}
    outer.load_state_dict({key: value.clone() for key, value in state.items()})
    del state["inner.head.bias"]
    with pytest.raises(ValueError, match=r"lacks 1 weights of Model.*\['inner\.head\.bias'\]"):
        nn.ModuleDict({"inner": Model()}).load_state_dict(state)


def test_the_mean_of_checkpoints_is_taken_with_the_counts_of_batch_norms():
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.frozen = nn.BatchNorm1d(2), nn.Linear(2, 2).requires_grad_(False)
            leave_out_frozen(self, ["frozen"], RECORD)

    model = Normalised()
    model.norm(torch.randn(3, 2))
    mean = {key: (value + model.state_dict()[key]) / 2 for key, value in Normalised().state_dict().items()}
    assert mean["norm.num_batches_tracked"].dtype.is_floating_point
    model.load_state_dict(mean)
    torch.testing.assert_close(model.norm.running_mean, mean["norm.running_mean"])
    with pytest.raises(ValueError, match=r"of another kind, such as norm\.weight \(torch\.int8, not torch\.float32\)"):
        model.load_state_dict({**mean, "norm.weight": torch.zeros(2, dtype=torch.int8)})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_leaves_out_the_same(copied):
    model = copied(Model())
    assert set(model.state_dict()) == LEARNT and model.frozen_record == RECORD
    assert model.frozen.weight.shape == (3,)  # it is there all the same
    with pytest.raises(ValueError, match="lacks 3 weights"):
        model.load_state_dict({})


def test_a_part_that_is_not_there_is_an_error():
    with pytest.raises(AttributeError, match="absent"):
        leave_out_frozen(nn.ModuleDict({"head": nn.Linear(1, 1)}), ["absent"], {})
