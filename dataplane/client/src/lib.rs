//! dragonfly-client
