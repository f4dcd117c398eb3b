"""The same as `python -m zeroshot_d2 datasets prepare pascal_context_459`, which says what it reads and writes."""

from zeroshot_d2.datasets.preparation.pascal_context_459 import main

if __name__ == "__main__":
    main()
