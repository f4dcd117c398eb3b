"""The plain forms that the cost benchmark compares with compute the same thing."""

import pytest
from detectron2.data import MetadataCatalog

from benchmarks import epsilon_cost


def test_plain_loss(monkeypatch):
    for name, value in {"BATCH": 6, "SEEN": 400, "WIDTH": 20}.items():
        monkeypatch.setattr(epsilon_cost, name, value)
    assert epsilon_cost.loss_ours() == pytest.approx(epsilon_cost.loss_plain(), rel=1e-5)


@pytest.mark.parametrize("complete", [True, False])
def test_plain_evaluator(complete, monkeypatch):
    monkeypatch.setattr(epsilon_cost, "ANNOTATED", 4)
    size = {"images": 60, "classes": 30, "unseen": 8, "top_k": (2, 5)}
    plain = epsilon_cost.evaluator_plain(size, complete)
    try:
        assert epsilon_cost.evaluator_ours(size, complete) == pytest.approx(plain) and len(plain) == 12
    finally:
        MetadataCatalog.remove("cost")


def test_cases_have_two_forms_each():
    names = list(epsilon_cost.cases(100))
    assert [name.rpartition(", ")[2] for name in names] == ["ours", "plain"] * 3
