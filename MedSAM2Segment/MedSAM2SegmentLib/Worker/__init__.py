"""The worker under Slicer's event loop: which command starts it, its process, and who shares it. Needs Qt."""
