"""diffusers and torch without what no command uses: seconds of imports, for the executable alone.

A program that imports `turbovaed_cli` gets the diffusers that it would have had. In the executable the classes are the same
ones too, from the same modules. But where diffusers would import a package for its pipelines (transformers, quantizers), it
acts as if that were not installed; those of its packages whose `__init__` imports every model they have import the one that is
asked for; and torch's compiler and `requests` are imported when something of them is used. So is sympy, with torch's symbols for
sizes that are not known, which the sums of memory on tensors without data ask about numbers alone. Nothing here knows a version:
what it does not find is imported as usual.
"""

import ast
import gc
import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.abc import InspectLoader, Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, cast

_COMPILER = "torch._dynamo"
_CONFIG = f"{_COMPILER}.config"  # all that tensors without data need of it
# What diffusers imports where it is installed, and no command needs of it. With the compiler it marks classes for torch.compile.
_HIDDEN = (
    "accelerate", "transformers", "peft", "torchao", "bitsandbytes", "gguf", "optimum", "modelopt", "auto_round", "torchvision", "scipy",
    _COMPILER,
)  # fmt: skip
_ONE_BY_ONE = (
    "diffusers.models.autoencoders", "diffusers.models.transformers", "diffusers.models.unets", "diffusers.quantizers",
    "diffusers.hooks",
)  # fmt: skip
_FOR_DOWNLOADS = "requests"  # diffusers reads images of the web with it
_SYMBOLS = "sympy"
_OF_SHAPES = "torch.fx.experimental.symbolic_shapes"


def import_less() -> None:
    """Let this process import less of diffusers; for a process whose whole task is one command."""
    if "diffusers" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def __init__(self) -> None:
        self.kinds: dict[str, Callable[[InspectLoader], Loader]] = {
            "torch": _Uncollected,
            "diffusers": _Bare,
            _COMPILER: partial(_Later, kind=_Compiler),
            _FOR_DOWNLOADS: _Later,
            _SYMBOLS: partial(_Later, kind=_Symbols),
            _OF_SHAPES: partial(_Later, kind=_SymbolsOfShapes),
            **dict.fromkeys(_ONE_BY_ONE, _OneByOne),
        }

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the spec of one of these packages, with a loader that spares time."""
        for package in (_COMPILER, _FOR_DOWNLOADS, _SYMBOLS):
            if fullname.startswith(f"{package}.") and fullname != _CONFIG and isinstance(of := sys.modules[package], _Package):
                of.run()
        if fullname not in self.kinds:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, InspectLoader):
            spec.loader = self.kinds[fullname](spec.loader)
        return spec


class _Loader(Loader):
    """Takes the place of a package's own loader until the package is there."""

    def __init__(self, own: InspectLoader) -> None:
        self.own = own

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.own  # which also finds its files


class _Uncollected(_Loader):
    """Runs an `__init__` without garbage collection, which would look through a million new objects again and again."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        gc.disable()
        try:
            self.own.exec_module(module)
        finally:
            gc.enable()
        gc.freeze()


class _Bare(_Uncollected):
    """Runs diffusers' `__init__`, which looks for the packages it could use, where these are hidden."""

    def exec_module(self, module: ModuleType) -> None:
        import torch  # noqa: F401, PLC0415 - sees everything

        with _hidden():
            super().exec_module(module)


@contextmanager
def _hidden() -> Iterator[None]:
    """Let imports of _HIDDEN fail, and skip the list of what every installed distribution contains."""
    hidden = [name for name in _HIDDEN if name not in sys.modules]
    contents_of_all = importlib.metadata.packages_distributions
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # what Python's import takes for "there is none"
    importlib.metadata.packages_distributions = dict
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = contents_of_all
        for name in hidden:
            del sys.modules[name]


class _OneByOne(_Loader):
    """Makes a package that imports the module of a name when that name is asked for."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Package(spec.name, self.own, _homes(self.own.get_source(spec.name) or ""))


class _Later(_Loader):
    """Makes a package of which nothing is imported before something is asked for."""

    def __init__(self, own: InspectLoader, kind: "type[_Package] | None" = None) -> None:
        super().__init__(own)
        self.kind = kind or _Package

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.kind(spec.name, self.own, {})


def _homes(source: str) -> dict[str, str]:
    """Return the names that an `__init__` imports from its modules, and the module of each."""
    return {
        imported.name: node.module
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module
        for imported in node.names
        if imported.asname is None
    }


class _Package(ModuleType):
    """A package whose `__init__` has not run."""

    def __init__(self, name: str, own: InspectLoader, homes: Mapping[str, str]) -> None:
        super().__init__(name)
        self._own, self._homes = own, homes

    def __getattr__(self, name: str) -> Any:
        """Return one of its names, or, for another one, what the whole `__init__` makes of it."""
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if name in self._homes:
            value = getattr(importlib.import_module(f"{self.__name__}.{self._homes[name]}"), name)
            setattr(self, name, value)
            return value
        self.run()
        return getattr(self, name)

    def run(self) -> None:
        """Run the `__init__`, and be an ordinary package from then on."""
        self.__class__ = ModuleType  # type: ignore[assignment]
        self._own.exec_module(self)


class _Compiler(_Package):
    """torch._dynamo before anything is compiled."""

    def __init__(self, name: str, own: InspectLoader, homes: Mapping[str, str]) -> None:
        super().__init__(name, own, homes)
        self._left: list[Any] = []

    def disable(self, fn: Any = None, *arguments: Any, wrapping: bool = True, **options: Any) -> Any:
        """Return `fn` as the compiler must leave it, for torch, which asks for it in the first call of some of its functions."""
        if fn is None or wrapping:
            self.run()
            return cast(Any, self).disable(fn, *arguments, wrapping=wrapping, **options)
        self._left.append(fn)
        return fn

    def run(self) -> None:
        left = self._left
        super().run()
        for fn in left:  # torch keeps the answer here: let it ask again
            vars(fn).pop("__dynamo_disable", None)


class _NoSymbol:
    """The class of sympy's symbols while there is none."""


class _Symbols(_Package):
    """sympy before the first symbol."""

    def __getattr__(self, name: str) -> Any:
        """Return one of its names; without the whole of it that by which torch asks whether something is a symbol."""
        return _NoSymbol if name == "Basic" else super().__getattr__(name)


def _same(value: Any) -> Any:
    return value


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(_equal, first, second))
    return bool(first == second)


# What torch asks about sizes, and the answers for plain numbers.
_OF_NUMBERS: Mapping[str, Callable[..., Any]] = {
    **dict.fromkeys(("expect_true", "guard_or_false", "guard_or_true", "guard_size_oblivious", "statically_known_true"), _same),
    "guarding_hint_or_throw": _same,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "sym_and": lambda *values: all(values),
    "sym_or": lambda *values: any(values),
    "sym_eq": _equal,
}


class _SymbolsOfShapes(_Package):
    """torch.fx.experimental.symbolic_shapes before the first symbol."""

    def __getattr__(self, name: str) -> Any:
        """Return one of its names: of _OF_NUMBERS a function that asks the module itself about anything but numbers."""
        if name not in _OF_NUMBERS:
            return super().__getattr__(name)

        def answer(*values: Any, **options: Any) -> Any:
            if not options and all(map(_is_plain, values)):
                return _OF_NUMBERS[name](*values)
            if isinstance(self, _Package):
                self.run()
            return getattr(self, name)(*values, **options)

        return answer


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, (tuple, list)) else isinstance(value, (bool, int, float))
