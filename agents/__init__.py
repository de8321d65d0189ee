"""Reference agents: what is trained or tuned, its networks and trainings, and what is shipped of it."""

from helm_gym.registry import register

register("policy", "pid", "agents.pid:PID", "PID on the marginal-utility error", agent="pid")
register(
    "policy", "ppo", "agents.ppo:PPO", "PPO alone: an MLP over three windows, trained on the surrogate", agent="ppo"
)
register(
    "policy",
    "recurrent-ppo",
    "agents.recurrent_ppo:RECURRENT_PPO",
    "PPO with an LSTM in place of windows",
    agent="recurrent-ppo",
)
register(
    "policy",
    "maskable-ppo",
    "agents.maskable_ppo:MASKABLE_PPO",
    "PPO over nine changes of target, those out of bounds masked",
    agent="maskable-ppo",
)
register(
    "policy",
    "three-layer-ppo",
    "agents.three_layer_ppo:THREE_LAYER_PPO",
    "frozen PPO, an adapter that learns online, and recovery from bursts",
    agent="three-layer-ppo",
)
register("policy", "bayesian", "agents.bayesian:BAYESIAN", "Gaussian process over split and context", agent="bayesian")
register(
    "router",
    "learned",
    "agents.multi_agent:ROUTER",
    "as joint, with weights that follow what the nodes report",
    agent="router",
)
