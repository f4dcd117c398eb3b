"""The same as `python -m zeroshot_d2 datasets prepare voc2012`, which says what it reads and writes."""

from zeroshot_d2.datasets.preparation.voc2012 import main

if __name__ == "__main__":
    main()
