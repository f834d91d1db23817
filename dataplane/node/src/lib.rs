//! dragonfly-node
