"""Fuzz the readers of files from elsewhere: the restricted unpickler, and the metadata of exported files.

    pip install 'les_md[fuzz]'
    python benchmarks/fuzz_reader.py pickle CORPUS -runs=1000000
    python benchmarks/fuzz_reader.py metadata CORPUS -runs=1000000

CORPUS is a folder, made and filled with seeds if it is not there; what follows goes to libFuzzer, as
-max_total_time=SECONDS. A run ends at the first finding with a file to repeat it:

* a crash of the process, a hang (over 20 s) or memory beyond 2 GB,
* an escape: anything that Python's audit events know of (opening files, importing, compiling, starting processes,
  sockets, ctypes, ...) while a file is read; only the import of a listed module by the unpickler itself is allowed,
* another exception than the readers may raise.

After every 100000 inputs a line says how they ended.
"""

from __future__ import annotations

import argparse
import codecs
import collections
import io
import json
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    import atheris
except ImportError:
    sys.exit("this needs atheris: pip install 'les_md[fuzz]'")

# Both interpreters of the unpickler are to be instrumented, the standard library's included.
del sys.modules["pickle"]
INSTRUMENTED = [
    "les_md.restricted_unpickler", "les_md.unpickled_values", "les_md.stand_in", "les_md.model_file", "pickle",
    "_compat_pickle",
]  # fmt: skip
with atheris.instrument_imports(include=INSTRUMENTED):
    from les_md import model_file, restricted_unpickler
    from les_md.checkpoint_errors import CheckpointError, UnsafeCheckpointError

#: What happens all the time and gives a file nothing.
HARMLESS = {"builtins.id", "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe"}

endings: collections.Counter[str] = collections.Counter()
watching = False


def audit(event: str, arguments: tuple) -> None:
    if not watching or event in HARMLESS:
        return
    print(f"ESCAPE: {event} {arguments!r:.300}", file=sys.stderr, flush=True)
    os.abort()


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
    except Exception as error:
        # read_checkpoint says of these that the file is damaged; the reader of metadata has no such net.
        if read is not load_pickle:
            raise
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

    def import_listed(module: str) -> object:
        global watching
        listed = any(
            module.startswith(entry) if entry.endswith(".") else module == entry
            for entry in restricted_unpickler._MODULE_CLASSES
        ) or any(module == known for known, _ in restricted_unpickler._TUPLE_CLASSES)
        if not listed:
            return original(module)  # which the audit will notice
        watching = False
        try:
            return original(module)
        finally:
            watching = True

    restricted_unpickler._import = import_listed


def pickle_seeds() -> list[bytes]:
    from tests.test_checkpoint import HOSTILE, program, tensor_program

    seeds = [program(body(Path("/tmp/marker"))) for _, body in HOSTILE]
    seeds.append(program(tensor_program()))
    contents = {"a": [1, 2.5, None, True, {"b": (1, "x", b"y")}], "s": {1, 2}, "o": collections.OrderedDict(k=1)}
    seeds += [pickle.dumps(contents, protocol) for protocol in range(6)]
    return seeds


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


def load_metadata(data: bytes) -> None:
    """The input as a file; or, behind a zero, as the text of the metadata in a sound one."""
    if data[:1] == b"\0":
        data = archive_of(data[1:])
    model_file._read_metadata(io.BytesIO(data), "model.pt")


def archive_of(text: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("m/constants.pkl", b"x")
        archive.writestr(f"m/extra/{model_file.METADATA_NAME}", text)
    return buffer.getvalue()


def metadata_seeds() -> list[bytes]:
    metadata = {"format_version": 4, "elements": ["H"], "cutoff": 4.0, "num_layers": 1, "long_range": None}
    texts = [json.dumps(metadata), json.dumps({**metadata, "format_version": 99}), "{", "[]", "null", "1"]
    texts = [text.encode() for text in texts]
    archives = [archive_of(text, kind) for text in texts for kind in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)]
    return [*archives, *(b"\0" + text for text in texts)]


READERS = {"pickle": (load_pickle, pickle_seeds), "metadata": (load_metadata, metadata_seeds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("corpus", type=Path)
    options, fuzzer_options = parser.parse_known_args()
    read, seeds = READERS[options.reader]
    if not options.corpus.is_dir():
        options.corpus.mkdir(parents=True)
        for number, seed in enumerate(seeds()):
            (options.corpus / f"seed{number}").write_bytes(seed)
    words = options.corpus.with_suffix(".dict")
    words.write_text("".join(f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in dictionary()))

    allow_listed_imports()
    for encoding in ("raw_unicode_escape", "unicode_escape", "latin1", "ascii", "utf-8", "cp437"):
        codecs.lookup(encoding)  # which Python imports at the first use
    sys.addaudithook(audit)

    def one_input(data: bytes) -> None:
        endings[watched(read, data)] += 1
        if endings.total() % 100_000 == 0:  # libFuzzer leaves without running what Python has to do at its end
            print(f"{endings.total()} inputs: {dict(endings.most_common())}", flush=True)

    limits = [f"-dict={words}", "-max_len=4096", "-timeout=20", "-rss_limit_mb=2048", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *limits, *fuzzer_options, str(options.corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
