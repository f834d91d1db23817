//! dragonfly-swarm
