"""The verbs of the command line, a file each: ``python -m zeroshot_d2 VERB``.

Each has a ``main(argv) -> int``, whose docstring's first line is what the list of verbs says. What is a system's own, a verb
finds in the system of the config, see :mod:`zeroshot_d2.system`.
"""
