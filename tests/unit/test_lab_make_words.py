"""Words of `make lab`, as scripts/lab passes them on: which hosts, and what they can run."""

import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from vhdtool.errors import UsageError
from vhdtool.lab.options import OPTIONS, RunOptions

NAMES = {f"migration_{option.variable}" for option in OPTIONS}
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "lab"


@pytest.fixture(scope="module")
def lab() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("lab_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("lab_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up.
    sys.modules["lab_script"] = module
    loader.exec_module(module)
    return module


def test_xen_hosts_run_xen_and_a_choice_of_orders(lab: ModuleType) -> None:
    asked = lab.variables({"LAB": "xen"})
    assert asked["migration_hypervisor"] == "xen"
    chosen = {name: value for name, value in asked.items() if name in NAMES}
    cases = RunOptions.of_playbook(chosen).cases()
    assert {"late-close", "activate", "activate-retry"} < {one.name for one, _ in cases}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"STRATEGY": "hold"}, {"migration_strategies": "hold"}),
        ({"STEPS": "D.attach | S.deactivate D.activate | S.detach"}, {}),
    ],
)
def test_orders_that_are_named_replace_those_of_xen(
    lab: ModuleType, words: dict[str, str], expected: dict[str, str]
) -> None:
    asked = lab.variables({"LAB": "xen", **words})
    assert asked.get("migration_strategies") == expected.get("migration_strategies")


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"LAB": "xen", "HYPERVISOR": "kvm"}, "HYPERVISOR=kvm: the hosts of LAB=xen run xen"),
        ({"HYPERVISOR": "xen"}, "HYPERVISOR=xen: the hosts of LAB=local run kvm"),
        (
            {"LAB": "xen", "STRATEGY": "hold", "STEPS": "D.attach | S.deactivate D.activate |"},
            "steps: are an order of their own; give them without strategies",
        ),
        ({"LAB": "vmware"}, "LAB=vmware: is none of local, kvm, xen"),
        (
            {"LAB": "xen", "SHARED": "/tmp"},
            "SHARED=: is for the local hosts alone, not for LAB=xen",
        ),
    ],
)
def test_words_that_do_not_fit_the_hosts_are_refused(
    lab: ModuleType, words: dict[str, str], why: str
) -> None:
    with pytest.raises(UsageError) as refused:
        lab.variables(words)
    assert str(refused.value) == why
