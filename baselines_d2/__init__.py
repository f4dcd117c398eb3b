"""The methods that the papers compare with, on the parts of AlignZeg, Epsilon and the house: a file per method.

===================================  ============================================================
:mod:`baselines_d2.san`              SAN, the side adapter network (CVPR 2023)
:mod:`baselines_d2.import_san`       weights that SAN's authors released as a model of this project
:mod:`baselines_d2.zegclip`          ZegCLIP (CVPR 2023)
:mod:`baselines_d2.two_stage`        SimBaseline (ECCV 2022) and ZegFormer (CVPR 2022)
:mod:`baselines_d2.token_tagger`     what the taggers below share: a head on Epsilon's frozen tokens
:mod:`baselines_d2.fast0tag`         Fast0Tag (CVPR 2016)
:mod:`baselines_d2.sdl`              SDL, semantic diversity learning (ICCV 2021)
:mod:`baselines_d2.lesa`             LESA, shared multi-attention (CVPR 2020)
:mod:`baselines_d2.biam`             BiAM, bi-level attention (ICCV 2021)
:mod:`baselines_d2.ml2p`             the (ML)2P-Encoder (CVPR 2023)
===================================  ============================================================

Importing this package registers the models with Detectron2's registry and the systems with ours; it reads no data.
"""

import zeroshot_d2  # noqa: F401  (first: it says how to get detectron2 where that is missing)
from baselines_d2 import biam, fast0tag, lesa, ml2p, san, sdl, two_stage, zegclip
from zeroshot_d2.system import register_system

for method in (san, zegclip, two_stage, fast0tag, sdl, lesa, biam, ml2p):
    register_system(method.SYSTEM)
