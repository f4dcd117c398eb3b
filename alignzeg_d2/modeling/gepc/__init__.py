"""Generalization-Enhanced Proposal Classification (Sec. 3.2)."""
