"""The same as `python -m zeroshot_d2 datasets prepare open_images_v4`, which says what it reads and writes."""

from zeroshot_d2.datasets.preparation.open_images_v4 import main

if __name__ == "__main__":
    main()
