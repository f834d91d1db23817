//! dragonfly-e2e
