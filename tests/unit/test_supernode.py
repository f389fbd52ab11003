import gc
import shutil
import threading
import time
import weakref
from pathlib import Path

from client import supernode

BIN = Path(supernode.__file__).parent / "bin"


class _Cycle:
    def __init__(self) -> None:
        self.myself = self


def test_what_refers_only_to_itself_is_freed_though_python_would_wait() -> None:
    cycle = _Cycle()
    freed = weakref.ref(cycle)
    ended = threading.Event()
    collector = threading.Thread(target=supernode.collect, args=(0.01, ended))
    gc.disable()
    collector.start()
    try:
        del cycle
        give_up_at = time.monotonic() + 30
        while freed() is not None:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
    finally:
        gc.enable()
        ended.set()
        collector.join()


def test_a_site_finds_it_under_the_name_of_flowers_program() -> None:
    assert shutil.which("flower-supernode", path=str(BIN)) == str(BIN / "flower-supernode")
