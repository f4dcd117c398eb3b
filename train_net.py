#!/usr/bin/env python
"""Train and evaluate: the same as `python -m zeroshot_d2 train`. Takes Detectron2's own arguments.

    python train_net.py --config-file configs/coco/alignzeg.yaml --num-gpus 8
    python train_net.py --config-file configs/nus_wide/epsilon.yaml --num-gpus 8
    python train_net.py --config-file configs/coco/alignzeg.yaml --num-gpus 8 --resume
    python train_net.py --config-file configs/coco/alignzeg.yaml --eval-only MODEL.WEIGHTS model_final.pth

The config names its system, which is found in the registry; --import MODULE brings your own.
"""

import sys

from zeroshot_d2.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
