import sys

from medsam2_core.worker.standard import take_standard_streams

if __name__ == "__main__":
    streams = take_standard_streams()  # before anything else is imported that might print

    from medsam2_core.worker.server import serve

    serve(streams, "--verbose" in sys.argv[1:])
