"""``helm-gym tasks``, ``profiles`` and ``agents``: what there is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from helm_gym.cli.common import Json, print_json, print_table

if TYPE_CHECKING:
    from helm_gym.registry import Entry


def tasks(as_json: Json = False) -> None:
    """List the versioned tasks that a controller is evaluated on.

    \b
    Example:
      helm-gym tasks --json
    """
    from helm_gym.tasks import all_tasks

    found = all_tasks()
    if as_json:
        return print_json({"tasks": [dataclasses.asdict(task) for task in found]})
    rows = [(t.name, t.regime, t.profile, str(t.horizon), f"{t.seeds[0]}-{t.seeds[-1]}", t.doc) for t in found]
    print_table("", ("task", "regime", "profile", "intervals", "seeds", "what it is"), rows)


def profiles(as_json: Json = False) -> None:
    """List the shipped profiles: a machine and a model each.

    \b
    Example:
      helm-gym profiles
      helm-gym evaluate pid --task burst-v0 --profile cpu-small
    """
    from helm_gym import profile as shipped

    found = [shipped.load(name) for name in shipped.names()]
    if as_json:
        return print_json({"profiles": [dataclasses.asdict(p) | {"memory_bytes": p.memory_account} for p in found]})
    rows = [
        (
            p.name,
            p.device,
            f"{p.memory_account['pool'] / 2**20:,.0f} MiB",
            f"{(sum(p.memory_account.values()) - p.memory_account['pool']) / 2**20:,.0f} MiB",
            f"{p.slo_ms:g} ms",
            p.cost.machine or "not calibrated",
            p.description,
        )
        for p in found
    ]
    print_table("", ("profile", "device", "pool", "scratch", "SLO", "calibrated on", "what it is"), rows)


def agents(as_json: Json = False) -> None:
    """List what has a name: agents, baselines and oracles, what can be trained, and the routers of clusters.

    \b
    Example:
      helm-gym agents
      helm-gym train ppo --settings
      helm-gym evaluate static:0.5 pid oracle --task burst-v0
      helm-gym evaluate pid+joint pid+kv-aware --task burst-v0 --cluster 4
    """
    from helm_gym import registry

    entries = [*registry.listed("policy").values(), *registry.listed("router").values()]
    found = [
        {"name": e.form, "kind": _kind(e), "trainable": bool(e.agent), "what it is": e.doc or f"of package {e.source}"}
        for e in sorted(entries, key=lambda entry: _KINDS.index(_kind(entry)))
    ]
    if as_json:
        return print_json({"agents": found})
    rows = [(str(e["name"]), str(e["kind"]), "yes" if e["trainable"] else "–", str(e["what it is"])) for e in found]
    print_table("", ("policy", "kind", "trains", "what it is"), rows)


_KINDS = ("baseline", "agent", "oracle", "installed", "router")


def _kind(entry: Entry) -> str:
    """Told by the module that it lives in, without opening it."""
    if entry.kind == "router":
        return "router"
    if entry.module.endswith(".oracles"):
        return "oracle"
    return {"agents": "agent", "baselines": "baseline"}.get(entry.module.partition(".")[0], "installed")
