"""Multi-label zero-shot classification, whoever's method: data sets, mapper, ranking, evaluation, prediction and pictures.

A model of this task returns, for every input, "scores" (K,).
"""
