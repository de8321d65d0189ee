"""sb3-contrib's RecurrentPPO with the settings of a training, and the tensors that its policy acts with."""

from __future__ import annotations

from sb3_contrib import RecurrentPPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import nn

from agents.sb3 import FrozenScale
from agents.training_env import TrainingEnv
from helm_gym.training.run_folder import Tensors


def make_recurrent_ppo(env: TrainingEnv, seed: int) -> RecurrentPPO:
    """An actor with an LSTM and nothing behind it; the critic, which is dropped, sees single observations."""
    s = env.settings
    return RecurrentPPO(
        "MlpLstmPolicy",
        env,
        learning_rate=lambda left: s.learning_rate * left,
        n_steps=s.n_steps,
        batch_size=min(s.batch_size, s.lanes * s.n_steps),
        n_epochs=s.n_epochs,
        gamma=s.gamma,
        gae_lambda=s.gae_lambda,
        clip_range=s.clip_range,
        ent_coef=s.ent_coef,
        vf_coef=s.vf_coef,
        max_grad_norm=s.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": FrozenScale,
            "net_arch": {"pi": [], "vf": [s.hidden]},
            "activation_fn": nn.Tanh,
            "log_std_init": s.log_std,
            "lstm_hidden_size": s.hidden,
            "enable_critic_lstm": False,
        },
        seed=seed,
        device="cpu",
    )


def lstm_actor(model: OnPolicyAlgorithm) -> Tensors:
    """The tensors of the deterministic policy, as ``LstmCell`` names them, and the linear layer behind it."""
    state = model.policy.state_dict()
    tensors = {
        "mean": state["features_extractor.mean"],
        "scale": state["features_extractor.scale"],
        "inputs": state["lstm_actor.weight_ih_l0"],
        "recurrent": state["lstm_actor.weight_hh_l0"],
        "bias": state["lstm_actor.bias_ih_l0"] + state["lstm_actor.bias_hh_l0"],
        "head": state["action_net.weight"],
        "head_bias": state["action_net.bias"],
    }
    return {name: tensor.numpy().copy() for name, tensor in tensors.items()}
