"""A fleet of real registries on a simulated database, with all faults that we know, from a seed.

::

    _run           one run: steps, then peace
    _rules         what may happen in a step           _mixes     how often
    _disasters     what becomes of the database
    _words         what is said of sessions: _data_rules, _log_rules
    _adoption_rules, _orphan_rules, _drain_rules    sessions go to other workers
    _lease_rules    leases are lost, and old claims come late
    _limit_rules, _mail_rules    the other optional parts of the contract
    _question_rules    what operators ask           _states    whether workers live
    _judge         the invariants
    _clients       connections, which are transports    _workers   registries that pause and die
    _link          one worker's store      _way     to the database, and what goes wrong on it
    _database      commits in one order; goes back, lags, hides
    _tables        its rows, copied at each commit      _truth     what has really become of them
    _simulate      many runs       _report  their sum, on a _page    _picture  one that failed
    _profiles      the same runs each time, few or many
    _events        the trace                            _quiet     no log meanwhile

See docs/decisions/0011-proof.md.
"""

from trio_sessions.testing._simulation._mixes import MIXES
from trio_sessions.testing._simulation._page import page
from trio_sessions.testing._simulation._picture import picture
from trio_sessions.testing._simulation._profiles import DEEP, PROFILES
from trio_sessions.testing._simulation._report import SimulationReport, counted
from trio_sessions.testing._simulation._run import MOST_WORKERS, Run, run_once
from trio_sessions.testing._simulation._simulate import Planned, plan, play, simulate

__all__ = [
    "DEEP",
    "MIXES",
    "MOST_WORKERS",
    "PROFILES",
    "Planned",
    "Run",
    "SimulationReport",
    "counted",
    "page",
    "picture",
    "plan",
    "play",
    "run_once",
    "simulate",
]
