"""Jinja as chat templates use it, in a sandbox, and with bounds for those from elsewhere.

Python's own loops and calls cannot be stopped from outside on every system. So a foreign template
pays for what it does, from a purse that no template of a real model comes near to emptying.
"""

import functools
import json
import math
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from types import GeneratorType
from typing import Any

# Of one rendering: characters and members of lists made in all, besides 64 for each that was said,
# and of one step alone, before they are made. Templates of real models need a thousandth.
_MOST_WORK = 1 << 24
_MOST_AT_ONCE = 1 << 28
_MOST_SECONDS = 10.0


class _Limits(threading.local):
    left: float = math.inf
    deadline: float = math.inf


_limits = _Limits()


def render(template: Any, n_characters: int, **variables: Any) -> str:
    """What a template makes of its variables, among them messages of so many characters.

    Raises:
        Exception: of any kind, as a template is a program.
    """
    _limits.left = _MOST_WORK + 64 * n_characters
    _limits.deadline = time.monotonic() + _MOST_SECONDS
    try:
        return template.render(**variables)
    finally:
        _limits.left = _limits.deadline = math.inf


def compiled(source: str, *, is_foreign: bool) -> Any:
    """A template in Jinja with what `transformers` adds (utils/chat_template_utils.py there).

    One from elsewhere is somebody else's program. The sandbox keeps it from Python; here it is seen
    to that it comes to an end and prints no gigabyte: whatever loops, calls or makes something new
    is counted, which takes twice the time.
    """
    # Loaded late, as it is slow: most programs encode texts and no chats.
    from jinja2 import TemplateError, ext, nodes, parser  # noqa: PLC0415
    from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: PLC0415

    class Generation(ext.Extension):
        """`{% generation %}` marks what the assistant says, for training elsewhere."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: parser.Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.If(nodes.Const(True), body, [], [], lineno=line)

    class Bounded(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

        def call_binop(self, _context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" and isinstance(right, int) and right > 64:
                raise TemplateError("a power is too high")
            if operator in "*%" and not (isinstance(left, int) and isinstance(right, int)):
                _foresee(*((right, left) if isinstance(left, int) else (left, right)))
                _require_narrow(left if operator == "%" else "")
            return _spend(self.binop_table[operator](left, right))

        def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
            if time.monotonic() > _limits.deadline:
                raise TemplateError("it does not come to an end")
            method = getattr(function, "__wrapped__", function)  # the sandbox wraps str.format
            if isinstance(said := getattr(method, "__self__", None), str):
                named = (kwargs[name] for name in kwargs if name[0] != "_")  # those are Jinja's own
                _foresee(said, *args, *named)
                if "format" in method.__name__:
                    _require_narrow(said)
            return _spend(super().call(context, function, *args, **kwargs), 100)

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: object, **options: Any) -> str:
        return json.dumps(value, **{"ensure_ascii": False, **options})

    environment = (Bounded if is_foreign else ImmutableSandboxedEnvironment)(
        trim_blocks=True, lstrip_blocks=True, extensions=[ext.loopcontrols, Generation],
        finalize=_printed if is_foreign else None, optimized=False,
    )  # fmt: skip
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda style: datetime.now().strftime(style)
    if not is_foreign:
        return environment.from_string(source)
    del environment.globals["lipsum"]
    environment.filters = {name: _bounded(made) for name, made in environment.filters.items()}
    environment.filters |= {" each": _each, " spend": _spend, " join": _joined}
    return environment.from_string(_counting(environment.parse(source)))


def _counting(template: Any) -> Any:
    """A parsed template in which turns of loops, slices and joined texts are counted, too."""
    from jinja2 import nodes, visitor  # noqa: PLC0415 - see compiled

    def filtered(node: Any, name: str, *args: Any) -> Any:
        constants = [nodes.Const(arg, lineno=node.lineno) for arg in args]
        return nodes.Filter(node, name, constants, [], None, None, lineno=node.lineno)

    class Counting(visitor.NodeTransformer):
        def visit_For(self, node: Any) -> Any:  # noqa: N802 - as Jinja names it
            text = sum(len(part.data) for part in node.find_all(nodes.TemplateData))
            self.generic_visit(node)
            node.iter = filtered(node.iter, " each", 32 + text)
            return node

        def visit_Getitem(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return filtered(node, " spend") if isinstance(node.arg, nodes.Slice) else node

        def visit_Concat(self, node: Any) -> Any:  # noqa: N802
            self.generic_visit(node)
            return filtered(nodes.List(node.nodes, lineno=node.lineno), " join")

    return Counting().visit(template)


def _each(values: Iterable[Any], cost: int) -> Iterator[Any]:
    for value in values:
        _spend(None, cost)
        if time.monotonic() > _limits.deadline:
            raise ValueError("it does not come to an end")
        yield value


def _joined(values: list[Any]) -> str:
    return _spend("".join([each if type(each) is str else str(_foresee(each)) for each in values]))


def _printed(value: Any) -> Any:
    _spend(None, len(value) if type(value) is str else _size(value))
    return value


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that looks ahead at what it is going to make."""
    n_own = int(hasattr(function, "jinja_pass_arg"))  # an environment or context comes first
    is_format = function.__name__ == "do_format"

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        if type(args[n_own]) is GeneratorType:
            args = (*args[:n_own], list(args[n_own]), *args[n_own + 1 :])
        _foresee(*args[n_own:], *kwargs.values())
        if is_format:
            _require_narrow(args[n_own])
        return _spend(function(*args, **kwargs))

    return bounded


def _spend(made: Any, cost: int = 0) -> Any:
    """Count something that a template has made."""
    if isinstance(made, str | list | tuple | dict):
        cost += len(made)
    elif isinstance(made, int):
        cost += made.bit_length() >> 3
    _limits.left -= cost
    if _limits.left < 0:
        raise ValueError("it does not come to an end, or makes too much of them")
    return made


def _foresee(first: Any = "", *others: Any) -> Any:
    """Refuse a step that could make too much of what it is given.

    A text becomes as long as the longest of the others for each of its characters, and all that as
    often as numbers say; no step makes more.
    """
    if not others and type(first) is str:
        return first
    size = _size(first) * max([1, *map(_size, others)])
    for each in others:
        if isinstance(each, int):
            size *= abs(each) or 1
    if size > _MOST_AT_ONCE:
        raise ValueError("it makes too much of them")
    return first


def _require_narrow(form: Any) -> None:
    """Refuse a format that fills up to a width of millions, or of what a number says."""
    if isinstance(form, str) and re.search(r"[0-9]{7}|%[^a-z%]*\*", form):
        raise ValueError("it makes too much of them")


def _size(value: Any) -> int:
    """Characters of a text, or of all texts in a list or object, as far as they matter."""
    if type(value) is str:
        return len(value) + 1
    total, inside = 0, [value]
    for each in inside:
        if isinstance(each, str):
            total += len(each)
        elif isinstance(each, list | tuple):
            inside += each
        elif isinstance(each, dict):
            inside += [*each, *each.values()]
        if total > _MOST_AT_ONCE or len(inside) > _MOST_WORK >> 4:  # a list may hold one twice
            return _MOST_AT_ONCE + 1
    return total + len(inside)
