"""What a checkpoint may hold: tensors and plain values, checked when saved and again before loading."""

import io
import os
import pickletools
import re
import struct
import zipfile
from collections import Counter, OrderedDict

# What pickles of tensors and plain values refer to. Narrower than what the deserializer itself allows, which
# includes a constructor that fills memory at will.
_ALLOWED = re.compile(
    r"collections (OrderedDict|Counter)|_codecs encode|(builtins|__builtin__) (set|complex)"
    r"|torch\._utils (_rebuild_tensor_v[23]|_rebuild_parameter)|torch (Size|device|[A-Z]\w*Storage)"
    r"|torch\.storage UntypedStorage|torch (b?float|complex|u?int)[0-9]\w*|torch bool"
)


def require_plain(value: object, place: str = "checkpoint") -> None:
    """Refuses, before it is saved, what :func:`foreign_content` would refuse when it is loaded.

    Args:
        value: what is to be saved.
        place: how an error names it.

    Raises:
        TypeError: naming the place and the type.
    """
    import torch

    plain = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)
    kind = type(value)
    if kind in plain:
        return
    if isinstance(value, torch.Tensor) and kind in (torch.Tensor, torch.nn.Parameter):
        if value.layout != torch.strided or value.is_quantized or value.is_meta or vars(value):
            raise TypeError(
                f"{place} is a tensor that is sparse, quantized, without data or has attributes"
                f" ({', '.join(vars(value)) or 'none'}); save `tensor.detach()` of a dense one"
            )
    elif isinstance(value, dict) and kind in (dict, OrderedDict, Counter):
        for key, entry in value.items():
            require_plain(key, f"a key of {place}")
            require_plain(entry, f"{place}[{key!r}]")
    elif isinstance(value, list | tuple | set) and kind in (list, tuple, set):
        for index, entry in enumerate(value):
            require_plain(entry, f"{place}[{index}]")
    else:
        raise TypeError(
            f"{place} is a {kind.__module__}.{kind.__qualname__}; a checkpoint holds only tensors and plain"
            " values (None, bool, int, float, str, bytes in dict, list, tuple, set): nothing else is loaded"
        )


def foreign_content(file: io.BufferedReader) -> str | None:
    """What speaks against handing a file to the deserializer; None when nothing does.

    It must be an archive of stored records in one folder, with one pickle that refers to nothing but tensors
    and plain values. Nothing in it is run, and no more memory is taken than the file has bytes.

    Args:
        file: opened for reading; its position is changed.

    Raises:
        OSError: when it cannot be read.
    """
    file.seek(0)
    if file.read(4) != b"PK\x03\x04":
        return "is not a checkpoint"
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return "is truncated or not a checkpoint"
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        return "is compressed, and a checkpoint never is"
    if sum(record.file_size for record in records) > os.fstat(file.fileno()).st_size:
        return "claims to hold more bytes than it has"
    names = [record.filename.lower() for record in records]  # the deserializer's look-up ignores case
    folders = {name.partition("/")[0] for name in names}
    pickles = [record for record in records if record.filename.partition("/")[2] == "data.pkl"]
    is_sane = len(folders) == 1 and len(pickles) == 1 and len(set(names)) == len(names)
    if not is_sane or any(".." in name.split("/") for name in names):
        return "is an archive, but not a checkpoint"
    try:
        # Past the record's own header; the archive's reader would ask for the CRC that is not there.
        file.seek(pickles[0].header_offset + 26)
        file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
        foreign = _foreign_global(file.read(pickles[0].file_size))
    except (ValueError, IndexError, struct.error):
        return "is damaged or not a checkpoint"
    return None if foreign is None else f"holds {foreign}, and only tensors and plain values are loaded"


def _foreign_global(content: bytes) -> str | None:
    """The first name that a pickle refers to and should not, without running anything in it."""
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            if not _ALLOWED.fullmatch(str(argument)):
                return str(argument).replace(" ", ".")
        elif opcode.name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            return str(argument or opcode.name).replace(" ", ".")
    return None
