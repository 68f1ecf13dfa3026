"""The worker under Slicer's event loop: its command, its process, and its owners. Needs Qt."""
