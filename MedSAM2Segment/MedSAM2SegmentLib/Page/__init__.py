"""The module's page without Qt: what it shows, as plain values, and what its buttons do.

Start with ``PageController``. Each section has a ``view()`` and calls ``changed`` whenever that may return
something new. ``settings`` is a Settings, ``workers`` a WorkerAccess.
"""
