"""The tables of the how-to "run the property suite" have each rule, and what it may be given."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from trio_sessions.testing import RegistryMachine

PAGE = (Path(__file__).parent.parent / "docs" / "howto" / "property-suite.md").read_text("utf-8")
WORDS = re.compile(r"'\w+'|\b\d[\d.]*|\bNone\b|\bTrue\b|\bFalse\b")


def arguments_of(function: Callable[..., object]) -> Mapping[str, Any] | None:
    """Return the strategies for a rule's arguments; None: it is no rule."""
    for kind in ("hypothesis_stateful_rule", "hypothesis_stateful_initialize_rule"):
        if hasattr(function, kind):
            arguments: Mapping[str, Any] = getattr(function, kind).arguments
            return arguments
    return None


RULES = {
    name: arguments
    for name, function in vars(RegistryMachine).items()
    if (arguments := arguments_of(function)) is not None
}


def rows(of: str) -> dict[str, str]:
    """Return the rows of the table with this head."""
    table = PAGE.partition(f"| {of} | ")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.MULTILINE))


def test_each_rule_is_in_the_table() -> None:
    """With its arguments, and the first line of its docstring."""
    assert len(RULES) > 20
    assert rows("Rule") == {
        f"`{name}({', '.join(arguments)})`": (
            (inspect.getdoc(getattr(RegistryMachine, name)) or "").split("\n")[0].replace("``", "`")
        )
        for name, arguments in RULES.items()
    }


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_may_be_given_is_in_the_table(rule: str) -> None:
    """The very words that Hypothesis draws, in their order."""
    table = rows("Argument")
    for argument, strategy in RULES[rule].items():
        drawn = repr(strategy)
        said = table.get(f"`{argument}` of `{rule}`") or table[f"`{argument}`"]
        said = said.replace('"', "'").partition(":")[0]
        assert WORDS.findall(said) == WORDS.findall(drawn), argument


def test_how_much_is_run_without_settings_is_said() -> None:
    """It is what Hypothesis does where nobody has said anything else."""
    default = settings.get_profile("default")
    steps = f"{default.max_examples} histories of up to {default.stateful_step_count} steps"
    assert steps in PAGE
