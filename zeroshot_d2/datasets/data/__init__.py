"""Class and split lists, one JSON file per data set, each with its source."""
