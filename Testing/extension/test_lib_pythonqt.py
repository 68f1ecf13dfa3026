"""Nothing in the module's code fails in Slicer's PythonQt that works in the PySide6 the tests run on."""

import ast
from pathlib import Path

import pytest
from support.pythonqt_rules import BAD, GOOD, RULES, violations

MODULE = Path(__file__).resolve().parents[2] / "MedSAM2Segment"
FILES = sorted([*(MODULE / "MedSAM2SegmentLib").rglob("*.py"), *MODULE.glob("*.py")])

ELSEWHERE = {"probe.py", "helper.py", "collect.py"}  # Runtime's scripts for other interpreters, without Qt


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_of_the_module_keeps_to_what_pythonqt_can(path):
    if path.name in ELSEWHERE:
        pytest.skip("not run in Slicer")
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    found = [f"{path.name}:{line}: {wrong}" for line, wrong in violations(tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("name", "code"), [(name, code) for name in RULES for code in BAD[name]])
def test_a_rule_finds_what_it_is_made_for(name, code):
    tree = ast.parse(code)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
    assert any(RULES[name](node, parents) for node in ast.walk(tree)), f"{name} does not see: {code}"


@pytest.mark.parametrize("code", [code for name in RULES for code in GOOD[name]])
def test_the_rules_leave_good_code_alone(code):
    assert list(violations(ast.parse(f"import qt\n{code}"))) == []


def test_every_rule_has_examples_and_a_reason():
    for name, function in RULES.items():
        assert function.__doc__, name
        assert BAD[name], name
        assert GOOD[name], name
