"""Starts a Python kernel: `python start.py ipykernel_launcher …` instead of `python -m ipykernel_launcher …`.

`-m` would look in the workspace for the kernel and its imports. And the output pump must be forked before there are
other threads. The files of `START` (in `kernelbridge.jupyter.launch`), joined, are this program.
"""

import sys


def main():
    import os

    started_with = frozenset(sys.modules)
    if sys.path and sys.path[0] == os.path.dirname(os.path.abspath(__file__)):  # not with `-P`
        del sys.path[0]
    finder = libraries_first()
    finder.started_with = started_with
    finder.pump = start_pump()
    import runpy

    module = sys.argv[1]
    del sys.argv[1]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
