"""Before any long work: the processes of a run have the same configuration, versions, devices and workdir."""

import json
import pathlib
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from rmt_jax.training.config import Config, to_dict
from rmt_jax.training.environment import package_versions
from rmt_jax.training.hosts import Hosts

# What each host may have its own way.
OWN_KEYS = ("data.dir", "data.num_workers", "data.num_threads", "data.prefetch")

_VISIBLE_WITHIN = 10.0  # seconds, for network file systems that remember what was not there
_SHOWN = 5


def check_agreement(hosts: Hosts, config: Config, workdir: pathlib.Path) -> None:
    """Compare this process with the first one of its run.

    Raises:
        ValueError: a process differs, or does not see the first one's workdir; all processes raise it.
    """
    if hosts.count == 1:
        return
    mine = {
        **{f"config.{key}": value for key, value in _flat(to_dict(config)) if key not in OWN_KEYS},
        **{f"version of {name}": version for name, version in package_versions().items()},
        "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
    }
    first, *others = [json.loads(text) for text in hosts.exchange("facts", json.dumps(mine, default=str))]
    differences = [
        f"{hosts.name(index)}: {key}: {theirs.get(key)!r} there, {first.get(key)!r} on {hosts.name(0)}"
        for index, theirs in enumerate(others, start=1)
        for key in dict.fromkeys([*first, *theirs])
        if first.get(key) != theirs.get(key)
    ]
    if differences:
        more = f"\n  and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ValueError("The processes of this run differ:\n  " + "\n  ".join(differences[:_SHOWN]) + more)
    _check_shared(hosts, workdir)


def _check_shared(hosts: Hosts, workdir: pathlib.Path) -> None:
    """The first process writes a file with a random name, which all must see; nothing of it stays."""
    name = hosts.exchange("nonce", f".shared-{secrets.token_hex(8)}")[0]
    created: list[pathlib.Path] = []
    problem = ""
    if hosts.index == 0:
        try:
            created = [folder for folder in (workdir, *workdir.parents) if not folder.exists()]
            workdir.mkdir(parents=True, exist_ok=True)
            (workdir / name).touch()
        except OSError as error:
            problem = f"The workdir {workdir} cannot be written: {error.strerror}. Choose another with --workdir."
    problem = hosts.exchange("written", problem)[0]
    seen = "" if problem or _appears(workdir / name) else "no"
    answers = hosts.exchange("seen", seen)
    if hosts.index == 0 and not problem:
        (workdir / name).unlink()
        for folder in created:
            folder.rmdir()
    blind = [hosts.name(index) for index, answer in enumerate(answers) if answer]
    if blind:
        problem = (
            f"The workdir {workdir} is not one folder for all processes: {', '.join(blind)} "
            f"{'does' if len(blind) == 1 else 'do'} not see what {hosts.name(0)} writes there. "
            f"Give --workdir on a file system that all hosts share."
        )
    if problem:
        raise ValueError(problem)


def _appears(path: pathlib.Path) -> bool:
    deadline = time.monotonic() + _VISIBLE_WITHIN
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
