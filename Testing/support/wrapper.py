"""What stands between client and worker when that is far away: slow, chatty, or about to break.

    python wrapper.py [--rate BYTES_A_SECOND] [--latency SECONDS] [--count FILE]
                        [--after BYTES ACTION --once FILE] -- COMMAND …

Bytes go through as they are, so many a second, so much later. ACTION is done once in all lives, after so many
bytes of answers: die, garbage, close, stop.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

PIECE = 16 << 10


class Link:
    """One direction: bytes leave it no sooner than after the latency, and no faster than the rate."""

    def __init__(self, source, sink, rate, latency, look=lambda sent: None):
        self.source, self.sink, self.rate, self.latency, self.look = source, sink, rate, latency, look
        self.queue, self.changed = deque(), threading.Condition()
        self.sent, self.held = 0, 0

    def start(self):
        threads = [threading.Thread(target=task, daemon=True) for task in (self.read, self.write)]
        for thread in threads:
            thread.start()
        return threads

    def read(self):
        while True:
            with self.changed:  # a real link does not take everything at once either
                self.changed.wait_for(lambda: self.held < 4 * PIECE + int(self.rate * self.latency))
            data = os.read(self.source, PIECE)
            with self.changed:
                self.queue.append((time.monotonic() + self.latency, data))
                self.held += len(data)
                self.changed.notify_all()
            if not data:
                return

    def write(self):
        free_at = 0.0
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.queue)
                ready, data = self.queue.popleft()
            if not data:
                os.close(self.sink)
                return
            free_at = max(free_at, ready) + len(data) / self.rate
            time.sleep(max(0.0, free_at - time.monotonic()))
            while data:
                data = data[os.write(self.sink, data) :]
            with self.changed:
                self.held = sum(len(one) for _, one in self.queue)
                self.changed.notify_all()
            self.sent += PIECE
            self.look(self.sent)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", type=float, default=1e12)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--count")
    parser.add_argument("--after", nargs=2)
    parser.add_argument("--once")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    child = subprocess.Popen(options.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def misbehave(sent):
        if options.after is None or sent < int(options.after[0]) or Path(options.once).exists():
            return
        Path(options.once).touch()
        action = options.after[1]
        print(f"the wrapper is about to {action}", file=sys.stderr, flush=True)
        if action == "die":
            os._exit(7)
        elif action == "garbage":
            os.write(1, b"Connection to host closed by remote host.\r\n")
        elif action == "close":
            os.close(1)
        elif action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)

    def count(sent):
        if options.count:
            Path(options.count + ".new").write_text(str(sent))
            os.replace(options.count + ".new", options.count)

    Link(0, os.dup(child.stdin.fileno()), options.rate, options.latency, count).start()
    child.stdin.close()
    for thread in Link(child.stdout.fileno(), 1, options.rate, options.latency, misbehave).start():
        thread.join()
    sys.exit(child.wait())


if __name__ == "__main__":
    main()
