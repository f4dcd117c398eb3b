"""The paper's figures from arrays: Fig. 1."""
