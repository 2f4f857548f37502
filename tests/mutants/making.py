"""What is changed: the mutants of the text of a module."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import libcst as cst
from libcst.metadata import CodePosition, CodeRange, MetadataWrapper, PositionProvider
from libcst.metadata import WhitespaceInclusivePositionProvider as WholeProvider
from mutmut.mutation import mutators

from mutants.mutant import Mutant

__all__ = ["make_mutants"]


def _remove(node: cst.BaseSmallStatement) -> Iterable[cst.CSTNode]:
    """Leave a statement out, where no name is missing then."""
    if isinstance(node, cst.Assign | cst.AnnAssign):
        targets = node.targets if isinstance(node, cst.Assign) else [node]
        kept = [one.target for one in targets if isinstance(one.target, cst.Name | cst.Tuple)]
        if kept:
            return
    if not (isinstance(node, cst.Expr) and isinstance(node.value, cst.BaseString | cst.Ellipsis)):
        yield cst.Pass()


def _go_on(node: cst.Break) -> Iterable[cst.CSTNode]:
    yield cst.Continue(semicolon=node.semicolon)


def _negate(test: cst.BaseExpression) -> Iterable[cst.CSTNode]:
    """Turn a condition round; where it is a comparison, other operators do."""
    if not isinstance(test, cst.Comparison | cst.UnaryOperation | cst.Name) or (
        isinstance(test, cst.Name) and test.value != "True"
    ):
        inner = test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
        yield cst.UnaryOperation(cst.Not(), inner)


def _swap_arguments(node: cst.Call) -> Iterable[cst.CSTNode]:
    """Exchange the first two arguments."""
    match node.args:
        case [first, second, *_] if not (
            first.star or second.star or first.keyword or second.keyword
        ) and not first.value.deep_equals(second.value):
            swapped = (
                first.with_changes(value=second.value),
                second.with_changes(value=first.value),
            )
            yield node.with_changes(args=[*swapped, *node.args[2:]])


def _drop_keyword(node: cst.Call) -> Iterable[cst.CSTNode]:
    """Leave a named argument out, so that its default counts, if it has one."""
    for at, argument in enumerate(node.args):
        if argument.keyword is not None:
            yield node.with_changes(args=[*node.args[:at], *node.args[at + 1 :]])


_EXPRESSIONS = (
    cst.BinaryOperation,
    cst.UnaryOperation,
    cst.BooleanOperation,
    cst.ComparisonTarget,
    cst.AugAssign,
)
_KEYWORDS = (cst.Is, cst.IsNot, cst.In, cst.NotIn, cst.Continue)
_SMALL = (cst.Expr, cst.Assign, cst.AnnAssign, cst.AugAssign, cst.Del, cst.Raise)
_OPERATORS: list[tuple[str, Any, Callable[[Any], Iterable[cst.CSTNode]]]] = [
    ("comparison, boolean, arithmetic", _EXPRESSIONS, mutators.operator_swap_op),
    ("`is`, `in`, `break`, `continue`", _KEYWORDS, mutators.operator_keywords),
    ("`is`, `in`, `break`, `continue`", cst.Break, _go_on),
    ("`not`", cst.UnaryOperation, mutators.operator_remove_unary_ops),
    ("number", cst.BaseNumber, mutators.operator_number),
    ("`True`, `False`", cst.Name, mutators.operator_name),
    ("`if` … `else`", cst.IfExp, mutators.operator_if_exp),
    ("`case` left out", cst.Match, mutators.operator_match),
    ("`lambda`", cst.Lambda, mutators.operator_lambda),
    ("method of strings", cst.Call, mutators.operator_symmetric_string_methods_swap),
    ("statement left out", _SMALL, _remove),
    ("arguments exchanged", cst.Call, _swap_arguments),
    ("argument left out", cst.Call, _drop_keyword),
]
_OUTSIDE = {"number", "`True`, `False`"}  # of functions: whatever else fails at the import
_NOT_THERE = re.compile(r"\s*(raise AssertionError\(|assert_never\()")  # unless all is lost anyway
_NOT_INSIDE = (cst.Annotation, cst.Decorator, cst.Import, cst.ImportFrom, cst.Assert, cst.Raise)
_NOT_ARGUMENTS = re.compile(r"logger\.\w+|isinstance|cast|TypeVar|min|max")


class _Maker(cst.CSTVisitor):
    METADATA_DEPENDENCIES = (PositionProvider, WholeProvider)

    def __init__(self, module: str, text: str, tree: cst.Module) -> None:
        super().__init__()
        self.made: list[Mutant] = []
        self._module, self._text, self._tree = module, text, tree
        self._starts = [0]
        for line in text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._names: list[str] = []
        self._functions = 0
        self._statement = range(0)
        self._seen: Counter[tuple[str, str]] = Counter()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef | cst.ClassDef):
            self._names.append(node.name.value)
            self._functions += isinstance(node, cst.FunctionDef)
        if isinstance(node, cst.Parameters):
            self._functions -= 1  # defaults are made where the function is
        if isinstance(node, cst.BaseCompoundStatement):
            self._statement = range(0)
        if isinstance(node, cst.SimpleStatementLine):
            self._statement = self._lines(node)
        if isinstance(node, cst.SimpleStatementLine) and _NOT_THERE.match(self._code(node)):
            return False
        if isinstance(node, cst.Call) and _NOT_ARGUMENTS.fullmatch(self._code(node.func)):
            return not self._code(node.func).startswith("logger")
        if isinstance(node, cst.If | cst.While):
            for mutated in _negate(node.test):
                self._add("`not`", node.test, mutated)
        for operator, kinds, mutate in _OPERATORS:
            if isinstance(node, kinds) and (self._functions or operator in _OUTSIDE):
                for mutated in mutate(node):
                    self._add(operator, node, mutated)
        return not isinstance(node, _NOT_INSIDE)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        if isinstance(original_node, cst.FunctionDef | cst.ClassDef):
            self._names.pop()
            self._functions -= isinstance(original_node, cst.FunctionDef)
        if isinstance(original_node, cst.Parameters):
            self._functions += 1

    def _code(self, node: cst.CSTNode) -> str:
        return self._tree.code_for_node(node)

    def _add(self, operator: str, node: cst.CSTNode, mutated: cst.CSTNode) -> None:
        if self._names[-1:] == ["__init__"] and isinstance(node, cst.Assign | cst.AnnAssign):
            return  # an attribute that is not there at all is noticed by everybody
        whole = self.get_metadata(WholeProvider, node)
        assert isinstance(whole, CodeRange)
        start, end = self._offset(whole.start), self._offset(whole.end)
        if not isinstance(node, cst.BaseCompoundStatement):
            new = self._code(mutated)
            line, newline, rest = self._text[end:].partition("\n")
            blank = "\n" * (self._text.count("\n", start, end) - new.count("\n"))
            result = f"{self._text[:start]}{new}{line}{newline}{blank}{rest}"
        else:  # it does not know its own indentation
            result = cst.ensure_type(self._tree.deep_replace(node, mutated), cst.Module).code
        lines = self._lines(node)
        was, now = self._text.splitlines(), result.splitlines()
        grown = len(now) - len(was)
        texts = _difference(was[lines[0] - 1 : lines[-1]], now[lines[0] - 1 : lines[-1] + grown])
        self._note(operator, lines, " => ".join(texts), result)

    def _lines(self, node: cst.CSTNode) -> range:
        found = self.get_metadata(PositionProvider, node, None)
        found = found or self.get_metadata(WholeProvider, node)
        assert isinstance(found, CodeRange)
        return range(found.start.line, found.end.line + 1)

    def _offset(self, position: CodePosition) -> int:
        return self._starts[position.line - 1] + position.column

    def _note(self, operator: str, lines: range, mutation: str, result: str) -> None:
        function = ".".join(self._names)
        self._seen[function, mutation] += 1
        if self._seen[function, mutation] > 1:
            mutation += f" ({self._seen[function, mutation]})"
        self.made.append(
            Mutant(
                module=self._module,
                function=function,
                mutation=mutation,
                operator=operator,
                lines=self._statement or lines,
                in_function=self._functions > 0,
                source=result,
            )
        )


def _difference(was: list[str], now: list[str]) -> tuple[str, str]:
    """Return the lines that differ, each side on one line."""
    while len(was) > 1 and len(now) > 1 and was[0] == now[0]:
        was, now = was[1:], now[1:]
    while len(was) > 1 and len(now) > 1 and was[-1] == now[-1]:
        was, now = was[:-1], now[:-1]
    return _one_line(was), _one_line(now)


def _one_line(lines: list[str]) -> str:
    return " ".join(" ".join(line.partition("  # ")[0] for line in lines).split())


def make_mutants(module: str, text: str) -> list[Mutant]:
    """Make all mutants of ``text``, in the order of its lines."""
    wrapper = MetadataWrapper(cst.parse_module(text))
    maker = _Maker(module, text, wrapper.module)
    wrapper.visit(maker)
    return maker.made
