//! dragonfly-storage
