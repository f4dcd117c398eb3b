"""Preparations of releases that are not already images and label images, a file each.

``python -m zeroshot_d2 datasets prepare NAME`` runs one; each has a ``main(argv)``.
"""
