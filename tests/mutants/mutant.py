"""What one is, without the tools that make them, which take long to import."""

from dataclasses import dataclass

__all__ = ["Mutant"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One small fault."""

    module: str
    """The path of the module, from the root of the project."""
    function: str
    """The qualified name of the function or class that it is in; empty where it is in none."""
    mutation: str
    """The lines before and after, so that the mutant is known again when others change."""
    operator: str
    lines: range
    """Of the statement."""
    in_function: bool
    """Else it runs when the module is imported."""
    source: str
    """The text of the whole module with the fault."""

    def __str__(self) -> str:
        return f"{self.module} {self.function}: {self.mutation}"
