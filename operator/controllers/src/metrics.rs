//! What the operator counts.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A kind and how it went.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Ended {
    kind: &'static str,
    outcome: &'static str,
}

/// A kind and what was done to it.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Written {
    kind: &'static str,
    verb: &'static str,
}

/// A role, or that it was refused.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Issued {
    role: &'static str,
}

/// Counters of one operator.
#[derive(Debug)]
pub struct Metrics {
    reconciled: Family<Ended, Counter>,
    written: Family<Written, Counter>,
    issued: Family<Issued, Counter>,
    seconds: Histogram,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            reconciled: Family::default(),
            written: Family::default(),
            issued: Family::default(),
            seconds: Histogram::new([0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0]),
        }
    }
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let r = registry.sub_registry_with_prefix("dragonfly_operator");
        r.register(
            "reconciliations",
            "Reconciliations by kind and outcome",
            self.reconciled.clone(),
        );
        r.register(
            "writes",
            "Requests that change something at the API server, by kind and verb",
            self.written.clone(),
        );
        r.register(
            "certificates",
            "Requests for certificates by role, or refused",
            self.issued.clone(),
        );
        r.register(
            "reconciliation_seconds",
            "How long reconciliations took",
            self.seconds.clone(),
        );
    }

    pub(crate) fn ended(&self, kind: &'static str, outcome: &'static str, seconds: f64) {
        self.reconciled
            .get_or_create(&Ended { kind, outcome })
            .inc();
        self.seconds.observe(seconds);
    }

    pub(crate) fn issued(&self, role: &'static str) {
        self.issued.get_or_create(&Issued { role }).inc();
    }

    pub(crate) fn wrote(&self, kind: &'static str, verb: &'static str) {
        self.written.get_or_create(&Written { kind, verb }).inc();
    }
}
