"""Compiles the modules through which every single change goes, where mypyc and a C compiler are at hand.

They are ordinary Python and run uncompiled just the same, only slower; so whatever is missing here
(no compiler, no headers) is no error. CASTLING_COMPILE=0 leaves it out, 1 makes a failure an error.
"""

import os
import sys

from setuptools import setup

HOT = [
    "src/castling/kinds/postgres/messages.py",
    "src/castling/kinds/postgres/changes.py",
    "src/castling/kinds/postgres/copying.py",
    "src/castling/kinds/postgres/copystream.py",
    "src/castling/kinds/postgres/decoder.py",
    "src/castling/kinds/postgres/drafts.py",
    "src/castling/kinds/postgres/spool.py",
]


def extensions() -> list:
    wish = os.environ.get("CASTLING_COMPILE", "")
    if wish == "0" or sys.implementation.name != "cpython":
        return []
    try:
        from mypyc.build import mypycify
    except ImportError:
        if wish == "1":
            raise
        return []
    found = mypycify(HOT, opt_level="3", group_name="castling_hot")
    for extension in found:
        extension.optional = wish != "1"
    return found


setup(ext_modules=extensions())
