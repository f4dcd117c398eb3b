"""Drills: what happens when runs are killed, disks are full, files are hostile, clients are rude and processes are many.

``python -m benchmarks.drills {kill,disk,fuzz,web,processes,soak}``; each is seeded, bounded in time, and prints a table for
docs/reliability.md. A short form of each is among the tests.
"""
