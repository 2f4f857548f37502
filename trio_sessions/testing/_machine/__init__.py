"""The property suite for a store of your own, a state machine of Hypothesis.

::

    _machine      the rules, by name and argument, as Hypothesis prints them
    _fleet        what each of them does             _pace      how time passes
    _drains       how they are emptied               _namesakes  others of their name
    _workers      registries that live and crash     _door      their way to the store
    _defined      what a subclass defines            _pasted    what an edited history may say
    _lines        transports of clients
    _model        what may be removed, and which rows must be there; knows no registry
    _said         what was accepted: messages and owners    _readers  how they are read
    _overheard    what registries log meanwhile
    _driver       a Trio run that synchronous code drives    _ended  one that is left open

See docs/decisions/0011-proof.md.
"""

from trio_sessions.testing._machine._machine import RegistryMachine

__all__ = ["RegistryMachine"]
