"""Behind the page of the module: what it shows as plain values, and what its buttons do. No Qt.

Begin with ``PageController``.
"""
