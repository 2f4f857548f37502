"""``trio-sessions doctor``: looks for what is wrong, in plain functions, and changes nothing.

- `_findings`: what is found, and the case that is looked at
- `_patient`: connections that only read
- `_tables`, `_workers`: what to look for on any database
- `_server`, `_activity`, `_bell`: on PostgreSQL
- `_file`: on SQLite
- `_examine`: the order, and what is done when a look fails
- `_command`: options, and what is printed
"""
