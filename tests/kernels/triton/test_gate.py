"""The compile gate, in processes of their own: here Triton interprets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kernels.triton.mutants import MUTANTS

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "kernels/heed_kernels/triton"


def run(script, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_largest_kernels_compile_within_their_budget_and_a_known_spiller_does_not():
    print(run("gate.py", "--self-test", "--arch", "90"))


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_kernel_that_can_be_launched_compiles_within_its_budget():
    print(run("gate.py", "--all"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant[0]}: {mutant[1]}"[:40])
def test_what_a_mutant_breaks_is_there(mutant):
    """Or the whole list stops at it, of which most runs take a sample."""
    name, old, new, tests, _ = mutant
    assert old in (KERNELS / name).read_text() and old != new
    assert (HERE / tests).exists()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_mutant_turns_a_test_red():
    print(run("mutants.py"))
