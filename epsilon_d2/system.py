"""Epsilon as a system of the house: what this paper plugs in."""

from __future__ import annotations

from epsilon_d2.config import add_epsilon_config
from zeroshot_d2.system import System

SYSTEM = System(
    name="Epsilon",
    task="multilabel",
    add_config=add_epsilon_config,
    parts={
        "predictor": "epsilon_d2.predictor:EpsilonPredictor",
        "exporter": "epsilon_d2.export:Exporter",
        "figures": "epsilon_d2.figures:FIGURES",
        "web_tab": "epsilon_d2.web_tab:TagsTab",
        "demo": "epsilon_d2.demo:Demo",
    },
)
