//! dragonfly-crds
