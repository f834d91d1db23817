//! The operator on a real API server. Most tests need nothing that acts on objects, so they share an
//! API server alone, with the operator as a process that has no more rights than its ServiceAccount;
//! what has to run runs on nodes.

mod bed;
mod cert_manager;
mod conditions;
mod crash;
mod elsewhere;
mod external;
mod issuers;
mod life;
mod monitoring;
mod nodes;
mod objects;
mod preheat;
mod schema;
mod several;
mod shapes;
mod writes;
