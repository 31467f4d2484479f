"""Reinforcement learning from human feedback: rollouts, rewards, advantages, the PPO loop, and what to check."""
