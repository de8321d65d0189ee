"""Honest baselines: rules, curves, predictors and oracles to compare agents with, and the classic routers."""

from helm_gym.registry import register

register("policy", "static", "baselines.simple:Static", "one split, held", argument="ALPHA")
register("policy", "random", "baselines.simple:Random", "a random walk of the target")
register(
    "policy", "best-static", "baselines.best_static:BEST_STATIC", "the best split of training", agent="best-static"
)
register(
    "policy",
    "threshold",
    "baselines.rules:THRESHOLD",
    "moves towards the side whose hit rate falls below its band",
    agent="threshold",
)
register(
    "policy",
    "shadow-gradient",
    "baselines.rules:SHADOW_GRADIENT",
    "follows the sign of the shadow lists' marginals",
    agent="shadow-gradient",
)
register(
    "policy",
    "miss-bytes",
    "baselines.rules:MISS_BYTES",
    "splits in proportion to each side's missed bytes",
    agent="miss-bytes",
)
register(
    "policy",
    "miss-ratio-curve",
    "baselines.curves:MISS_RATIO_CURVE",
    "argmin of the simulated cost, smoothed",
    agent="miss-ratio-curve",
)
register("policy", "lstm", "baselines.predictors.lstm:LSTM", "goes where an LSTM predicts alpha*", agent="lstm")
register("policy", "gbdt", "baselines.predictors.gbdt:GBDT", "goes where boosted trees predict alpha*", agent="gbdt")
register("policy", "oracle", "baselines.oracles:RegimeOracle", "jumps to alpha* of the present regime")
register(
    "policy", "oracle-late", "baselines.oracles:RegimeOracle", "the same, WINDOWS windows late", argument="WINDOWS"
)
register("policy", "clairvoyant", "baselines.oracles:Clairvoyant", "looks ahead with the true future requests")

register("router", "random", "baselines.routers:RANDOM", "any node alive")
register("router", "round-robin", "baselines.routers:ROUND_ROBIN", "one node after the other")
register("router", "least-loaded", "baselines.routers:LEAST_LOADED", "the node that is expected to be free first")
register(
    "router",
    "consistent-hash",
    "baselines.routers:CONSISTENT_HASH",
    "a user's own node on a hash ring, loads bounded",
)
register(
    "router",
    "emb-aware",
    "baselines.routers:EMB_AWARE",
    "the node that has most of the request's embedding rows",
)
register("router", "kv-aware", "baselines.routers:KV_AWARE", "the node that has the user's KV")
register(
    "router",
    "joint",
    "baselines.routers:JOINT",
    "the node that is expected to answer first: KV, rows and load, in ms",
)
