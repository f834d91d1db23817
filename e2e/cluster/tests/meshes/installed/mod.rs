//! What is installed as people install it: the charts, the bases, the samples; who leads; and what policy
//! and reports cost.

mod leaders;
mod reports;
mod samples;
pub(crate) mod ways_in;
