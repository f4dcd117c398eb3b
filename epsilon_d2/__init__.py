"""Epsilon (Liu et al., AAAI 2025): multi-label zero-shot classification on Detectron2.

=====================================  ==========================================================
:mod:`epsilon_d2.config`               every key, with the paper's symbol
:mod:`epsilon_d2.epsilon`              the meta-architecture, Fig. 2
:mod:`epsilon_d2.modeling`             a file per box of the figure
:mod:`epsilon_d2.dataset_mapper`       dataset dicts to inputs
:mod:`epsilon_d2.evaluation`           mAP and P, R, F1 at K: ZSL, GZSL and plain classification
:mod:`epsilon_d2.predict`              labels of one's own images, from the command line
:mod:`epsilon_d2.web`                  the same in the browser
:mod:`epsilon_d2.export`               ONNX and torch.export
:mod:`epsilon_d2.visualization`        top-K lists (Fig. 4) and what each group looks at (Fig. 1)
:mod:`epsilon_d2.figures`              the same for a trained model, from the command line
:mod:`epsilon_d2.demo`                 all of it on the demo world
=====================================  ==========================================================

Importing this package registers the model and the data sets with Detectron2's registries; it reads no data.
"""

import zeroshot_d2  # noqa: F401  (first: it says how to get detectron2 where that is missing)
from epsilon_d2.config import add_epsilon_config
from epsilon_d2.dataset_mapper import EpsilonDatasetMapper
from epsilon_d2.epsilon import Epsilon
from epsilon_d2.modeling.backbone import ClipViT, TimmViT
from zeroshot_d2 import demo_world as _demo_world

__all__ = ["ClipViT", "Epsilon", "EpsilonDatasetMapper", "TimmViT", "add_epsilon_config"]

_demo_world.register_builtin()
