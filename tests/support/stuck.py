"""Waits in C from which nothing returns, as a compiler's or a collective's, that say when they have begun."""

import ctypes
import threading
import time

_library = ctypes.CDLL(None)
lock = _library.pthread_mutex_lock
#: a signal interrupts it, unlike the other
sem_wait = _library.sem_wait

Memory = "ctypes.Array[ctypes.c_char]"


def held(word: str) -> Memory:
    """A mutex that is held for ever; the word is printed once a thread waits for it, in ``lock(mutex)``."""
    mutex = ctypes.create_string_buffer(64)
    lock(mutex)
    # The GNU C library keeps 1 here while it is held, and 2 once somebody waits for it too.
    _tell(mutex, 0, b"\2", word)
    return mutex


def empty(word: str) -> Memory:
    """A semaphore that nobody raises; the word is printed once a thread waits for it, in ``sem_wait(semaphore)``."""
    semaphore = ctypes.create_string_buffer(64)
    # The GNU C library counts here who waits.
    _tell(semaphore, 4, b"\1", word)
    return semaphore


def _tell(memory: Memory, place: int, byte: bytes, word: str) -> None:
    def watch() -> None:
        while memory[place] != byte:
            time.sleep(0.005)
        print(word, flush=True)

    threading.Thread(target=watch, daemon=True).start()


def source(word: str) -> str:
    """Python source, one line, that waits for a mutex."""
    return f"from tests.support.stuck import held, lock; mutex = held({word!r}); lock(mutex)"
