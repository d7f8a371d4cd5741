"""Which settings a call takes, as signatures say it: for configs, for hints to neurons, and for who asks `help`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from inspect import Parameter
from typing import Any

from torch import nn


def takers(target: Any) -> Iterator[tuple[Any, Callable[..., Any]]]:
    """Whose arguments a call of `target` takes, and the function that names them.

    For a class whose `__init__` hands `**settings` on, its base classes follow.
    """
    if not isinstance(target, type):
        yield target, target
        return
    for owner in target.__mro__:
        if owner in (nn.Module, object):  # whose signatures take what their calls refuse
            return
        if function := vars(owner).get("__init__"):
            yield owner, function
            if not takes_any(function):
                return


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a call takes keywords that the signature does not name."""
    return any(argument.kind is Parameter.VAR_KEYWORD for argument in inspect.signature(function).parameters.values())


def parameters_of(target: Callable[..., Any]) -> tuple[list[str], bool]:
    """The names that a call takes, and whether it takes any other."""
    while isinstance(target, partial):
        target = target.func
    functions = [function for _, function in takers(target)]
    arguments = [argument for each in functions for argument in inspect.signature(each).parameters.values()]
    by_name = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    names = [argument.name for argument in arguments if argument.kind in by_name and argument.name != "self"]
    return names, bool(functions) and takes_any(functions[-1])


def settings_of(builder: Callable[..., Any], *given: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorator of a function that hands its `**settings` to `builder`: its signature then shows what they may be.

    They are the builder's arguments with a default, but for those `given` by the function and those of its own.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        own = inspect.signature(function)
        named = [argument for argument in own.parameters.values() if argument.kind is not Parameter.VAR_KEYWORD]
        further = [
            argument.replace(kind=Parameter.KEYWORD_ONLY)
            for name, argument in inspect.signature(builder).parameters.items()
            if argument.default is not Parameter.empty and name not in {*own.parameters, *given}
        ]
        function.__signature__ = own.replace(parameters=[*named, *further])  # type: ignore[attr-defined]
        function.builder = builder  # type: ignore[attr-defined]  # whose docstring says what they mean
        return function

    return decorate
