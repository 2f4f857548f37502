"""Random trials: what callers and signals cut, on every host.

``python -m trials HOST KIND SEED COUNT`` makes trials and prints a line of JSON for each; a
process of its own, since a hang ends it. `trials.parent` runs it and counts, `tests/test_trials.py`
asserts. Each trial is made from its seed alone, so the same command with a count of 1 replays it,
as far as the clock allows.

`sides` has what a trial needs of a loop, `hosts` where trials run, `world` the sessions and what
must be true of them, `storm` the trials of cancellations and deadlines, `presses` those of Ctrl-C.
"""
