"""The same as `python -m zeroshot_d2 datasets prepare nus_wide`, which says what it reads and writes."""

from zeroshot_d2.datasets.preparation.nus_wide import main

if __name__ == "__main__":
    main()
