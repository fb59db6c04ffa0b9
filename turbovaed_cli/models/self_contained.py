"""The self-contained modeling file: the student's network and its streaming in one Python file that needs torch alone.

It is generated from the package's own sources: the definitions that a student needs, in an order in which they can be
executed, with their imports. diffusers loads it from a saved folder with `trust_remote_code=True`; ComfyUI's node pack holds a
copy without diffusers.
"""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.abc import InspectLoader
from pathlib import Path
from types import ModuleType
from typing import TypeGuard

from turbovaed_cli.registry.rows import ADDED, TEACHER_LICENCES
from turbovaed_cli.version import __version__

MODELING_FILE = "modeling_turbovaed.py"
AUTO_MAP = {"AutoModel": f"{Path(MODELING_FILE).stem}.StudentDecoder"}
_PACKAGE = Path(__file__).parents[1]
_STAND_INS = "models.stand_ins"
_ROOTS = (
    ("models.student", "StudentDecoder"),
    ("models.streaming", "StreamingDecoder"),
    ("models.bounded", "decode_within"),
    ("models.latent_space", "LatentSpace"),
)
_OF_DIFFUSERS = ("BaseOutput", "ConfigMixin", "ModelMixin", "register_to_config")
_REPLACED = {
    ("models.self_contained", "modeling_source"): (_STAND_INS, "modeling_source"),
    ("models.gpu_form", "GpuDecoder"): (_STAND_INS, "GpuDecoder"),
    ("models.gpu_form", "decode_on_gpu"): (_STAND_INS, "decode_on_gpu"),
}


@dataclass
class _Module:
    """One source file of the package."""

    name: str  # inside the package, such as "models.layers"
    lines: list[str] = field(init=False)
    tree: ast.Module = field(init=False)

    def __post_init__(self) -> None:
        text = _PACKAGE.joinpath(*self.name.split(".")).with_suffix(".py").read_text(encoding="utf-8")
        self.lines, self.tree = text.splitlines(), ast.parse(text)

    @cached_property
    def imports(self) -> dict[str, tuple[str | None, str]]:
        """Each imported name: the module of the package that has it, or None; and the line that imports it."""
        found: dict[str, tuple[str | None, str]] = {}
        for node in self.tree.body:
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            for alias in node.names:
                own = node.module.removeprefix("turbovaed_cli.") if isinstance(node, ast.ImportFrom) and node.module else None
                ours = own if own and own != node.module else None  # type: ignore[union-attr]
                copied = type(node)(**{**vars(node), "names": [alias]})
                found[alias.asname or alias.name.partition(".")[0]] = ours, ast.unparse(copied)
        return found

    @cached_property
    def definitions(self) -> dict[str, ast.stmt]:
        """Each name that a statement at the top level binds, and the statement."""
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found[node.name] = node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {name.id: node for target in targets for name in ast.walk(target) if _is_bound(name)}
        return found

    def source(self, node: ast.stmt) -> str:
        """Return the text of a definition, with its decorators and the comments right above it."""
        decorators = node.decorator_list if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
        first = min([node.lineno, *(one.lineno for one in decorators)]) - 1
        while first and self.lines[first - 1].startswith("#"):
            first -= 1
        return "\n".join(self.lines[first : node.end_lineno])


class _Collection:
    """The definitions and imports that `roots` need, over all modules."""

    def __init__(self) -> None:
        self.modules: dict[str, _Module] = {}
        self.needed: dict[str, set[str]] = {}  # names by module
        self.imports: dict[str, str] = {}  # lines by the name that they bind

    def add(self, module: str, name: str) -> None:
        """Add a definition, and everything that it uses."""
        module, name = _REPLACED.get((module, name), (module, name))
        names = self.needed.setdefault(module, set())
        if name in names:
            return
        names.add(name)
        if name == "TEACHER_LICENCES":
            return
        source = self._module(module)
        assert name in source.definitions, f"{module} has no definition of {name} that can be copied"
        for used in _names_in(source.definitions[name]):
            if used in source.definitions:
                self.add(module, used)
            elif used in source.imports:
                self._add_import(used, *source.imports[used])

    def _add_import(self, name: str, module: str | None, line: str) -> None:
        if module is not None:
            assert name in line.split(" import ")[1].split(), f"an import under another name cannot be copied: {line}"
            self.add(module, name)
        elif not line.startswith("from diffusers"):
            assert self.imports.setdefault(name, line) == line, f"two imports bind {name}: {line}; {self.imports[name]}"
        else:
            assert name in _OF_DIFFUSERS, f"{_STAND_INS} has nothing in place of: {line}"

    def _module(self, name: str) -> _Module:
        if name not in self.modules:
            self.modules[name] = _Module(name)
        return self.modules[name]

    def in_order(self) -> Iterator[str]:
        """Yield the modules with definitions that are needed, each after those that it imports."""
        seen: set[str] = set()

        def visit(module: str) -> Iterator[str]:
            if module in seen:
                return
            seen.add(module)
            for target, _ in self._module(module).imports.values():
                if target in self.needed:
                    yield from visit(target)
            yield module

        for module in sorted(self.needed):
            yield from visit(module)

    def sources(self, module: str) -> list[str]:
        """Return the needed definitions of a module, in their order."""
        found = self._module(module)
        nodes = dict.fromkeys(node for name, node in found.definitions.items() if name in self.needed[module])
        return [_licences() if "TEACHER_LICENCES" in _bound(node) else found.source(node) for node in nodes]


def _names_in(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _is_bound(node: ast.AST) -> TypeGuard[ast.Name]:
    """Whether a target, or a part of one, is a name that an assignment binds: not that of `name.attribute = ...`."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _bound(node: ast.stmt) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {name.id for target in targets for name in ast.walk(target) if _is_bound(name)}


def _licences() -> str:
    """Return the licences of our teachers as source; those of installed packages are no business of a saved folder."""
    rows = "".join(f"    {name!r}: {licence!r},\n" for name, licence in TEACHER_LICENCES.items() if name not in ADDED)
    return f"TEACHER_LICENCES = {{\n{rows}}}"


@cache
def modeling_source(*, with_diffusers: bool = True) -> str:
    """Return the modeling file: StudentDecoder, StreamingDecoder and LatentSpace in one file, which imports torch.

    With `with_diffusers` it uses diffusers' base classes if diffusers is installed. Otherwise StudentDecoder has small ones
    that load a folder or a file: `from_pretrained`, `from_weights`, `from_config`, `config`, `save_pretrained`.
    """
    package, stand_ins = _Collection(), _Collection()
    for module, name in _ROOTS:
        package.add(module, name)
    for name in _OF_DIFFUSERS:
        stand_ins.add(_STAND_INS, name)
    own = package.needed.pop(_STAND_INS, set())
    package.imports |= {name: line for name, line in stand_ins.imports.items() if package.imports.get(name, line) == line}
    _check_names(package, stand_ins)
    parts = [source for module in package.in_order() for source in package.sources(module)]
    base = "\n\n\n".join(stand_ins.sources(_STAND_INS))
    package.needed[_STAND_INS] = own
    parts = [*package.sources(_STAND_INS), *parts]
    bases = _either(base) if with_diffusers else base
    return _HEAD.format(version=__version__) + "\n\n\n".join([_imports(package.imports), bases, *parts]) + "\n"


@cache
def modeling_module() -> ModuleType:
    """Return the modeling file without diffusers as a module, as the ComfyUI node pack has it."""
    spec = importlib.util.spec_from_loader(f"{__name__}.generated", _Generated())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class _Generated(InspectLoader):
    """The loader of the generated file."""

    def get_source(self, _fullname: str) -> str:
        return modeling_source(with_diffusers=False)


def _check_names(package: _Collection, stand_ins: _Collection) -> None:
    """Assert that no two modules need different definitions of one name."""
    owners: dict[str, str] = {}
    for module, names in [*package.needed.items(), *stand_ins.needed.items()]:
        for name in names:
            assert owners.setdefault(name, module) == module, f"{owners[name]} and {module} both define {name}"
            assert name not in package.imports, f"{module} defines {name}, which is imported elsewhere"


def _imports(lines: dict[str, str]) -> str:
    """Return import statements, those of one module in one line, the standard library first."""
    plain = sorted(line for line in lines.values() if line.startswith("import "))
    named: dict[str, list[str]] = {}
    for line in lines.values():
        if line.startswith("from "):
            module, _, name = line.removeprefix("from ").partition(" import ")
            named.setdefault(module, []).append(name)
    froms = [f"from {module} import {', '.join(sorted(names))}" for module, names in sorted(named.items())]
    everything = [*plain, *froms]
    own = [line for line in everything if line.split()[1].partition(".")[0] != "torch"]
    return "\n".join([*own, "", *(line for line in everything if line not in own)])


def _either(base: str) -> str:
    indented = "\n".join(f"    {line}" if line else "" for line in base.splitlines())
    return f"{_IMPORT_DIFFUSERS}\n{indented}"


_IMPORT_DIFFUSERS = """\
try:
    from diffusers import ConfigMixin, ModelMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.utils import BaseOutput
except ImportError:
"""
_HEAD = '''\
# Copyright (c) the turbovaed authors. Licensed under the Apache License, Version 2.0:
# https://www.apache.org/licenses/LICENSE-2.0. The weights have their own licence, that of the teacher's VAE.
"""A Turbo-VAED video decoder (arXiv:2508.09136) with exact streaming. Generated from turbovaed {version}; do not edit.

    from diffusers import AutoModel
    student = AutoModel.from_pretrained("this/folder", trust_remote_code=True)
    video = student.decode(latents).sample            # raw latents (B, C, t, h, w) to (B, 3, T, H, W) in [-1, 1]
    stream = student.stream()                         # the same frames piece by piece: push(latents), finish()

A pipeline with this student as its VAE, saved by `pipe.save_pretrained`, loads once turbovaed_cli is imported. Saved by turbovaed's
`save_pipeline`, it loads without: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True).
"""

'''
