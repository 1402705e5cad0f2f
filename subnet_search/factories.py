"""Imports what a recipe names: "package.module:factory", and parts of torchvision."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, TypeVar

from search_spaces import InvalidInput, nearest_names
from search_spaces.errors import in_words

T = TypeVar("T")


def call_factory(name: str, options: Mapping[str, Any], returns: type[T], what: str) -> T:
    """The result of the user's factory.

    Args:
        name: "package.module:factory"; the folder that the program was started in is searched too.
        options: keyword arguments of the factory.
        returns: the type that its result must have.
        what: what it makes, for messages: "model", "data source".

    Raises:
        InvalidInput: it cannot be imported, fails, or returns something else.
    """
    factory = import_callable(name, what)
    try:
        made = factory(**options)
    except InvalidInput as error:
        raise InvalidInput(f"the {what} {name} with options {dict(options)} is refused: {error}") from error
    except (Exception, SystemExit) as error:  # the user's code runs here: anything can come
        raise InvalidInput(
            f"the {what} {name} with options {dict(options)} fails: {in_words(error)}"
        ) from error
    if not isinstance(made, returns):
        raise InvalidInput(f"the {what} {name} must return {returns.__name__}, got {type(made).__name__}")
    return made


def import_callable(name: str, what: str) -> Callable[..., Any]:
    """What a recipe names as "package.module:callable", not called; as `call_factory`."""
    module_name, separator, attribute = name.partition(":")
    if not (separator and module_name and attribute):
        raise InvalidInput(f'a {what} of your own is named "package.module:factory", got {name!r}')
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # an installed command does not look there by itself
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"the {what} {name!r} cannot be imported: {error}; install its package, or start in the folder it is in"
        ) from error
    except (Exception, SystemExit) as error:  # a program that ends itself, too
        raise InvalidInput(f"importing {module_name!r} fails: {in_words(error)}") from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        hint = nearest_names(attribute, [n for n in dir(module) if callable(getattr(module, n))])
        raise InvalidInput(f"{module_name} has no callable {attribute!r}{hint or '; check the name'}")
    return factory


def torchvision_part(name: str) -> ModuleType:
    """`torchvision.NAME`; a torchvision that is broken or does not match torch raises `InvalidInput`."""
    try:
        importlib.import_module("torchvision")
        return importlib.import_module(f"torchvision.{name}")
    except (ImportError, RuntimeError) as error:  # operators that do not match torch raise RuntimeError
        raise InvalidInput(
            f"torchvision cannot be imported: {error}. Install torch and torchvision together, from one index: "
            "pip install --upgrade torch torchvision"
        ) from error
