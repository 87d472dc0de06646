"""Runs: from a ``TrainConfig`` to a state, through the epochs, to a directory of files, and back from it.

Only ``checkpoint.py`` knows Orbax, and only this room knows where the files of a run lie.
"""
