//! The swarm on virtual time: the very [`Engine`](crate::engine::Engine) and
//! [`Swarm`](crate::membership::Swarm) that run in production, joined by modelled links.
//!
//! The model. An uplink sends one block at a time, neighbours that want something in turn; a block
//! is whole at the receiver after the latency, or when the receiver's downlink (and the link into
//! its zone) has taken all that came before it. Control messages take the latency alone and cost no
//! bandwidth; where a scenario says so they also wait for the block that their uplink is sending.
//! There is no TCP, no loss, no CPU: results are optimistic, so take the ranking and not the third
//! digit. Measured on real sockets, N = 6 was 1.5 % and N = 20 was 6 % slower than simulated.
//!
//! What comes out of it, beside the design's figures, and what each mechanism is worth:
//! `docs/performance.md`. The scenarios' settings are not production's: window 1, no batches and
//! degree 8 were chosen on these very scenarios. That hetero's uplinks end at B is a guess from the
//! design's volumes. die10 kills nobody at N = 6. More than 2000 peers run with batches.
//!
//! What is reported. *limit*: no scheme can be faster, max(F / seeds' uplinks, F / downlink,
//! N F / all uplinks, F / zone link), for every node from its own join. *slowest*, *p50*, *p99*:
//! times over the limit. *seed*: what seeds sent. *origin*: what the origin sent. *cross*: what
//! crossed between zones. All in F, the content's size.

mod scenario;
mod world;

pub use scenario::{Outcome, Regime, Scenario, SchedulerMessages, UnknownRegime};
pub use world::simulate;
