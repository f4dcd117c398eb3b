"""Without supervision, which brings another OpenCV and is therefore tried in tests/formats."""

import sys

import pytest
from format_examples import example

from zeroshot_d2.segmentation.formats.detections import to_supervision


def test_without_supervision_the_way_to_get_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ModuleNotFoundError, match="install it: pip install supervision"):
        to_supervision(example())
