"""The boxes of Fig. 2, one file each."""
