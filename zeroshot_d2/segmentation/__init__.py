"""Zero-shot semantic segmentation, whoever's method: data sets, mapper, metrics, evaluation, prediction and pictures.

A model of this task returns, for every input, "sem_seg" (K, H, W) scores or "sem_seg_labels" (H, W) vocabulary indices.
"""
