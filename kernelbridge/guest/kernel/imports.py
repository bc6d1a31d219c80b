"""Where an import looks first: part of the programs of `start.py` and `hooks.py`, which see.

The workspace is the first entry of `sys.path`, as the directory of a script is for that script. But a kernel goes on
importing while it runs: a file of the user's that is called `token.py` or `jedi.py` must not break the completion.
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
    """Finds what a library imports among the libraries: the standard one, and those that the kernel is made of.

    What the user's code imports is not its affair, and neither is what is found nowhere else (`%load_ext mine`).
    """

    pump = None  # what `pump.py` has started
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
        self.passed_on = None  # the code that imports on behalf of its caller

    def find_spec(self, name, path=None, target=None):
        if path is not None:  # in a package: that is known
            return None
        frame = sys._getframe(1)
        while frame is not None and (
            frame.f_code is self.passed_on or frame.f_code.co_filename.startswith(self.importlib)
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
    """Give the finder that is at work in this process; it is put to work if there is none."""
    for finder in sys.meta_path:
        if type(finder).__name__ == "LibrariesFirst" and hasattr(finder, "pump"):
            return finder
    finder = LibrariesFirst()
    at = sys.meta_path.index(PathFinder) if PathFinder in sys.meta_path else len(sys.meta_path)
    sys.meta_path.insert(at, finder)
    return finder


class UsersFirst:
    """Lets what user code imports be the user's, also where the kernel has imported its namesake already.

    As for a script: what the interpreter itself starts with (`os`, `io`) is never the user's. Such a module is kept
    here; in `sys.modules` is the one that the kernel uses.
    """

    def __init__(self, finder, started_with):
        self.finder = finder
        self.started_with = started_with
        self.seen = None  # the state of the workspace's directory
        self.names = frozenset()
        self.standard = None
        self.modules = {}
        self.original = None

    def look(self):
        """See which files there have such a name; before each cell, so it must cost nothing."""
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
                except OSError:  # a zip file that is not there
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

        self.finder.passed_on = __import__.__code__
        return __import__

    def module(self, name):
        """Give the workspace's module of that name; None if there is none."""
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
    """Whether it is that of a cell, or of a module that is neither a library's nor ours."""
    if namespace.get("__name__") == "__main__":
        return True
    file = namespace.get("__file__")
    return isinstance(file, str) and file.startswith(getcwd() + "/") and not any(site + "/" in file for site in SITES)


def install_imports(kernel):
    finder = libraries_first()
    if "" in sys.path:  # where IPython puts it, the standard library is found before it
        sys.path.remove("")
        sys.path.insert(0, "")
    users = UsersFirst(finder, finder.started_with)
    init_metadata = kernel.init_metadata

    def look_and_init(parent):
        users.look()
        return init_metadata(parent)

    kernel.init_metadata = look_and_init
