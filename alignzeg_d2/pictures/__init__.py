"""The paper's figures from arrays: Fig. 6 left, Fig. 8, and Fig. 3 of the supplement."""
