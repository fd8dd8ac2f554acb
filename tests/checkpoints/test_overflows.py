"""Pickles that overflow the stack of C, never end or fill the memory if Python is left to read them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from les_md.checkpoint import read_checkpoint
from tests.checkpoints.written_files import (
    IRREP,
    OVERFLOWS,
    program,
    text,
    write_archive,
)


@pytest.fixture(scope="module")
def overflow_results(tmp_path_factory):
    """Of every case, in a process of its own with 4 GB and 60 s of the processor: its exit status, and the message."""
    script = (
        "import os, resource, sys; from les_md.checkpoint import read_checkpoint\n"
        "from les_md.checkpoint_errors import CheckpointError\n"
        "def read(path):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))\n"
        "    resource.setrlimit(resource.RLIMIT_CPU, (60, 60))\n"
        "    try: read_checkpoint(path)\n"
        "    except CheckpointError as error: return str(error)\n"
        "    return ''\n"
        "for path in sys.argv[1:]:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        open(path + '.message', 'w').write(read(path))\n"
        "        os._exit(0)\n"
        "    print(os.waitpid(child, 0)[1])"
    )
    folder = tmp_path_factory.mktemp("overflows")
    paths = [
        write_archive(folder / f"{number}.pth", program(body)) for number, (body, _) in enumerate(OVERFLOWS.values())
    ]
    done = subprocess.run([sys.executable, "-c", script, *paths], capture_output=True, text=True, check=True)
    messages = [Path(f"{path}.message") for path in paths]
    texts = [message.read_text() if message.exists() else done.stderr[-2000:] for message in messages]
    return dict(zip(OVERFLOWS, zip(map(int, done.stdout.split()), texts, strict=True), strict=True))


@pytest.mark.parametrize("case", OVERFLOWS)
def test_overflows(case, overflow_results):
    if b"e3nn" in OVERFLOWS[case][0]:
        pytest.importorskip("e3nn", reason="e3nn is not installed")
    status, message = overflow_results[case]
    assert status == 0, message
    expected = OVERFLOWS[case][1]
    assert expected in message if expected else not message
    assert len(message) < 1000


def test_keys_of_e3nn(tmp_path):
    """Whose irreps are tuples without a len()."""
    pytest.importorskip("e3nn", reason="e3nn is not installed")
    body = b"}" + IRREP + b"K\x01J\xff\xff\xff\xff\x86\x81K\x02\x86" + text("value") + b"s"
    read = read_checkpoint(write_archive(tmp_path / "model.pth", program(body)))
    assert [(str(irrep), number) for irrep, number in read] == [("1o", 2)]
