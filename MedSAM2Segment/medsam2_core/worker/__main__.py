import sys

from medsam2_core.worker.system import remove_present_folder, take_standard_streams

if __name__ == "__main__":
    remove_present_folder(sys.path)
    streams = take_standard_streams()  # before anything else is imported that might print

    from medsam2_core.worker.server import serve

    serve(streams, "--verbose" in sys.argv[1:])
