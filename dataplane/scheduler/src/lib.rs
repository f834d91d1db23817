//! dragonfly-scheduler
