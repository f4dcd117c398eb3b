"""The rooms of Epsilon, one file per box of Fig. 2."""
