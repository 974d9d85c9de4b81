"""TensorBoard's event files, written by the thread that logs.

TensorBoard's own writer hands events to a thread. What the disk refuses is then printed by that thread, with its
traceback, and raised at some later call as something else. Here each event is one call of the system, made at once: the
call that logs is the one that fails, as a :class:`~app.run.errors.StorageError`, and a killed process loses no event.
"""

import contextlib
import itertools
import os
import socket
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from app.run import storage
from app.run.atomic import sync_directory

FILE_VERSION = "brain.Event:2"
_numbers = itertools.count()  # tells the files of one process and second apart


class EventFile:
    """One event file; takes the place of TensorBoard's ``EventFileWriter``.

    Args:
        folder: where it is made, under a name that TensorBoard looks for.

    Raises:
        StorageError: from every method, when the file cannot be written; whole events are then still in it.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self._path = Path(
            folder,
            f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}",
        )
        with storage.writing(self._path):
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._size = os.fstat(self._descriptor).st_size
            sync_directory(self._path.parent)
        self._records = RecordWriter(self)  # makes one write of each record
        self.add_event(Event(wall_time=time.time(), file_version=FILE_VERSION))

    def get_logdir(self) -> str:
        return self._folder

    def add_event(self, event: Event) -> None:
        self._records.write(event.SerializeToString())

    def write(self, record: bytes) -> None:
        """Appends an encoded record, whole or not at all."""
        try:
            self._size = storage.write_at(self._descriptor, record, self._size, self._path)
        except BaseException:
            with contextlib.suppress(OSError):  # TensorBoard reads nothing behind half a record
                os.ftruncate(self._descriptor, self._size)
            raise

    def flush(self) -> None:
        """Puts the file on the disk; nothing is held back before."""
        with storage.writing(self._path):
            os.fsync(self._descriptor)
        storage.require_linked(self._descriptor, self._path)

    def close(self) -> None:
        with storage.writing(self._path):  # some file systems say only now that they are full
            os.close(self._descriptor)


class EventFileWriter(FileWriter):
    """What torch adds to events, steps and times, on top of an :class:`EventFile`.

    Args:
        folder: of the file.
    """

    def __init__(self, folder: str):
        self.event_writer = EventFile(folder)


class EventWriter(SummaryWriter):
    """A ``SummaryWriter`` with everything that it can write, and without its thread.

    Args:
        folder: of the event files.
        purge_step: TensorBoard hides every earlier event of this step or a later one.
    """

    file_writer: Any
    all_writers: Any

    def __init__(self, folder: str, purge_step: int):
        super().__init__(folder, purge_step=purge_step)

    def _get_file_writer(self) -> FileWriter:
        """The writer; a new file after the last one was closed."""
        if self.file_writer is None:
            self.file_writer = EventFileWriter(self.log_dir)
            self.all_writers = {self.log_dir: self.file_writer}
            if self.purge_step is not None:
                for event in (
                    Event(file_version=FILE_VERSION),
                    Event(session_log=SessionLog(status=SessionLog.START)),
                ):
                    self.file_writer.add_event(event, self.purge_step)
                self.purge_step = None  # once: a second file of this launch goes on
        return self.file_writer
