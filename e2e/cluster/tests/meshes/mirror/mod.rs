//! Image pulls through the mesh: real registries, real containerd of both kinds, real pods.

mod faults;
mod gate;
mod nodes;
mod place;
mod plan;
mod pulls;
mod registries;
