"""Parts that end badly, for a worker of another process to run."""

import os
import subprocess
import sys
import time
from pathlib import Path


def row(name):
    return {"kind": "fact", "name": name, "value": os.getpid(), "unit": "", "wanted": None}


def well(context):
    context.emit(row("first"))
    context.emit(row("second"))


def fails(context):
    context.emit(row("before it failed"))
    raise ValueError("no such tile")


def dies(context):
    context.emit(row("before it died"))
    os._exit(3)


def sleeps(context):
    context.emit(row("before it slept"))
    time.sleep(60)


def sleeps_beside(marker, context):
    """Has a process of its own, which it ends however it is ended itself."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        context.emit({**row("child"), "value": child.pid})
        time.sleep(60)
    finally:
        child.kill()
        child.wait()
        Path(marker).write_text("ended")


def ends_at_once(pipe, device, tiny):
    """In the place of a worker."""
    os._exit(4)


def is_never_ready(pipe, device, tiny):
    time.sleep(60)
