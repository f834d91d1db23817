//! dragonfly-transport
