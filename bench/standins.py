"""Stand-ins for libraries that exist for CUDA only, so that SGLang starts on a CPU.

Every name of a stand-in exists; what is called says that it is none. SGLang's own torch code computes instead: slow,
and enough to see how the server answers and schedules.
"""

from __future__ import annotations

from pathlib import Path

_FINDER = '''
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


def pretend(place, name):
    """A class for names that begin with a capital, which may be a base class or an enumeration; else a value."""
    if name.startswith("__"):
        raise AttributeError(name)
    if name[0].isupper():
        return Names(name, (), {"__init__": lambda self, *args, **options: None})
    return Absent(f"{place}.{name}")


class Absent:
    """Can be named, walked and passed on; fails when it is called."""

    def __init__(self, name):
        self.__name__ = name

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *args, **options):
        raise NotImplementedError(f"{self.__name__} has no build for this machine")


class Names(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class Pretended(ModuleType):
    def __getattr__(self, name):
        return pretend(self.__name__, name)


class Everywhere(MetaPathFinder, Loader):
    def __init__(self, package):
        self.start = package + "."

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.startswith(self.start) else None

    def create_module(self, spec):
        module = Pretended(spec.name)
        module.__path__ = []
        return module

    def exec_module(self, module):
        pass


def everything_of(package):
    sys.meta_path.append(Everywhere(package))
    return lambda name: pretend(package, name)
'''
_PACKAGE = """
import agentdyno_standin

__version__ = "{version}"
__getattr__ = agentdyno_standin.everything_of("{name}")
"""
PACKAGES = {"sgl_kernel": "0.4.7", "torchvision": "0.28.0"}


def write_standins(folder: Path) -> None:
    """Write the packages to a folder for PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "agentdyno_standin.py").write_text(_FINDER)
    for name, version in PACKAGES.items():
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "__init__.py").write_text(_PACKAGE.format(name=name, version=version))
        told = folder / f"{name}-{version}.dist-info"
        told.mkdir(exist_ok=True)
        (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
