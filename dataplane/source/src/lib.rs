//! dragonfly-source
