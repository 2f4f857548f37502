"""Mutation score: small faults are put into the code one by one, and a test has to notice each.

``make mutants``, which is ``python -m mutants`` with ``tests`` on the path, makes the mutants of a
module (`mutants.making`, with the operators of mutmut), and runs each with the tests that meet its
lines, the fastest first (`mutants.meeting`). A server collects all tests once and forks for each
mutant (`mutants.server`); `mutants.running` has the copy of the tree, the order, what is known
already, and the time. `mutants.judging` compares the survivors with ``explained.toml``, and writes
``docs/reliability/mutants.md``.

Of mutmut only the operators are taken. Its own runner leaves decorated functions out, knows which
tests meet a function but not a line, and takes no samples; cosmic-ray collects the tests anew for
each mutant, which takes longer than to run them.
"""
