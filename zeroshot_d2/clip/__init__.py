"""CLIP by name, and text prototypes from it."""
