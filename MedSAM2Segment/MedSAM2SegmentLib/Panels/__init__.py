"""What is seen in windows: the effect's options and the module's page. They need Qt, and decide nothing.

What they show are plain values (``PanelState``, ``Page/PageState``), made without Qt.
"""
