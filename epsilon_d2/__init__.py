"""Epsilon (Liu et al., AAAI 2025): multi-label zero-shot classification on Detectron2.

===================================  ============================================================
:mod:`epsilon_d2.config`             every key, with the paper's symbol
:mod:`epsilon_d2.system`             what the paper plugs into the house
:mod:`epsilon_d2.epsilon`            the meta-architecture, Fig. 2
:mod:`epsilon_d2.tagger`             what it shares with the methods that it is compared with
:mod:`epsilon_d2.modeling`           a file per box of the figure
:mod:`epsilon_d2.predictor`          any vocabulary, from Python
:mod:`epsilon_d2.export`             ONNX and torch.export
:mod:`epsilon_d2.pictures`           the paper's figures from arrays
:mod:`epsilon_d2.figures`            the same for a trained model
:mod:`epsilon_d2.web_tab`            the tab of the web page
:mod:`epsilon_d2.demo`               the report of the demo world
===================================  ============================================================

Importing this package registers the model with Detectron2's registries and the system with ours; it reads no data.
"""

import zeroshot_d2  # noqa: F401  (first: it says how to get detectron2 where that is missing)
from epsilon_d2.config import add_epsilon_config
from epsilon_d2.epsilon import Epsilon
from epsilon_d2.modeling.backbone import ClipViT, TimmViT
from epsilon_d2.system import SYSTEM
from zeroshot_d2.system import register_system

__all__ = ["ClipViT", "Epsilon", "TimmViT", "add_epsilon_config"]

register_system(SYSTEM)
