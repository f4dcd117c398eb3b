"""Names of classes and files are drawn letter by letter."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from zeroshot_d2.pictures import texts
from zeroshot_d2.pictures.style import class_text, figure_pixels, new_figure
from zeroshot_d2.pictures.texts import families_for
from zeroshot_d2.vocabulary import as_vocabulary


@pytest.fixture(autouse=True)
def fresh_cache():
    families_for.cache_clear()
    yield
    families_for.cache_clear()


def drawn(text: str) -> np.ndarray:
    figure = new_figure(3.0, 1.0)
    axes = figure.subplots()
    axes.set_title(text)
    axes.set_xticks([0.0, 1.0], [text, "b"])
    return figure_pixels(figure, dpi=60)


@pytest.mark.parametrize("name", ["$100 $ bill", "cash $ and $ carry", "$\\frac$", "a_b^c", "$", r"\$", "$$"])
def test_a_dollar_is_a_dollar(name):
    split = as_vocabulary([name, "plain"])
    assert class_text(split, 0) == name
    assert (drawn(name) < 128).any()
    assert not np.array_equal(drawn("$ab$"), drawn("ab"))


@pytest.mark.parametrize("text", ["★ giraffe", "threshold γ", "Straße, café", "line\nbreak", ""])
def test_matplotlibs_own_font_has_these(text, caplog):
    assert families_for(text) == ("DejaVu Sans",)
    assert not caplog.records


@pytest.mark.parametrize("text", ["长颈鹿", "हिन्दी"])
def test_other_scripts_take_a_font_that_has_them(text, monkeypatch, caplog):
    plain = texts._characters(texts.font_manager.findfont("DejaVu Sans"))
    have = {"other.ttf": frozenset(), "script.ttf": frozenset(map(ord, text))}
    monkeypatch.setattr(texts, "_installed", lambda: (("Other", "other.ttf"), ("Noto Sans Script", "script.ttf")))
    monkeypatch.setattr(texts, "_characters", lambda path: have.get(path, plain))
    assert families_for(text) == ("DejaVu Sans", "Noto Sans Script")
    assert not caplog.records


def test_scripts_without_a_font_are_named_once(monkeypatch, caplog):
    monkeypatch.setattr(texts, "_installed", lambda: ())
    with caplog.at_level(logging.WARNING):
        assert families_for("长颈鹿") == families_for("长颈鹿") == ("DejaVu Sans",)
    assert len(caplog.records) == 1
    assert "长颈鹿" in caplog.text and "fonts-noto-cjk" in caplog.text
