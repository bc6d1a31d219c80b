"""The order of imports: part of the programs of `start.py` and `hooks.py`.

The workspace is the first entry of `sys.path`, like the directory of a script. But a kernel imports modules while it
runs, too: a file of the user named `token.py` or `jedi.py` must not break the completion.
"""

import builtins
import sys
from _frozen_importlib import module_from_spec
from _frozen_importlib_external import PathFinder
from os import getcwd, listdir, stat

KERNEL_PACKAGES = frozenset(
    "ipykernel ipykernel_launcher IPython jupyter_client jupyter_core comm debugpy pydevd _pydevd_bundle jedi parso zmq"
    " tornado traitlets matplotlib_inline stack_data executing pure_eval asttokens pygments prompt_toolkit wcwidth"
    " decorator pexpect ptyprocess psutil packaging nest_asyncio backcall pickleshare typing_extensions exceptiongroup"
    " platformdirs dateutil six ipython_pygments_lexers orjson trio".split()
)
SITES = ("/site-packages", "/dist-packages")


class LibrariesFirst:
    """Finds the imports of libraries in the standard library, and among the packages that a kernel consists of.

    Imports of user code, and modules that are found nowhere else (`%load_ext mine`), are left to Python's own finders.
    """

    pump = None  # the `Pump` that `start.py` has started
    started_with = frozenset("os io abc codecs site stat posixpath genericpath encodings _collections_abc".split())

    def __init__(self):
        library = sys.modules["os"].__file__.rpartition("/")[0]
        self.standard = [
            entry
            for entry in sys.path
            if (entry == library or entry.startswith(library + "/") or entry.endswith("/lib-dynload"))
            and not any(site in entry for site in SITES)
        ]
        self.sites = [entry for entry in sys.path if entry.endswith(SITES)]
        self.prefixes = (library + "/", "<frozen ", "<kernelbridge>")
        self.importlib = (library + "/importlib/", "<frozen importlib")
        self.own = LibrariesFirst.find_spec.__code__.co_filename
        self.forwarder = None  # the code of our `__import__`, which imports for its caller

    def find_spec(self, name, path=None, target=None):
        if path is not None:  # a module of a package is found by the package
            return None
        frame = sys._getframe(1)
        while frame is not None and (
            frame.f_code is self.forwarder or frame.f_code.co_filename.startswith(self.importlib)
        ):
            frame = frame.f_back
        if frame is None:
            return None
        file = frame.f_code.co_filename
        site = any(site + "/" in file for site in SITES)
        if not (site or file == self.own or file.startswith(self.prefixes)):
            return None
        spec = PathFinder.find_spec(name, self.standard)
        if spec is not None and spec.loader is not None:
            return spec
        importer = str(frame.f_globals.get("__name__")).partition(".")[0]
        if name in KERNEL_PACKAGES or importer in KERNEL_PACKAGES or not site:
            spec = PathFinder.find_spec(name, self.sites)
            if spec is not None and spec.loader is not None:
                return spec
        return None


def libraries_first():
    """Return the finder of this process; install one if there is none."""
    for finder in sys.meta_path:
        if type(finder).__name__ == "LibrariesFirst" and hasattr(finder, "pump"):
            return finder
    finder = LibrariesFirst()
    at = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(at, finder)
    return finder


class UsersFirst:
    """Lets user code import the workspace's module even if the kernel has imported the standard one of that name.

    As in a script, modules that the interpreter itself imports at its start (`os`, `io`) are never the workspace's. The
    workspace's modules are kept here; `sys.modules` has those that the kernel uses.
    """

    def __init__(self, finder, started_with):
        self.finder = finder
        self.started_with = started_with
        self.seen = None  # inode and time of the workspace's directory at the last look
        self.names = frozenset()  # standard modules of whose names the workspace has files
        self.standard = None  # names of all standard modules
        self.modules = {}  # the workspace's modules of such names
        self.original = None  # `__import__` as it was

    def look(self):
        """Find the workspace's files with names of standard modules. It runs before each cell, so it must be cheap."""
        try:
            status = stat(".")
            seen = status.st_ino, status.st_mtime_ns
            if seen == self.seen:
                return
            self.seen = seen
            names = {entry.partition(".")[0] for entry in listdir(".")}
        except OSError:
            return
        self.names = names & self.standard_names()
        if self.names and self.original is None:
            self.original = builtins.__import__
            builtins.__import__ = self.importer()

    def standard_names(self):
        if self.standard is None:
            names = set()
            for entry in self.finder.standard:
                try:
                    names.update(name.partition(".")[0] for name in listdir(entry))
                except OSError:  # a zip file that does not exist
                    pass
            self.standard = names.difference(self.started_with, sys.builtin_module_names)
        return self.standard

    def is_standard(self, module):
        return str(getattr(module, "__file__", None)).startswith(self.finder.prefixes[0])

    def importer(self):
        original = self.original

        def __import__(name, globals=None, locals=None, fromlist=(), level=0):
            if level == 0 and name in self.names and globals is not None and is_users(globals):
                module = self.module(name)
                if module is not None:
                    return module
            return original(name, globals, locals, fromlist, level)

        self.finder.forwarder = __import__.__code__
        return __import__

    def module(self, name):
        """Return the workspace's module of that name, or None."""
        if "" not in sys.path or not self.is_standard(sys.modules.get(name)):
            return None
        spec = PathFinder.find_spec(name, [""])
        if spec is None or spec.loader is None:
            return None
        module = self.modules.get(name)
        if module is None or module.__spec__.origin != spec.origin:
            module = self.modules[name] = module_from_spec(spec)
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del self.modules[name]
                raise
        return module


def is_users(namespace):
    """Whether a namespace is that of a cell, or of a module of the workspace that is not installed."""
    if namespace.get("__name__") == "__main__":
        return True
    file = namespace.get("__file__")
    return isinstance(file, str) and file.startswith(getcwd() + "/") and not any(site + "/" in file for site in SITES)


def install_imports(kernel):
    finder = libraries_first()
    if "" in sys.path:  # IPython puts it behind the standard library
        sys.path.remove("")
        sys.path.insert(0, "")
    users = UsersFirst(finder, finder.started_with)
    init_metadata = kernel.init_metadata

    def look_and_init(parent):
        users.look()
        return init_metadata(parent)

    kernel.init_metadata = look_and_init
