"""A connection over nothing: what a worker would send is fed to it, and what it writes is kept."""

import itertools
from collections import deque

from medsam2_core.worker.connection import Connection, Timing


class Wire:
    """A transport that keeps what is written, and the owner of the connection."""

    def __init__(self):
        self.written, self.reasons = [], []

    def start(self, listener):
        pass

    def write(self, data):
        self.written.append(data)

    def pending(self):
        return 0

    def kill(self):
        pass

    def on_welcome(self, connection):
        pass

    def on_lost(self, connection, reason):
        self.reasons.append(reason)

    def deliver(self):
        pass


class Client(Connection):
    """A connection over nothing."""

    def __init__(self):
        self.wire, self.calls = Wire(), deque()
        super().__init__(self.wire, self.wire, itertools.count(1), self.calls, lambda: 0.0, Timing())


def call_all(client):
    """Call the callbacks that are queued."""
    while client.calls:
        client.calls.popleft()()
