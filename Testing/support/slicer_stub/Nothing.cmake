# Slicer writes a configuration and packages here; nothing of this extension depends on it.
