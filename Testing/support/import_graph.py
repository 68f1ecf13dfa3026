"""The graph of imports between the modules of this project: cycles, and the longest chain.

    python Testing/support/import_graph.py    prints both, and the lines of each package

Every import counts: at the top of a file, inside functions, and those for type checkers alone.
"""

from collections import Counter
from functools import cache
from pathlib import Path

from support.project import CORE, LIB, core_files, imported_names, lib_files


def module_name(path: Path) -> str:
    """Return the import name of a file; that of the package for its ``__init__.py``."""
    parts = path.relative_to(CORE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Return what each module of the core and of the module's library imports of them."""
    files = {module_name(path): path for path in (*core_files(), *lib_files())}
    graph: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set()
        for _, imported in imported_names(path):
            parent = imported.rpartition(".")[0]  # the last part may be a name in a module
            found.add(imported if imported in files else parent)
        graph[name] = found & files.keys() - {name}
    return graph


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the sets of modules that import each other, directly or through others (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = lowest[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                lowest[node] = min(lowest[node], lowest[other])
            elif other in stack:
                lowest[node] = min(lowest[node], index[other])
        if lowest[node] == index[node]:
            together = []
            while not together or together[-1] != node:
                together.append(stack.pop())
            if len(together) > 1:
                found.append(sorted(together))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return sorted(found)


def longest_chain(graph: dict[str, set[str]]) -> list[str]:
    """Return the longest chain of imports; modules of a cycle count once."""
    group = {name: frozenset([name]) for name in graph}
    for together in cycles(graph):
        for name in together:
            group[name] = frozenset(together)

    @cache
    def chain(one: frozenset[str]) -> tuple[frozenset[str], ...]:
        below = {group[other] for name in one for other in graph[name]} - {one}
        return (one, *max(map(chain, sorted(below, key=sorted)), key=len, default=()))

    longest = max(map(chain, sorted(set(group.values()), key=sorted)), key=len)
    return [" + ".join(sorted(one)) for one in longest]


def lines_by_package() -> Counter[str]:
    """Return the number of lines of Python by package."""
    counts: Counter[str] = Counter()
    for path in (*core_files(), *lib_files()):
        parts = path.relative_to(CORE.parent).parts
        package = "/".join(parts[:2]) if len(parts) > 2 else (parts[0] if len(parts) > 1 else "")
        counts[package or LIB.parent.name] += len(path.read_text(encoding="utf-8").splitlines())
    return counts


def main() -> None:
    """Print the figures."""
    graph = import_graph()
    for package, lines in sorted(lines_by_package().items()):
        print(f"{lines:7,}  {package}")
    print(f"{sum(lines_by_package().values()):7,}  lines in {len(graph)} files")
    chain = longest_chain(graph)
    print(f"import depth {len(chain)}: {' -> '.join(chain)}")
    together = cycles(graph)
    print(f"import cycles {len(together)}: {'; '.join(' <-> '.join(one) for one in together)}")


if __name__ == "__main__":
    main()
