"""The same as `python -m zeroshot_d2 datasets prepare ade20k_847`, which says what it reads and writes."""

from zeroshot_d2.datasets.preparation.ade20k_847 import main

if __name__ == "__main__":
    main()
