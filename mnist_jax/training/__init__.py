"""Trains the run that a ``TrainConfig`` describes, writes its directory, and loads it again.

Only ``checkpoint.py`` imports Orbax, and only this folder knows the layout of a run directory.
"""
