"""Trainings of a grid of configs, losses and seeds, and what can be said of the losses by them.

``python -m benchmarks.study GRID.yaml`` trains what is missing, ``--report`` makes the table.
"""
