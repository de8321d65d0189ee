"""What a policy's file says of itself: the checksum over all of it, what it was made for, and what its action is."""

from __future__ import annotations

import hashlib

import onnx

from helm_gym.cluster.router_observation import RouterLayout
from helm_gym.errors import IncompatibleError, InvalidInputError, UnfitPolicyError
from helm_gym.observation import ObservationLayout
from helm_gym.policies.onnx_check.rules import MAX_SENTENCE, quoted, refuse, shown
from helm_gym.policy_origin import Origin

CHECKSUM, ACTION, ROUTER_LAYOUT = "checksum", "action", "router_layout_version"
DELTA = "delta"  # a change of target alpha over the profile's largest step
ROUTING = "routing"  # a router's weights, as helm_gym.cluster.routing.weights_of takes them
_RULE = "v2"  # of the checksum; the first one, without a version, covered the graph and no functions or metadata
_AGAIN = "write it again with `helm-gym export FILE --out FILE`"


def facts_of(model: onnx.ModelProto) -> dict[str, str]:
    """The metadata by key."""
    return {entry.key: entry.value for entry in model.metadata_props}


def checksum(model: onnx.ModelProto) -> str:
    """``v2:`` and the SHA-256 of the whole model but for the metadata entry that holds it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    kept = [entry for entry in model.metadata_props if entry.key != CHECKSUM]
    del bare.metadata_props[:]
    bare.metadata_props.extend(kept)
    return f"{_RULE}:{hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()}"


def check_checksum(model: onnx.ModelProto) -> None:
    """Raises RefusedError unless the file is as `helm-gym export` wrote it."""
    kept = facts_of(model).get(CHECKSUM)
    if kept is None:
        refuse("checksum", f"it has no checksum; {_AGAIN}, which checks it and says what it was made for.")
    if kept.partition(":")[0] != _RULE:
        refuse("checksum", f"its checksum {quoted(kept)} is of an older version or none; {_AGAIN}.")
    if kept != checksum(model):
        refuse("checksum", "it is not what was exported: its checksum differs; export it again.")


def check_purpose(model: onnx.ModelProto, layout: ObservationLayout, action: str) -> None:
    """Raises RefusedError unless the file was made for ``layout``, and for a place of this action."""
    facts = facts_of(model)
    try:
        Origin.read(facts, "it").check(layout, "it")
    except IncompatibleError as error:
        raise UnfitPolicyError("made-for", shown(str(error), MAX_SENTENCE)) from error
    except InvalidInputError as error:
        refuse("metadata", str(error))
    if facts.get(ACTION) != action:
        refuse("action", f"its action is {quoted(str(facts.get(ACTION)))}; '{action}' is needed.")
    if action == ROUTING and facts.get(ROUTER_LAYOUT) != str(RouterLayout().version):
        theirs, here = quoted(facts.get(ROUTER_LAYOUT, "none"))[1:-1], RouterLayout().version
        raise UnfitPolicyError(
            "made-for",
            f"it was made for something else: router's layout {theirs} there and {here} here; train one for this.",
        )
