//! Which of several operators works: the one that the Lease `dragonfly-operator` names.
//!
//! The others write nothing. One that cannot renew its Lease ends at once, before
//! another may begin: what it left half done the other finds and finishes.

use std::time::{Duration, Instant};

use dragonfly_kubernetes::election::{Election, OPERATOR, Step};
use dragonfly_kubernetes::lease::{HeldLease, record};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Client;
use tokio_util::sync::CancellationToken;

/// The Lease's name.
pub const LEASE: &str = "dragonfly-operator";

/// This operator's stand in the election.
pub struct Leader {
    lease: HeldLease,
    election: Election,
    started: Instant,
    /// As it was last written, while it is ours.
    ours: Option<Lease>,
    complaint: String,
}

impl Leader {
    /// `me`: the pod's name. The Lease is in the operator's own namespace.
    pub fn new(client: Client, namespace: &str, me: &str) -> Self {
        // Another one after each start: a process that comes back is not the one that went.
        let me = format!("{me}_{:016x}", fastrand::u64(..));
        Self {
            lease: HeldLease::new(client, namespace, LEASE, &me, OPERATOR),
            election: Election::new(me, OPERATOR),
            started: Instant::now(),
            ours: None,
            complaint: String::new(),
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Waits until it is this operator's turn; `false`: stopped before.
    pub async fn wait(&mut self, stop: &CancellationToken) -> bool {
        let mut told = false;
        while !stop.is_cancelled() {
            self.step().await;
            if self.election.holds(self.now()) {
                tracing::info!(lease = LEASE, "this operator leads");
                return true;
            }
            if let Some(holder) = self.election.holder().filter(|_| !told) {
                tracing::info!(lease = LEASE, holder, "another operator leads; standing by");
                told = true;
            }
            tokio::select! {
                () = tokio::time::sleep(OPERATOR.every) => {}
                () = stop.cancelled() => {}
            }
        }
        false
    }

    /// Renews until stopped, or until it may not go on: then what this process does has to end at once.
    pub async fn keep(&mut self, stop: &CancellationToken) {
        let mut renewed = self.now();
        loop {
            let now = self.now();
            let left = self.election.left(now);
            if left.is_zero() {
                tracing::error!(lease = LEASE, "the lease could not be renewed in time");
                return;
            }
            let due = (renewed + OPERATOR.every).saturating_sub(now);
            tokio::select! {
                () = tokio::time::sleep(due.min(left)) => {}
                () = stop.cancelled() => return,
            }
            renewed = self.now();
            // A request that hangs does not outlive the lease.
            let left = self.election.left(self.now());
            let _ = tokio::time::timeout(left, self.step()).await;
        }
    }

    /// Gives the Lease back, so that another need not wait.
    pub async fn give_back(&mut self) {
        if self.election.holds(self.now())
            && let Some(lease) = self.ours.take()
        {
            self.election.gave_back();
            if let Err(error) = self.lease.give_back(lease).await {
                tracing::debug!(%error, "the lease runs out by itself");
            }
        }
    }

    async fn step(&mut self) {
        match self.try_step().await {
            Ok(()) => self.complaint.clear(),
            Err(error) => {
                let error = error.to_string();
                if error != self.complaint {
                    tracing::warn!(lease = LEASE, error, "trying on");
                    self.complaint = error;
                }
            }
        }
    }

    async fn try_step(&mut self) -> Result<(), dragonfly_kubernetes::Error> {
        let now = self.now();
        let read = match self.ours.take() {
            Some(ours) => Some(ours),
            None => self.lease.read().await?,
        };
        let seen = read.as_ref().map(record);
        let step = self.election.decide(now, seen.as_ref());
        if step != Step::Wait
            && let Some(lease) = self.lease.write(step, read).await?
        {
            self.election.won(now, record(&lease));
            self.ours = Some(lease);
        }
        Ok(())
    }
}
