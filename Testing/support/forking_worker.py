"""Workers that start in no time: one process imports everything, then forks one for each stream of bytes.

    python forking_worker.py < streams > outcomes

Streams come as their length (8 bytes, little-endian) and their bytes. For each one line of JSON goes out: the
exit code (negative: the signal), and what was said, as base64.
"""

import base64
import contextlib
import json
import os
import struct
import sys

import torch
from medsam2_core.engine.devices import choose_device
from medsam2_core.worker.server import Server


def main() -> None:
    """Serve one stream after the other."""
    choose_device("auto")
    torch.set_num_threads(1)
    while head := sys.stdin.buffer.read(8):
        outcome = serve(sys.stdin.buffer.read(struct.unpack("<Q", head)[0]))
        print(json.dumps(outcome), flush=True)


def serve(data: bytes) -> dict:
    """Let a worker of its own read these bytes, which fit into a pipe, and their end."""
    (theirs, ours), (back, out) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        os.close(back)
        server = Server(theirs, out)
        server.loop._preload = ""  # takes seconds, and these bytes do not need it
        server.run()
    os.close(theirs)
    os.close(out)
    with contextlib.suppress(BrokenPipeError):
        os.write(ours, data)
    os.close(ours)
    said = b""
    while piece := os.read(back, 1 << 16):
        said += piece
    os.close(back)
    _, status = os.waitpid(child, 0)
    return {"code": os.waitstatus_to_exitcode(status), "said": base64.b64encode(said).decode()}


if __name__ == "__main__":
    main()
