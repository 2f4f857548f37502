"""The fault matrix: faults of real servers, files and workers, each declared once, all run alike.

`matrix` has what a fault is, the list of all, and the rounds of one; `world` is the fleet that it
happens to, `crowd` the sessions that live there meanwhile, `process` a worker that can be killed.
The ``on_…`` files declare the faults. `report` makes ``docs/reliability/faults.md`` of a run's
records (``make reliability``).
"""
