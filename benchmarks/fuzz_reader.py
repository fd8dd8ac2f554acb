"""Fuzz the readers of files from elsewhere: the restricted unpickler, and the metadata of exported files.

    pip install 'les_md[fuzz]'
    python benchmarks/fuzz_reader.py pickle CORPUS -runs=1000000
    python benchmarks/fuzz_reader.py metadata CORPUS -runs=1000000

CORPUS is a folder, made and filled with seeds if it is not there; what follows goes to libFuzzer, as
-max_total_time=SECONDS. Of the inputs, half are made by libFuzzer's changes of bytes, half by rules: pickles of whole
expressions (``random_pickle.py``), metadata and headers of archives with single entries replaced. A run ends at the
first finding:

* a crash of the process, a hang, or 2 GB of memory more than at the start. A hang is 20 s of the processor's time (not
  of the clock, so that runs can be stopped and continued), or four hours of the clock;
* an escape: anything that Python's audit events know of (opening files, importing, compiling, starting processes,
  sockets, ctypes, ...) while a file is read; only the import of a listed module by the unpickler itself is allowed;
* the call of a constructor of a module, of a module, or of a function that a file may store but not call;
* another exception than the readers may raise.

The input at hand is in CORPUS.input, with its length in front (8 bytes, little-endian), however the process ended:
``--repeat CORPUS.input`` reads it alone. After every 50000 inputs a line says how they ended.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import faulthandler
import gc
import io
import json
import mmap
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import zipfile
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

try:
    import atheris
except ImportError:
    sys.exit("this needs atheris: pip install 'les_md[fuzz]'")

# The standard library's reader of zip is to be instrumented as well. Its interpreter of pickles is not: that takes a
# third of the time, and the rules of ``random_pickle.py`` lead to all of its instructions.
del sys.modules["zipfile"]
INSTRUMENTED = [
    "les_md.restricted_unpickler", "les_md.unpickled_values", "les_md.stand_in", "les_md.model_file",
    "les_md.zip_archive", "zipfile", "json.decoder",
]  # fmt: skip
with atheris.instrument_imports(include=INSTRUMENTED):
    from les_md import checkpoint, model_file, restricted_unpickler
    from les_md.checkpoint_errors import CheckpointError, UnsafeCheckpointError

import torch  # noqa: E402
from random_pickle import RandomPickle  # noqa: E402

#: What happens all the time and gives a file nothing.
HARMLESS = {"builtins.id", "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe"}

MAX_LENGTH = 4096
CPU_SECONDS, WALL_SECONDS, MEMORY = 20, 4 * 3600, 2 << 30

endings: collections.Counter[str] = collections.Counter()
watching = False

#: Of what is not libFuzzer's own; the seeds that it offers for every input take longer to set than to use.
source = random.Random()


def escape(what: str) -> None:
    print(f"ESCAPE: {what}", file=sys.stderr, flush=True)
    os.abort()


def audit(event: str, arguments: tuple) -> None:
    if watching and event not in HARMLESS:
        escape(f"{event} {arguments!r:.300}")


def watched(read, *arguments: object) -> str:
    """Run a reader under the eyes of ``audit``; how it ended."""
    global watching
    watching = True
    try:
        read(*arguments)
    except UnsafeCheckpointError:
        return "refused as unsafe"
    except (CheckpointError, model_file.ModelFileError):
        return "refused"
    except MemoryError:
        raise
    except Exception as error:
        # read_checkpoint says of these that the file is damaged; the reader of metadata has no such net.
        if read is not load_pickle:
            raise
        checkpoint._summary(error)
        return f"damaged ({type(error).__name__})"
    finally:
        watching = False
    return "read"


# ---- the unpickler


class Archive:
    """The members of a file of torch.save, without a file."""

    def __init__(self, data: bytes) -> None:
        self.members = {"a/data.pkl": data, "a/data/0": struct.pack("<4f", 1.0, 2.0, 3.0, 4.0), "a/data/1": bytes(64)}

    def namelist(self) -> list[str]:
        return list(self.members)

    def read(self, name: str) -> bytes:
        return self.members[name]


def load_pickle(data: bytes) -> None:
    restricted_unpickler.RestrictedUnpickler(Archive(data), "a/").load()


def allow_listed_imports() -> None:
    """The unpickler may import the modules of its own list, which open files and compile as any import does."""
    original = restricted_unpickler._import
    imported = {}

    def import_listed(module: str) -> object:
        global watching
        if module in imported:
            return imported[module]
        listed = any(
            module.startswith(entry) if entry.endswith(".") else module == entry
            for entry in restricted_unpickler._MODULE_CLASSES
        ) or any(module == known for known, _ in restricted_unpickler._TUPLE_CLASSES)
        if not listed:
            return original(module)  # which the audit will notice
        watching = False
        try:
            imported[module] = original(module)
        finally:
            watching = True
        return imported[module]

    restricted_unpickler._import = import_listed


class StoredOnly:
    """Stands in the tables for a function of torch that a file may store but not call."""

    def __init__(self, function: object) -> None:
        self.__module__, self.__qualname__ = type(function).__module__, function.__name__

    def __call__(self, *arguments: object) -> None:
        escape(f"call of {self.__qualname__}")


def trap_calls() -> None:
    """No constructor of a module, no module and no function of torch may be called while a file is read."""
    original = torch.nn.Module.__init__
    makers = {restricted_unpickler._new_object.__code__}  # which makes modules empty

    def constructor(module: torch.nn.Module, *arguments: object, **named: object) -> None:
        if watching and sys._getframe(1).f_code not in makers:
            escape(f"constructor of {type(module)}")
        original(module, *arguments, **named)

    def called(module: torch.nn.Module, *arguments: object, **named: object) -> None:
        escape(f"call of a {type(module)}")

    torch.nn.Module.__init__ = constructor
    torch.nn.Module.__call__ = called
    for name, value in restricted_unpickler._VALUES.items():
        if callable(value) and not isinstance(value, type):
            restricted_unpickler._VALUES[name] = StoredOnly(value)


def pickle_seeds() -> list[bytes]:
    from tests.checkpoints.written_files import HOSTILE, OVERFLOWS, program, tensor_program

    seeds = [program(body(Path("/tmp/marker"))) for _, body in HOSTILE]
    seeds += [program(body) for body, _ in OVERFLOWS.values() if len(body) < MAX_LENGTH]
    seeds.append(program(tensor_program()))
    contents = {"a": [1, 2.5, None, True, {"b": (1, "x", b"y")}], "s": {1, 2}, "o": collections.OrderedDict(k=1)}
    seeds += [pickle.dumps(contents, protocol) for protocol in range(6)]
    return seeds


def change_pickle(data: bytes, max_size: int, seed: int) -> bytes:
    """Change bytes as libFuzzer does, or put whole expressions into a pickle, or make a new one."""
    draw = source.random()
    if draw < 0.5:
        return atheris.Mutate(data, max_size)
    made = RandomPickle(source).expression(2)
    if draw < 0.75:
        start = source.randrange(len(data) + 1)
        end = min(len(data), start + source.choice((0, 0, 1, 2, 5, 20)))
        changed = data[:start] + made + data[end:]
    else:
        changed = b"\x80" + bytes([source.choice((2, 4, 5))]) + made + b"."
    return changed if len(changed) <= max_size else atheris.Mutate(data, max_size)


def dictionary() -> list[bytes]:
    """Instructions of pickle, the names in the tables of the unpickler, and what metadata hold."""
    words = [code.code.encode("latin1") for code in pickletools.opcodes]
    words += [f'"{key}":'.encode() for key in ("format_version", "elements", "cutoff", "num_layers", "long_range")]
    words += [b'["H", "O"]', b"1e400", b"NaN", b"null", b"-1", b"true"]
    names = [*restricted_unpickler._FUNCTIONS, *restricted_unpickler._VALUES, *restricted_unpickler._TUPLE_CLASSES]
    names += [("torch.nn.modules.linear", "Linear"), ("les.les", "Les"), ("os", "system"), ("builtins", "eval")]
    for module, name in names:
        words.append(f"c{module}\n{name}\n".encode())
        for text in (module, name):
            words.append(b"X" + struct.pack("<I", len(text)) + text.encode())
    return words


# ---- the metadata

METADATA_MEMBER = f"m/extra/{model_file.METADATA_NAME}"


def load_metadata(data: bytes) -> None:
    """The input as a file; or, behind a zero, as the text of the metadata in a sound one."""
    if data[:1] == b"\0":
        data = stored(data[1:])
    model_file._read_metadata(io.BytesIO(data), "model.pt")


def stored(text: bytes) -> bytes:
    """An archive of one uncompressed member, the metadata; zipfile takes thirty times as long to write it."""
    name = METADATA_MEMBER.encode()
    common = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, zlib.crc32(text), len(text), len(text), len(name), 0)
    member = b"PK\3\4" + common + name + text
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    return member + entry + b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(member), 0)


def archive_of(text: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("m/constants.pkl", b"x")
        archive.writestr(METADATA_MEMBER, text)
    return buffer.getvalue()


METADATA = {"format_version": 4, "elements": ["H"], "cutoff": 4.0, "num_layers": 1, "long_range": None}


def metadata_seeds() -> list[bytes]:
    texts = [json.dumps(METADATA), json.dumps({**METADATA, "format_version": 99}), "{", "[]", "null", "1"]
    texts = [text.encode() for text in texts]
    archives = [archive_of(text, kind) for text in texts for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    return [*archives, *(b"\0" + text for text in texts)]


def random_json(source: random.Random, depth: int) -> str:
    kinds = ["number", "word", "digits", "text"] + ["list", "dictionary", "deep"] * (depth > 0)
    match source.choice(kinds):
        case "number":
            return source.choice(("0", "1", "3", "4", "-1", "4.0", "1e400", "-0.0", "1e-400", "4E2", "0.1", "NaN"))
        case "word":
            return source.choice(("null", "true", "false", "Infinity", "-Infinity", "nul", "", "'", "\\", "\t"))
        case "digits":
            return source.choice(("", "-")) + "9" * source.choice((1, 5, 10, 20, 308, 309, 310, 1000))
        case "text":
            texts = ("H", "O", "He", "X", "", "4", r"\ud800", r"\udc00\ud800", r"\u0000", "1e400", "é", "\x00", r"\x")
            return f'"{source.choice(texts)}"'
        case "list":
            return f"[{', '.join(random_json(source, depth - 1) for _ in range(source.randrange(4)))}]"
        case "dictionary":
            keys = (*METADATA, "latent", "n_q", "compiled", "")
            entries = (f'"{source.choice(keys)}": {random_json(source, depth - 1)}' for _ in range(source.randrange(4)))
            return f"{{{', '.join(entries)}}}"
        case _:
            opening, closing = source.choice((("[", "]"), ('{"a":', "}"), ("[[],", "]")))
            repeats = source.choice((2, 50, 300))
            return opening * repeats + random_json(source, 0) + closing * source.choice((repeats, repeats - 1))


#: Where the fields of the headers are, from the signature: offset and length.
HEADER_FIELDS = {
    b"PK\3\4": [(4, 2), (6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4)],
    b"PK\1\2": [*((place, 2) for place in (6, 8, 10, 28, 30, 32)), *((place, 4) for place in (12, 16, 20, 24, 42, 46))],
    b"PK\5\6": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}  # fmt: skip


def change_metadata(data: bytes, max_size: int, seed: int) -> bytes:
    """Change bytes as libFuzzer does, or replace entries of the metadata, or fields of the archive's headers."""
    draw = source.random()
    if draw < 0.4:
        return atheris.Mutate(data, max_size)
    if draw < 0.7 or data[:1] == b"\0":
        entries = [(key, json.dumps(value)) for key, value in METADATA.items()]
        for _ in range(source.choice((1, 1, 2, 3))):
            place = source.randrange(len(entries))
            entry = source.choice((entries[place][0], *METADATA)), random_json(source, 3)
            entries[place : place + source.randrange(2)] = [entry]
        text = f"{{{', '.join(f'{chr(34)}{key}{chr(34)}: {value}' for key, value in entries)}}}".encode()
        changed = b"\0" + text if draw < 0.6 else archive_of(text, source.choice((zipfile.ZIP_STORED, 8)))
    else:
        array = bytearray(data)
        for _ in range(source.choice((1, 1, 2, 3))):
            signature, fields = source.choice(list(HEADER_FIELDS.items()))
            places = [place for place in range(len(array)) if array[place : place + 4] == signature]
            offset, length = source.choice(fields)
            if places:
                start = source.choice(places) + offset
                value = source.choice(
                    (0, 1, 8, 9, 12, 14, 0xFF, 0x800, 0xFFFF, 0xFFFFFFFF, len(data), source.getrandbits(32))
                )
                array[start : start + length] = (value % 256**length).to_bytes(length, "little")
        changed = bytes(array)
    return changed if len(changed) <= max_size else atheris.Mutate(data, max_size)


# ---- running

READERS = {
    "pickle": (load_pickle, pickle_seeds, change_pickle),
    "metadata": (load_metadata, metadata_seeds, change_metadata),
}


def limit_memory() -> None:
    """MemoryError beyond ``MEMORY`` more than now, in the address space."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("corpus", type=Path, help="a folder; with --repeat, a file with an input")
    parser.add_argument("--repeat", action="store_true", help="read CORPUS.input once")
    options, fuzzer_options = parser.parse_known_args()
    read, seeds, change = READERS[options.reader]

    allow_listed_imports()
    trap_calls()
    for encoding in ("raw_unicode_escape", "unicode_escape", "latin1", "ascii", "utf-8", "cp437"):
        codecs.lookup(encoding)  # which Python imports at the first use
    # A fault in C, or the processor's time used up, prints the stack and ends the process.
    faulthandler.enable()
    faulthandler.register(signal.SIGPROF, chain=True)
    sys.addaudithook(audit)
    if options.repeat:
        content = options.corpus.read_bytes()
        limit_memory()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        print(watched(read, content[8 : 8 + struct.unpack_from("<Q", content)[0]]))
        return

    if not options.corpus.is_dir():
        options.corpus.mkdir(parents=True)
        for number, seed in enumerate(seeds()):
            (options.corpus / f"seed{number}").write_bytes(seed)
    words = options.corpus.with_suffix(".dict")
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in dictionary()))
    at_hand = options.corpus.with_suffix(".input")
    at_hand.write_bytes(bytes(8 + MAX_LENGTH))
    with open(at_hand, "r+b") as file:
        shown = mmap.mmap(file.fileno(), 8 + MAX_LENGTH)

    number_read = 0

    def one_input(data: bytes) -> None:
        shown[: 8 + len(data)] = struct.pack("<Q", len(data)) + data
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        nonlocal number_read
        endings[watched(read, data)] += 1
        number_read += 1
        if number_read % 50_000 == 0:  # libFuzzer leaves without running what Python has to do at its end
            print(f"{number_read} inputs: {dict(endings.most_common())}", flush=True)

    limits = [
        f"-dict={words}", f"-max_len={MAX_LENGTH}", f"-timeout={WALL_SECONDS}", "-rss_limit_mb=2560",
        "-print_final_stats=1",
    ]  # fmt: skip
    source.seed(str(fuzzer_options))
    atheris.Setup([sys.argv[0], *limits, *fuzzer_options, str(options.corpus)], one_input, custom_mutator=change)
    limit_memory()
    gc.freeze()  # what is there now is not looked through again and again
    atheris.Fuzz()


if __name__ == "__main__":
    main()
