"""Protocols: what they ask for, and their mistakes."""

from __future__ import annotations

from utils.command import run_command

import pytest

from bench import table
from bench.protocol import jobs_of, read_protocol
from tests.commands import ROOT, TWO_SYSTEMS, Workspace
from utils.config import dump_config
from utils.errors import UsageError


def test_a_protocol_decides_on_names_and_seeds() -> None:
    with pytest.raises(UsageError, match="--set seed=3: the protocol decides"):
        list(jobs_of(read_protocol("glas64"), ["seed=3"], small=False))
    jobs = list(jobs_of(read_protocol("glas64"), ["data.raw=x", "sampling.draws=3"], small=False))
    draws = {job.system: job.resolved().sampling.draws for job in jobs}
    assert (draws["DDPM"], draws["regression MC dropout"]) == (3, 3)


def test_a_system_may_have_seeds_of_its_own(workspace: Workspace) -> None:
    systems = "  - {name: VE}\n  - {name: pooled, network: VE, members: 3, seeds: [5, 0]}\n"
    head = "name: own\ntitle: Own\nconfig: config.yaml\nseeds: [0, 1]\n"
    (workspace.path / "own.yaml").write_text(f"{head}systems:\n{systems}samplings:\n  - {{name: way}}\n")
    jobs = list(jobs_of(read_protocol("own.yaml"), [], small=False))
    assert [(job.system, job.seed) for job in jobs] == [("VE", 0), ("pooled", 0), ("VE", 1), ("pooled", 5)]
    seeds = [training.resolved().seed for training in jobs[-1].others]
    assert (jobs[-1].training.resolved().seed, seeds) == (5, [1005, 2005])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("network: nobody", "network: nobody is none of VE"),
        ("members: 3", "members: needs network"),
        ("network: VE, config: x.yaml", "network: has a config of its own"),
    ],
)
def test_a_protocol_whose_ensembles_have_no_networks(workspace: Workspace, change: str, message: str) -> None:
    systems = f"systems:\n  - {{name: VE}}\n  - {{name: both, {change}}}\nsamplings:\n  - {{name: own}}\n"
    (workspace.path / "bad.yaml").write_text(f"name: bad\ntitle: Bad\nconfig: config.yaml\n{systems}")
    workspace.capture.readouterr()
    assert run_command(lambda: table.main(["--protocol", "bad.yaml"])) == 2
    assert message in workspace.capture.readouterr().err


def test_a_protocol_that_is_no_text_is_one_line(workspace: Workspace) -> None:
    (workspace.path / "bad.yaml").write_bytes(b"name: \xff\n")
    assert run_command(lambda: table.main(["--protocol", "bad.yaml"])) == 2
    assert "--protocol bad.yaml: 'utf-8' codec" in workspace.capture.readouterr().err


def test_only_takes_systems_of_the_protocol(workspace: Workspace) -> None:
    assert run_command(lambda: table.main(["--protocol", "glas64", "--only", "U-net"])) == 2
    assert "--only U-net: no such system; U-Net, U-Net++" in workspace.capture.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [("name: x", "title"), ("- 1", "--protocol"), (TWO_SYSTEMS.replace("systems:", "system:"), "systems")],
)
def test_a_protocol_with_mistakes(workspace: Workspace, text: str, message: str) -> None:
    (workspace.path / "bad.yaml").write_text(text)
    workspace.capture.readouterr()
    assert run_command(lambda: table.main(["--protocol", "bad.yaml"])) == 2
    error = workspace.capture.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize(
    ("name", "count"),
    [("systems_phantom", 36), ("systems_glas64", 36), ("glas64", 13), ("glas128", 13), ("draws_glas64", 27),
     ("draws_glas128", 18), ("draws_phantom", 34), ("draws_nuclei", 20), ("raters_lidc64", 29), ("raters_cfos", 4),
     ("ambiguous_lidc64", 20), ("monuseg500", 32)],
)  # fmt: skip
def test_every_system_of_the_protocols_is_a_valid_config(
    name: str, small: bool, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    jobs = list(jobs_of(read_protocol(name), ["data.raw=here"], small))
    assert len({dump_config(job.resolved()) for job in jobs}) == len(jobs) == count


@pytest.mark.parametrize("small", [False, True])
def test_the_systems_of_the_protocol_share_their_data(small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    configs = [job.resolved() for job in jobs_of(read_protocol("glas128"), [], small)]
    data = [config.data for config in configs]
    assert len({(d.size, d.color, d.stain, d.rotations, d.validation_fraction, d.split_seed) for d in data}) == 1
    assert len({(d.root, d.truncation) for d in data}) == len({d.root for d in data}) == (1 if small else 2)
